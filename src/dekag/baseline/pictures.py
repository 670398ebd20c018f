"""Source coding of images as JPEG, WebP or AVIF files through Pillow."""

import io
import zlib
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image as PillowImage
from PIL import UnidentifiedImageError
from torch import Tensor

from dekag.baseline.source import Bits, from_bits, to_bits
from dekag.types import InputError

FORMATS = ("jpeg", "webp", "avif")
SHRINKS = (1, 2, 4, 8)
QUALITIES = (2, 10, 20, 30, 45, 60, 75, 90)
HEADER_BITS = 5
"""Index of one of the 32 pairs of shrinking and quality."""
_OPTIONS = {"jpeg": {}, "webp": {"method": 6}, "avif": {"speed": 4}}

Picture = Float[Tensor, "3 height width"]


@dataclass(frozen=True, kw_only=True, eq=False)
class PictureSource:
    """Implements `Source` on images, RGB in [0, 1].

    An image is shrunk by 1, 2, 4 or 8, written at one of eight qualities, and of what fits the budget the file
    that looks best once enlarged again is sent. The file goes through Deflate whose dictionary is the file of
    a grey picture at the same setting, so that headers which never change are not paid for again.

    format: one of FORMATS. concealment: the picture in place of a lost one, which sets height and width.
    """

    format: str
    concealment: Picture

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise InputError(f"unknown picture format {self.format!r}; known are {', '.join(FORMATS)}")

    @property
    def header_bits(self) -> int:
        """The index of shrinking and quality."""
        return HEADER_BITS

    def encode(self, item: Picture, budget: int) -> Bits | None:
        """The best file of at most `budget` bits, or None if none is so small."""
        best: tuple[float, Bits] | None = None
        for index in range(2**HEADER_BITS):
            file = self._write(item, index)
            deflate = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zdict=self._dictionary(index))
            packed = np.frombuffer(deflate.compress(file) + deflate.flush(), dtype=np.uint8)
            bits = np.concatenate([to_bits(index, HEADER_BITS), np.unpackbits(packed).astype(bool)])
            if len(bits) <= budget:
                error = (self._read(file) - item).square().mean().item()
                best = min(best or (error, bits), (error, bits), key=lambda scored: scored[0])
        return None if best is None else best[1]

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
