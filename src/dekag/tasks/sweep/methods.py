"""Ways to send a latent, each with a name, a digest, and a recipe by which any process can make it again."""

from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from dekag.alignment.transmission.bundles import apply_transmission
from dekag.baseline import (
    DigitalLink,
    Source,
    Thresholds,
    best_scheme,
    load_pictures,
    load_source,
    send,
)
from dekag.baseline.choice import Quality
from dekag.baseline.mcs import BY_NAME
from dekag.bundle.canonical import digest_file, digest_folder, digest_json
from dekag.codec import AdaptableCodec, CodecClass, QamCodec, load_codec
from dekag.codec.constellation import Constellation
from dekag.evaluation.grid import Point
from dekag.evaluation.transmission import transmit
from dekag.tasks.sweep.bench import Bench
from dekag.types import Codec, Image, InputError, Latent, PerImage

NOTHING = "none"
"""The scheme of a digital method where none holds."""
OWN = "own"
"""The scheme of a codec that has no constellations to choose from."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Arrival:
    """What the user has: images, the latents that they were decoded from if any, and further values per image."""

    images: Image
    latents: Latent | None = None
    further: dict[str, PerImage] = field(default_factory=dict)


@runtime_checkable
class Method(Protocol):
    """A column of the comparison.

    digest: of everything that makes the method, wherever its files lie.
    schemes: constellations, or schemes of the digital methods, to be measured at a point; `wanted` are those
    that the grid asks of every codec.
    """

    @property
    def name(self) -> str:
        """What tables call the method."""
        ...

    @property
    def digest(self) -> str:
        """Digest of all that its results depend on."""
        ...

    def schemes(self, point: Point, wanted: tuple[str, ...], thresholds: Thresholds) -> tuple[str, ...]:
        """The schemes to be measured at a point, of those that are wanted."""
        ...

    def send(self, bench: Bench, point: Point, scheme: str, *, rng: torch.Generator) -> Arrival:
        """What arrives of the bench's latents at a point."""
        ...


@dataclass(frozen=True, kw_only=True)
class CodecMethod:
    """A codec's directory, and a T-KA bundle to apply to it or none.

    kind: the codec's class, for a process in which nobody added it to `codec.CODECS`.
    """

    name: str
    codec: Path
    bundle: Path | None = None
    kind: CodecClass | None = field(default=None, compare=False)

    @property
    def digest(self) -> str:
        """Digest of the files of codec and bundle."""
        return _codec_digest(self.codec, self.bundle)

    @property
    def constellation(self) -> Constellation | None:
        """The codec's own; None if it has none to choose from."""
        codec = _plain_codec(self)
        return codec.constellation if isinstance(codec, QamCodec) else None

    def schemes(self, point: Point, wanted: tuple[str, ...], thresholds: Thresholds) -> tuple[str, ...]:
        """The constellations wanted if the codec has several, else its own one."""
        codec = _plain_codec(self)
        return wanted if wanted and isinstance(codec, QamCodec) else (_scheme(codec),)

    def send(self, bench: Bench, point: Point, scheme: str, *, rng: torch.Generator) -> Arrival:
        """Through the codec with that constellation."""
        codec = _codec(self, scheme)
        latents = transmit(codec, point.medium, bench.latents, point.condition, rng=rng)
        return Arrival(images=bench.decode(latents), latents=latents)


@dataclass(frozen=True, kw_only=True)
class LatentDigital:
    """The latent's source code, as `baseline.save_source` writes it, then 5G LDPC and QAM."""

    name: str
    source: Path

    @property
    def digest(self) -> str:
        """Digest of the source code; the scheme is chosen outside."""
        return digest_json(["latent", digest_file(self.source)])

    def schemes(self, point: Point, wanted: tuple[str, ...], thresholds: Thresholds) -> tuple[str, ...]:
        """The scheme of the best expected quality."""
        return (_best(_latent_source(self.source), thresholds, point),)

    def send(self, bench: Bench, point: Point, scheme: str, *, rng: torch.Generator) -> Arrival:
        """Through the digital link; the mean latent stands for one that is lost."""
        latents, further = _deliver(_latent_source(self.source), bench.latents, point, scheme, rng=rng)
        return Arrival(images=bench.decode(latents), latents=latents, further=further)


@dataclass(frozen=True, kw_only=True)
class PictureDigital:
    """The decoded image as a JPEG, WebP or AVIF file, then 5G LDPC and QAM.

    source: file of the format's source, as `baseline.save_pictures` writes it.
    """

    name: str
    source: Path

    @property
    def digest(self) -> str:
        """Digest of the source; the scheme is chosen outside."""
        return digest_json([self.name, digest_file(self.source)])

    def schemes(self, point: Point, wanted: tuple[str, ...], thresholds: Thresholds) -> tuple[str, ...]:
        """The scheme of the best expected quality."""
        return (_best(_picture_source(self.name, self.source), thresholds, point),)

    def send(self, bench: Bench, point: Point, scheme: str, *, rng: torch.Generator) -> Arrival:
        """Through the digital link, without a latent."""
        source = _picture_source(self.name, self.source)
        images, further = _deliver(source, bench.images, point, scheme, rng=rng)
        return Arrival(images=images, further=further)


