"""Read the art and draw scenes with it, on any device."""

import io
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from .grammar import COLOURS, PLACES, Scene

ART = ("fluent3d", "noto", "twemoji")
GLOSSY, FLAT = "fluent3d", ("noto", "twemoji")
"""The cloud's hand and the edge's."""
ROWS = {"": 18 / 64, "at the top": 3 / 64, "at the bottom": 33 / 64}
COLUMNS = (3 / 64, 33 / 64)
PAIR_SIZE = 28 / 64
"""Upper edge of two things by place, their left edges, and their size, in shares of the canvas."""


@dataclass(frozen=True, kw_only=True)
class Art:
    """Drawings of some concepts at the two sizes that scenes use: uint8 RGBA [concepts, 4, width, width]."""

    size: int
    """Side of the canvas in pixels."""
    large: Tensor
    small: Tensor

    def to(self, device: torch.device) -> "Art":
        return Art(size=self.size, large=self.large.to(device), small=self.small.to(device))

    def __getitem__(self, index: Tensor) -> "Art":
        return Art(size=self.size, large=self.large[index], small=self.small[index])


def drawn_ids(data: Path, hand: str) -> frozenset[str]:
    """Ids of the concepts that a hand's art holds."""
    with zipfile.ZipFile(data / f"{hand}.zip") as archive:
        return frozenset(Path(name).stem for name in archive.namelist())


def read_art(data: Path, hand: str, ids: Sequence[str], size: int) -> Art:
    """One hand's drawings of the concepts with these ids, for a canvas of `size` pixels."""
    with zipfile.ZipFile(data / f"{hand}.zip") as archive:
        pictures = [Image.open(io.BytesIO(archive.read(f"{i}.webp"))).convert("RGBA") for i in ids]
    return Art(size=size, large=_resized(pictures, size * 3 // 4), small=_resized(pictures, size * 7 // 16))


def _resized(pictures: list[Image.Image], width: int) -> Tensor:
    # resized with the alpha multiplied in, so that what is transparent lends no colour to the rim
    rows = [
        np.asarray(p.convert("RGBa").resize((width, width), Image.Resampling.LANCZOS).convert("RGBA"))
        for p in pictures
    ]
    return torch.from_numpy(np.stack(rows)).permute(0, 3, 1, 2).contiguous()


def stack(arts: Sequence[Art]) -> Art:
    """The drawings of several hands, one after the other."""
    return Art(
        size=arts[0].size,
        large=torch.cat([a.large for a in arts]),
        small=torch.cat([a.small for a in arts]),
    )


def loosely(art: Art, rng: torch.Generator) -> Art:
    """The same drawings as somebody else would make them: each in other colours (every channel times 0.7 to 1.3)
    and of another size (0.75 to 1 of the width, around the middle)."""
    count = len(art.large)
    gain = 0.7 + 0.6 * torch.rand(count, 3, 1, 1, generator=rng)
    scale = 0.75 + 0.25 * torch.rand(count, generator=rng)
    return Art(size=art.size, large=_loose(art.large, gain, scale), small=_loose(art.small, gain, scale))


def _loose(pictures: Tensor, gain: Tensor, scale: Tensor) -> Tensor:
    theta = torch.zeros(len(pictures), 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = 1 / scale
    grid = F.affine_grid(theta, [len(pictures), 4, *pictures.shape[2:]], align_corners=False)
    moved = F.grid_sample(pictures.float(), grid, align_corners=False)
    moved[:, :3] = (moved[:, :3] * gain).clamp(max=255)
    return moved.round().to(torch.uint8)


def backgrounds(colours: Tensor, size: int) -> Tensor:
    """Plain pictures [batch, 3, size, size] of colours [batch, 3] in [0, 1]."""
    return colours[:, :, None, None].expand(-1, -1, size, size).clone()


def paste(canvas: Tensor, art: Tensor, corners: Tensor) -> Tensor:
    """Blend RGBA art, uint8 [batch, 4, w, w], into pictures [batch, 3, s, s] in [0, 1], in place.

    corners: row and column of the art's upper left pixel, integers [batch, 2]; the art lies within the picture.
    """
    batch, width = len(art), art.shape[-1]
    at = torch.arange(width, device=art.device)
    which = torch.arange(batch, device=art.device)[:, None, None]
    rows = (corners[:, 0, None] + at)[:, :, None]
    columns = (corners[:, 1, None] + at)[:, None, :]
    window = canvas[which, :, rows, columns]
    pixels = art.permute(0, 2, 3, 1).float() / 255
    canvas[which, :, rows, columns] = window.lerp(pixels[..., :3], pixels[..., 3:])
    return canvas


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Scenes as numbers: which drawings (the second is -1 where there is one thing), colours, corners."""

    drawings: Tensor
    """[scenes, 2], indices into an Art."""
    colours: Tensor
    """[scenes, 3] in [0, 1]."""
    corners: Tensor
    """[scenes, 2, 2], pixels."""

    def __len__(self) -> int:
        return len(self.drawings)

    def __getitem__(self, index: Tensor) -> "Layout":
        return Layout(drawings=self.drawings[index], colours=self.colours[index], corners=self.corners[index])

    def to(self, device: torch.device) -> "Layout":
        return Layout(
            drawings=self.drawings.to(device),
            colours=self.colours.to(device),
            corners=self.corners.to(device),
        )


def layout(scenes: Sequence[Scene], drawings: Sequence[Sequence[int]], size: int) -> Layout:
    """The numbers of scenes whose things are the drawings with these indices, on a canvas of `size` pixels."""
    palette = {name: tuple(c / 255 for c in rgb) for name, rgb in COLOURS.items()}
    return Layout(
        drawings=torch.tensor([[*d, -1][:2] for d in drawings]),
        colours=torch.tensor([palette[s.colour] for s in scenes]),
        corners=torch.tensor([_corners(s, size) for s in scenes]),
    )


def _corners(scene: Scene, size: int) -> list[list[int]]:
    if len(scene.things) == 1:
        row, column = (size * cell // 8 for cell in PLACES[scene.place])
        return [[row, column], [0, 0]]
    row = round(ROWS[scene.place] * size)
    return [[row, round(column * size)] for column in COLUMNS]


def draw(art: Art, scenes: Layout) -> Tensor:
    """Pictures [scenes, 3, size, size] in [0, 1]."""
    canvas = backgrounds(scenes.colours, art.size)
    alone = (scenes.drawings[:, 1] < 0).nonzero()[:, 0]
    pairs = (scenes.drawings[:, 1] >= 0).nonzero()[:, 0]
    canvas[alone] = paste(canvas[alone], art.large[scenes.drawings[alone, 0]], scenes.corners[alone, 0])
    for k in range(2):
        drawn = art.small[scenes.drawings[pairs, k]]
        canvas[pairs] = paste(canvas[pairs], drawn, scenes.corners[pairs, k])
    return canvas
