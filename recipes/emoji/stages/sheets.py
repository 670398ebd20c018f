"""Contact sheets: pictures to be looked at."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from .loop import write_atomically

COLUMNS = 8
SCALE = 2
CAPTION = 26
"""Height of the room for a caption, in pixels; it holds two lines."""
LETTERS = 20
"""Letters that fit into a line under a picture of 128 pixels."""


def save_captioned(pictures: Tensor, texts: Sequence[str], path: Path) -> None:
    """Pictures [n, 3, h, w] in [0, 1], enlarged to 128 pixels, each above the beginning of its caption."""
    scale = max(1, 128 // pictures.shape[-1])
    tiles = [_tile(picture, scale) for picture in pictures]
    width, height = tiles[0].size
    rows = -(-len(tiles) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * (width + 4), rows * (height + CAPTION)), "white")
    pen = ImageDraw.Draw(sheet)
    for at, (tile, text) in enumerate(zip(tiles, texts, strict=True)):
        x, y = at % COLUMNS * (width + 4), at // COLUMNS * (height + CAPTION)
        sheet.paste(tile, (x, y))
        lines = [text[:LETTERS], text[LETTERS : 2 * LETTERS].strip()]
        pen.multiline_text((x + 2, y + height), "\n".join(lines), fill="black", spacing=0)
    _save(sheet, path)


def save_pairs(truth: Tensor, again: Tensor, path: Path) -> None:
    """Pictures above what an autoencoder makes of them."""
    rows = [torch.cat([a, b], dim=1) for a, b in zip(truth, again, strict=True)]
    count = len(rows) // COLUMNS * COLUMNS
    bands = [torch.cat(rows[at : at + COLUMNS], dim=2) for at in range(0, count, COLUMNS)]
    _save(_tile(torch.cat(bands, dim=1), SCALE), path)


def _tile(picture: Tensor, scale: int) -> Image.Image:
    pixels = (picture.detach().cpu().clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    image = Image.fromarray(np.ascontiguousarray(pixels))
    return image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)


def _save(image: Image.Image, path: Path) -> None:
    write_atomically(path, lambda part: image.save(part, "PNG"))