@dataclass(frozen=True, kw_only=True, eq=False)
class RememberedSource:
    """Implements `Source`: another one, whose encodings of each item and budget are kept."""

    source: Source
    known: dict[tuple[bytes, int], Any] = field(default_factory=dict)

    @property
    def header_bits(self) -> int:
        """Bits of the source's header."""
        return self.source.header_bits

    @property
    def concealment(self) -> Tensor:
        """What the source shows in place of an item that is lost."""
        return self.source.concealment

    @property
    def quality(self) -> Quality:
        """What the source is worth at a number of bits."""
        return self.source.quality

    def encode(self, item: Tensor, budget: int) -> np.ndarray | None:
        """As the source encodes it."""
        key = (item.contiguous().numpy().tobytes(), budget)
        if key not in self.known:
            self.known[key] = self.source.encode(item, budget)
        encoded: np.ndarray | None = self.known[key]
        return encoded

    def decode(self, bits: np.ndarray) -> Tensor | None:
        """As the source decodes it."""
        return self.source.decode(bits)


def codec_method(name: str, folder: Path, bundle: Path | None = None) -> CodecMethod:
    """The codec in a folder as a method, with the T-KA bundle; raises InputError if the folder holds no codec."""
    method = CodecMethod(name=name, codec=folder, bundle=bundle)
    return replace(method, kind=type(_plain_codec(method)))


def further_codec(text: str, base: Path) -> CodecMethod:
    """The method that `NAME=DIRECTORY` names: a codec, or a T-KA bundle for the codec at `base`.

    Raises InputError if the text or the directory is neither.
    """
    name, _, place = text.partition("=")
    folder = Path(place)
    if not name or not place:
        raise InputError(f"a further codec is given as NAME=DIRECTORY, got {text!r}")
    if (folder / "config.json").exists():
        return codec_method(name, folder)
    if (folder / "bundle.json").exists():
        return codec_method(name, base, folder)
    raise InputError(f"{folder} holds neither a codec (config.json) nor a bundle (bundle.json)")


def _best(source: Source, thresholds: Thresholds, point: Point) -> str:
    """Name of the scheme of the best expected quality at a point."""
    best = best_scheme(thresholds, source.quality, point.condition)
    return NOTHING if best is None else best.name


def check_codec(method: CodecMethod, latents: Latent, points: list[Point], wanted: tuple[str, ...]) -> None:
    """Encode one latent at the highest rate; InputError if the codec does not fit the latents or the grid."""
    largest = max((point.condition for point in points), key=lambda condition: int(condition.payload))
    codec = _plain_codec(method)
    scheme = wanted[0] if wanted and isinstance(codec, QamCodec) else _scheme(codec)
    with torch.no_grad():
        _codec(method, scheme).encode(latents[:1], largest)


def _deliver(
    source: Source, items: Tensor, point: Point, scheme: str, *, rng: torch.Generator
) -> tuple[Tensor, dict[str, PerImage]]:
    """Items through the digital link with that scheme, and which of them were sent and arrived."""
    mcs = None if scheme == NOTHING else BY_NAME[scheme]
    link = DigitalLink(source=source, scheme=mcs, channel=point.medium)
    delivery = send(link, items, point.condition, rng=rng)
    ledger = delivery.ledger
    further = {"sent": (ledger.payload_uses > 0).float(), "arrived": ledger.arrived.float()}
    return delivery.received, further


@lru_cache(maxsize=32)
def _codec_digest(codec: Path, bundle: Path | None) -> str:
    return digest_json([digest_folder(codec), None if bundle is None else digest_folder(bundle)])


@lru_cache(maxsize=32)
def _plain_codec(method: CodecMethod) -> AdaptableCodec:
    # its weights are drawn before they are read
    with torch.random.fork_rng(devices=[]):
        return load_codec(method.codec, kind=method.kind)


@lru_cache(maxsize=32)
def _codec(method: CodecMethod, constellation: str) -> Codec:
    codec, bundle = _plain_codec(method), method.bundle
    if constellation != _scheme(codec):
        assert isinstance(codec, QamCodec)
        codec = codec.with_constellation(constellation)
    return codec if bundle is None else apply_transmission(codec, bundle)[0]


def _scheme(codec: AdaptableCodec) -> str:
    """What a codec sends: its constellation, or what it has instead."""
    return codec.constellation.name if isinstance(codec, QamCodec) else OWN


@lru_cache(maxsize=4)
def _latent_source(path: Path) -> Source:
    return RememberedSource(source=load_source(path))


@lru_cache(maxsize=4)
def _picture_source(form: str, path: Path) -> Source:
    return load_pictures(form, path)
