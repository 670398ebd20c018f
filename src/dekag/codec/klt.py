"""The Karhunen-Loeve transform of latents: where a codec starts from."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from dekag.types import InputError, Latent

Blocks = Float[Tensor, "batch blocks numbers"]

MOST_ROWS = 2048
"""Of the matrix of a transform, unless more are asked for."""
AT_ONCE = 256
"""Latents that are read at a time."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Klt:
    """Latents less `mean` and times `weight`, decorrelated within square blocks of the grid, all by one basis.

    importance: how much an error in each channel shows, mean 1; the weight is its square root over the
    deviation of the weighted latents, so that weighted numbers have unit variance on average.
    basis: columns are components, by falling variance. variance: of each, mean over blocks, of the latents that it
    was fitted to. block: side of the squares.
    """

    importance: Float[Tensor, " channels"]
    mean: Float[Tensor, "channels rows cols"]
    weight: Float[Tensor, " channels"]
    basis: Float[Tensor, "numbers numbers"]
    variance: Float[Tensor, " numbers"]
    block: int


def fit_klt(latents: Latent, importance: Float[Tensor, " channels"], *, block: int | None = None) -> Klt:
    """The transform of latents: eigenvectors of the sample covariance of their blocks; all rows are one if None.

    Latents may be in any precision, and mapped into memory: AT_ONCE of them are read at a time.
    Raises InputError for fewer than two latents, values that are not finite, importances that are not
    positive, or a block that does not divide rows and columns.
    """
    if importance.shape != latents.shape[1:2] or not bool((importance > 0).all()):
        raise InputError(f"importance must be {latents.shape[1]} positive numbers, one for each channel")
    parts = [latents[at : at + AT_ONCE] for at in range(0, len(latents), AT_ONCE)]
    if len(latents) < 2 or not all(bool(part.isfinite().all()) for part in parts):
        raise InputError(f"a transform is fitted to at least two finite latents, got {len(latents)}")
    mean = torch.stack([part.double().sum(0) for part in parts]).sum(0).div(len(latents)).float()
    weight = importance.sqrt()
    size, covariance = block or latents.shape[2], torch.zeros((), dtype=torch.float64)
    for part in parts:
        rows = to_blocks((part.float() - mean) * weight[:, None, None], size).flatten(0, 1)
        covariance = covariance + (rows.T @ rows).double() / (
            len(latents) * latents[0].numel() / rows.shape[1]
        )
    power = covariance.diagonal().mean()
    variance, basis = torch.linalg.eigh(covariance / power)
    return Klt(
        importance=importance,
        mean=mean,
        weight=weight / power.sqrt().float(),
        basis=basis.flip(1).float(),
        variance=variance.flip(0).clamp(min=0).float(),
        block=size,
    )


def usual_block(channels: int, rows: int, cols: int) -> int:
    """The largest side of squares that divide a grid, of at most MOST_ROWS numbers each."""
    sides = range(1, min(rows, cols) + 1)
    return max((s for s in sides if rows % s == cols % s == 0 and channels * s * s <= MOST_ROWS), default=1)


def to_blocks(grid: Latent, block: int) -> Blocks:
    """Squares of the grid as rows of numbers, [batch, blocks, channels block^2]. Raises InputError if none fit."""
    if grid.shape[2] % block or grid.shape[3] % block:
        raise InputError(
            f"blocks of {block} do not divide latents of {grid.shape[2]} x {grid.shape[3]} cells"
        )
    return F.pixel_unshuffle(grid, block).flatten(2).transpose(1, 2)


def from_blocks(rows: Blocks, block: int, grid: tuple[int, int]) -> Latent:
    """Undoes `to_blocks` for a grid of so many rows and columns."""
    cells = rows.transpose(1, 2).unflatten(2, (grid[0] // block, grid[1] // block))
    return F.pixel_shuffle(cells, block)
