"""Source coding of images as JPEG, WebP or AVIF files through Pillow."""

import io
import math
import zlib
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image as PillowImage
from PIL import UnidentifiedImageError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from dekag.baseline.choice import Quality
from dekag.baseline.source import BUDGETS, Bits, from_bits, to_bits
from dekag.types import InputError

FORMATS = ("jpeg", "webp", "avif")
SHRINKS = (1, 2, 4, 8)
QUALITIES = (2, 10, 20, 30, 45, 60, 75, 90)
HEADER_BITS = 5
"""Index of one of the 32 pairs of shrinking and quality."""
MEASURED = 24
"""Pictures on which it is measured what a format is worth."""
MOST_KNOWN = 512
"""Pictures whose files are kept."""
_OPTIONS = {"jpeg": {}, "webp": {"method": 6}, "avif": {"speed": 4}}

Picture = Float[Tensor, "3 height width"]


@dataclass(frozen=True, kw_only=True, eq=False)
class PictureSource:
    """Implements `Source` on images, RGB in [0, 1].

    An image is shrunk by 1, 2, 4 or 8, written at one of eight qualities, and of what fits the budget the file
    that looks best once enlarged again is sent. The file goes through Deflate whose dictionary is the file of
    a grey picture at the same setting, so that headers which never change are not paid for again.

    format: one of FORMATS. concealment: the picture in place of a lost one, which sets height and width.
    quality: mean PSNR by bits.
    """

    format: str
    concealment: Picture
    quality: Quality

    _known: dict[tuple[str, bytes], list[tuple[float, Bits]]] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise InputError(f"unknown picture format {self.format!r}; known are {', '.join(FORMATS)}")

    @property
    def header_bits(self) -> int:
        """The index of shrinking and quality."""
        return HEADER_BITS

    def encode(self, item: Picture, budget: int) -> Bits | None:
        """The best file of at most `budget` bits, or None if none is so small."""
        fitting = [
            (error, number) for number, (error, bits) in enumerate(self.files(item)) if len(bits) <= budget
        ]
        return self.files(item)[min(fitting)[1]][1] if fitting else None

    def files(self, item: Picture) -> list[tuple[float, Bits]]:
        """The item at every shrinking and quality: mean square error and bits. The last items' are kept."""
        key = (self.format, item.contiguous().numpy().tobytes())
        if key not in self._known:
            if len(self._known) >= MOST_KNOWN:
                del self._known[next(iter(self._known))]
            self._known[key] = [self._file(item, index) for index in range(2**HEADER_BITS)]
        return self._known[key]

    def _file(self, item: Picture, index: int) -> tuple[float, Bits]:
        file = self._write(item, index)
        deflate = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zdict=self._dictionary(index))
        packed = np.frombuffer(deflate.compress(file) + deflate.flush(), dtype=np.uint8)
        bits = np.concatenate([to_bits(index, HEADER_BITS), np.unpackbits(packed).astype(bool)])
        return (self._read(file) - item).square().mean().item(), bits

    def decode(self, bits: Bits) -> Picture | None:
        """The image of a payload, zeros behind it or not; None if it is no file."""
        index = from_bits(bits[:HEADER_BITS])
        packed = np.packbits(bits[HEADER_BITS:]).tobytes()
        try:
            return self._read(zlib.decompressobj(-15, zdict=self._dictionary(index)).decompress(packed))
        except (zlib.error, OSError, ValueError, SyntaxError, UnidentifiedImageError):
            return None

    def _write(self, item: Picture, index: int) -> bytes:
        pixels = (item * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
        return _file(PillowImage.fromarray(pixels), self.format, index)

    def _read(self, file: bytes) -> Picture:
        height, width = self.concealment.shape[1:]
        with PillowImage.open(io.BytesIO(file), formats=[self.format]) as picture:
            enlarged = picture.convert("RGB").resize((width, height), PillowImage.Resampling.BICUBIC)
        return torch.from_numpy(np.asarray(enlarged, dtype=np.float32) / 255).permute(2, 0, 1)

    def _dictionary(self, index: int) -> bytes:
        return _grey_file(self.format, index, *self.concealment.shape[1:])


def fit_pictures(form: str, pictures: Float[Tensor, "pictures 3 height width"]) -> PictureSource:
    """A source whose concealment is the mean picture, and whose worth is measured on MEASURED of them.

    Raises InputError for an unknown format or no pictures.
    """
    if not len(pictures):
        raise InputError("a source of pictures is fitted to at least one")
    mean = pictures.float().mean(0).clamp(0, 1)
    nothing = Quality(budgets=(0,), decibels=(0.0,), lost=0.0)
    source = PictureSource(format=form, concealment=mean, quality=nothing)
    some = pictures[:: max(1, len(pictures) // MEASURED)][:MEASURED].float().cpu()
    lost = [_decibels((picture - mean).square().mean().item()) for picture in some]

    def worth(budget: int) -> float:
        found = [
            max(
                (_decibels(error) for error, bits in source.files(picture) if len(bits) <= budget),
                default=own,
            )
            for picture, own in zip(some, lost, strict=True)
        ]
        return float(np.mean(found))

    return replace(source, quality=Quality.measured(BUDGETS, worth, float(np.mean(lost))))


def save_pictures(source: PictureSource, path: Path) -> None:
    """Write a source as safetensors."""
    save_file({"concealment": source.concealment.contiguous(), **source.quality.tensors()}, path)


def load_pictures(form: str, path: Path) -> PictureSource:
    """Read a source of that format. Raises InputError if the file holds none."""
    try:
        tensors = load_file(path)
        concealment = tensors.pop("concealment")
        return PictureSource(format=form, concealment=concealment, quality=Quality.of_tensors(tensors))
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise InputError(f"{path} holds no source as `save_pictures` writes it: {error}") from error


def _decibels(error: float) -> float:
    return -10 * math.log10(max(error, 1e-10))


def _file(picture: PillowImage.Image, form: str, index: int) -> bytes:
    shrink, quality = SHRINKS[index // len(QUALITIES)], QUALITIES[index % len(QUALITIES)]
    size = (max(1, picture.width // shrink), max(1, picture.height // shrink))
    buffer = io.BytesIO()
    small = picture.resize(size, PillowImage.Resampling.LANCZOS)
    small.save(buffer, format=form, quality=quality, **_OPTIONS[form])
    return buffer.getvalue()


@lru_cache(maxsize=256)
def _grey_file(form: str, index: int, height: int, width: int) -> bytes:
    return _file(PillowImage.new("RGB", (width, height), (128, 128, 128)), form, index)
