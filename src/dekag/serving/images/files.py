"""Pictures as files that say how they were drawn."""

import io

import torch
from PIL import Image as PillowImage
from PIL.PngImagePlugin import PngInfo

from dekag.types import Image

FORMATS = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}
"""Media type of each format."""


def image_file(image: Image, form: str, *, quality: int, notes: dict[str, str]) -> bytes:
    """One image, float [1, 3, height, width] in [0, 1], as a file. `quality` is of JPEG and WebP, notes are of PNG."""
    pixels = (image[0] * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    picture, buffer = PillowImage.fromarray(pixels), io.BytesIO()
    if form == "png":
        info = PngInfo()
        for name, text in notes.items():
            info.add_text(name, text)
        picture.save(buffer, format="PNG", optimize=True, pnginfo=info)
    else:
        picture.save(buffer, format=form.upper(), quality=quality)
    return buffer.getvalue()
