"""Pictures as files and as tensors."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image as PillowImage
from PIL import UnidentifiedImageError

from dekag.types import Image, InputError


def png_bytes(image: Image) -> list[bytes]:
    """Each image, float [batch, 3, height, width] in [0, 1], as an 8-bit PNG file."""
    files = []
    for pixels in (image * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy():
        buffer = io.BytesIO()
        PillowImage.fromarray(pixels).save(buffer, format="PNG", optimize=True)
        files.append(buffer.getvalue())
    return files


def read_image(path: Path | io.BytesIO, *, name: str = "") -> Image:
    """One picture, float [1, 3, height, width] in [0, 1]. Raises InputError, by its name, if it cannot be read."""
    try:
        with PillowImage.open(path) as picture:
            pixels = np.asarray(picture.convert("RGB"), dtype=np.float32)
    except (OSError, UnidentifiedImageError) as error:
        raise InputError(f"{name or path} is no readable picture: {error}") from error
    return torch.from_numpy(pixels / 255).permute(2, 0, 1)[None].contiguous()


def write_images(folder: Path, names: Sequence[str], images: Image) -> None:
    """Write one PNG file for each name, to a folder that is staged."""
    for name, data in zip(names, png_bytes(images), strict=True):
        (folder / name).write_bytes(data)
