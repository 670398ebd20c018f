"""One picture: a stranger's file as RGB pixels."""

from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image as PillowImage
from PIL import ImageOps, UnidentifiedImageError
from torch import Tensor

from dekag.errors import InputError

_FORMATS = ("PNG", "JPEG", "WEBP")
_MODES = frozenset({"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr"})
"""Pillow's names of pixels of at most 8 bits a channel."""


def open_picture(source: Path | bytes) -> PillowImage.Image:
    """A PNG, JPEG or WebP, from a file or its bytes, as 8-bit RGB on white and the right way up.

    Raises InputError, whose message begins with "is", if it is none or damaged.
    """
    try:
        with PillowImage.open(
            BytesIO(source) if isinstance(source, bytes) else source, formats=_FORMATS
        ) as picture:
            if picture.mode not in _MODES:
                raise InputError(f"is a picture of mode {picture.mode}; save it with 8 bits a channel")
            upright = _upright(picture)
    except InputError:
        raise
    except UnidentifiedImageError:
        raise InputError("is no PNG, JPEG or WebP picture; save it as one of these") from None
    except PillowImage.DecompressionBombError:
        raise InputError("is too large a picture to be read safely; make it smaller") from None
    except Exception as error:  # a damaged file has Pillow raise whatever its bytes lead to
        raise InputError("is damaged or cut short; make the picture again") from error
    if not upright.has_transparency_data:
        return upright.convert("RGB")
    coloured = upright.convert("RGBA")
    white = PillowImage.new("RGBA", coloured.size, "white")
    return PillowImage.alpha_composite(white, coloured).convert("RGB")


def _upright(picture: PillowImage.Image) -> PillowImage.Image:
    """The picture as its EXIF data turn it; as it is where those are damaged."""
    picture.load()
    try:
        return ImageOps.exif_transpose(picture)
    except Exception:  # of the tags alone: the pixels are there
        return picture.copy()


def picture_tensor(picture: PillowImage.Image) -> Float[Tensor, "3 height width"]:
    """The pixels of an RGB picture, in [0, 1]."""
    return torch.from_numpy(np.asarray(picture, dtype=np.float32) / 255).permute(2, 0, 1)


def centred(picture: PillowImage.Image, size: tuple[int, int]) -> PillowImage.Image:
    """A picture of that width and height; of another, its centre of the same shape, resized."""
    if picture.size == size:
        return picture
    factor = min(picture.width / size[0], picture.height / size[1])
    width, height = max(1, round(size[0] * factor)), max(1, round(size[1] * factor))
    left, top = (picture.width - width) // 2, (picture.height - height) // 2
    # cut out first: resized in place, as `ImageOps.fit` does, it would mix with what is around
    centre = picture.crop((left, top, left + width, top + height))
    return centre.resize(size, PillowImage.Resampling.LANCZOS)


def picture_kind(raw: bytes) -> str:
    """The suffix of a file with these bytes: png, jpeg or webp. Raises InputError as `open_picture`."""
    open_picture(raw)
    with PillowImage.open(BytesIO(raw), formats=_FORMATS) as picture:
        return str(picture.format).lower()
