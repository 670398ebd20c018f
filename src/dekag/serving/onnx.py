"""The user's two decoders as ONNX, for a page or a device without torch.

```
codec   symbols, gain, noise_power, condition -> latent
image   latent -> image
```
ONNX has no complex numbers: symbols and gains are pairs of real and imaginary part, and a codec leaves with the
decoder that it has for such pairs (`codec.PairDecoder`). Symbols that are NaN or infinite count as not received,
as in `channel.erase_invalid`, and CALA's gates run inside the graph.
"""

import hashlib
from dataclasses import dataclass, fields
from pathlib import Path
from types import SimpleNamespace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dekag.alignment.transmission.adapted import AdaptedCodec
from dekag.channel.erasure import MOST_POWER
from dekag.codec import AdaptableCodec, PairDecoder, Pairs, TrainableCodec
from dekag.engine.graphs import Graph, Varying, exported
from dekag.generation.diffusers import DiffusersGenerator
from dekag.link import Link
from dekag.types import Codec, Condition, Image, InputError, Latent

GRAPHS = 4
"""Counted up when the modules below change, so that no older file is taken for theirs."""
LARGEST = 3e38
"""What is above it counts as infinite in float32."""


class CodecDecoder(nn.Module):
    """A codec's decoder in real numbers, from unequalised symbols; every symbol is one of the payload."""

    def __init__(self, codec: PairDecoder) -> None:
        super().__init__()
        self.codec = codec

    def forward(
        self,
        symbols: Pairs,
        gain: Pairs,
        noise_power: Float[Tensor, " batch"],
        condition: Float[Tensor, "batch fields"],
    ) -> Latent:
        """Latents of received symbols; `condition` holds the fields of `Condition` in their order."""
        equalised, reliability = _equalise(symbols, gain, noise_power[:, None])
        return self.codec.decode_pairs(equalised, reliability, _condition(condition))


class ImageDecoder(nn.Module):
    """A generator's autoencoder, latents of unit scale to images in [0, 1]."""

    def __init__(self, generator: DiffusersGenerator) -> None:
        super().__init__()
        self.family = generator.family
        self.vae = generator.pipeline.vae

    def forward(self, latent: Latent) -> Image:
        """As `Generator.decode`."""
        return self.family.decode(SimpleNamespace(vae=self.vae), latent)


@dataclass(frozen=True, kw_only=True)
class OnnxFile:
    """A model file: where it is, its length in bytes, and the digest that names it."""

    path: Path
    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Decoders:
    """What a user needs to make images of received symbols."""

    codec: OnnxFile
    image: OnnxFile


def export_decoders(folder: Path, link: Link) -> Decoders:
    """The decoders of a link's user, in `folder` under names that say what they were made of.

    Made in seconds if they are not there, found in milliseconds if they are.
    Raises InputError if the codec has no decoder in real numbers, the generator is no pipeline of diffusers, or the
    exporter is missing.
    """
    if not isinstance(link.generator, DiffusersGenerator):
        raise InputError("only the image decoder of a pipeline of diffusers leaves as ONNX")
    graphs = [codec_graph(link.codec), image_graph(link.generator, _sizes(link.codec).latent_shape)]
    codec, image = map(_described, exported(folder, graphs))
    return Decoders(codec=codec, image=image)


def codec_graph(codec: Codec) -> Graph:
    """The decoder of a codec, for one image of any payload.

    Raises InputError if the codec has no decoder in real numbers.
    """
    sizes, plain = _sizes(codec), codec.codec if isinstance(codec, AdaptedCodec) else codec
    if not (
        isinstance(plain, PairDecoder) and isinstance(codec, PairDecoder) and isinstance(codec, nn.Module)
    ):
        raise InputError(
            f"{type(plain).__name__} has no decoder in real numbers (decode_pairs) to leave as ONNX"
        )
    uses = min(8, sizes.max_uses)
    nominal = Condition(uses=uses, snr_db=10.0)
    return Graph(
        name="codec",
        version=GRAPHS,
        module=CodecDecoder(codec),
        # a tensor each: the exporter takes two inputs that are one tensor for one input
        inputs={
            "symbols": torch.zeros(1, uses, 2),
            "gain": torch.zeros(1, uses, 2),
            "noise_power": torch.ones(1),
            "condition": torch.stack([getattr(nominal, f.name).float() for f in fields(nominal)], dim=1),
        },
        output="latent",
        settings=plain.settings() if isinstance(plain, AdaptableCodec) else {},
        varying=Varying(name="uses", inputs=("symbols", "gain"), dimension=1, max_=sizes.max_uses),
    )


def image_graph(generator: DiffusersGenerator, latent_shape: tuple[int, int, int]) -> Graph:
    """The image decoder of a generator, for one latent of channels, rows and columns."""
    latent = torch.zeros(1, *latent_shape)
    module = ImageDecoder(generator)
    return Graph(name="image", version=GRAPHS, module=module, inputs={"latent": latent}, output="image")


def _sizes(codec: Codec) -> TrainableCodec:
    if not isinstance(codec, TrainableCodec):
        raise InputError(
            f"{type(codec).__name__} does not tell its latent_shape and max_uses, which ONNX needs"
        )
    return codec


def _described(path: Path) -> OnnxFile:
    raw = path.read_bytes()
    return OnnxFile(path=path, bytes=len(raw), sha256=hashlib.sha256(raw).hexdigest())


def _condition(row: Float[Tensor, "batch fields"]) -> Condition:
    """A condition of numbers that are not known yet, hence not checked."""
    condition = object.__new__(Condition)
    for place, entry in enumerate(fields(Condition)):
        column = row[:, place]
        object.__setattr__(condition, entry.name, column > 0.5 if entry.name == "rayleigh" else column)
    return condition


def _equalise(
    symbols: Pairs, gain: Pairs, noise_power: Float[Tensor, "batch 1"]
) -> tuple[Pairs, Float[Tensor, "batch uses"]]:
    """`channel.erase_invalid` and `channel.mmse_equalise`: equalised symbols and their reliability."""
    known = noise_power.abs() <= LARGEST
    noise_power = torch.where(known, noise_power, 1.0)
    power, energy = symbols.square().sum(2), gain.square().sum(2)
    level = energy + noise_power
    # a comparison with NaN is false
    valid = known & (level <= LARGEST) & (power <= (MOST_POWER * level).clamp(max=LARGEST))
    symbols, gain = (torch.where(valid[..., None], pairs, 0.0) for pairs in (symbols, gain))
    energy = torch.where(valid, energy, 0.0)
    (real, imaginary), (h_real, h_imaginary) = symbols.unbind(2), gain.unbind(2)
    turned = [h_real * real + h_imaginary * imaginary, h_real * imaginary - h_imaginary * real]
    level = energy + noise_power
    return torch.stack(turned, dim=2) / level[..., None], energy / level
