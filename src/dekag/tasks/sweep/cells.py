"""A cell, the unit of work: one method under one condition; its result is one file, written whole or not at all."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from dekag.bundle.canonical import digest_json
from dekag.evaluation.grid import Point
from dekag.types import InputError
from dekag.wire.files import write_bytes

SCHEMA = 1
"""To be raised when a cell's values would come out differently."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Cell:
    """What a result depends on, and what it is called.

    label: of the method in tables; constellation: of the symbols, the scheme of a digital method.
    latents: digest of what is sent; bench: digest of what decodes and judges it.
    channel_seed: of gains and noise, the same for every method under one condition.
    """

    point: Point
    method: str
    label: str
    method_digest: str
    constellation: str
    latents: str
    bench: str
    channel_seed: int

    def describe(self) -> dict[str, Any]:
        """All that the result depends on, as JSON values."""
        return {
            "schema": SCHEMA,
            "method": self.method,
            "method_digest": self.method_digest,
            "constellation": self.constellation,
            "condition": self.point.physics(),
            "latents": self.latents,
            "bench": self.bench,
            "channel_seed": self.channel_seed,
        }

    @cached_property
    def key(self) -> str:
        """Digest of the description: the name of the result's file."""
        return digest_json(self.describe())


@dataclass(frozen=True, kw_only=True, eq=False)
class Result:
    """A finished cell: every metric's value of each image."""

    cell: Cell
    values: dict[str, tuple[float, ...]]


def channel_seed(seed: int, point: Point) -> int:
    """Seed of gains and noise of one condition, whatever else is in the grid."""
    return int(digest_json({"seed": seed, **point.physics()})[:15], 16)


def path_of(folder: Path, cell: Cell) -> Path:
    """Where a cell's result belongs."""
    return folder / f"{cell.key}.json"


def write_result(folder: Path, cell: Cell, values: Mapping[str, list[float]]) -> None:
    """Write a result; whoever else writes the same cell writes the same bytes."""
    text = json.dumps({"cell": cell.describe(), "values": dict(values)}, allow_nan=False)
    write_bytes(path_of(folder, cell), (text + "\n").encode())


def read_result(folder: Path, cell: Cell, *, images: int) -> Result:
    """Read a finished cell.

    Raises InputError, naming the file, if it is not the whole result of this cell.
    """
    path = path_of(folder, cell)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        described, values = content["cell"], content["values"]
        rows = {str(name): tuple(float(value) for value in row) for name, row in values.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _refusal(path, "it is cut off or no JSON of a cell") from error
    if described != cell.describe():
        raise _refusal(path, "it holds another cell than its name says")
    if not rows or any(len(row) != images or not all(map(math.isfinite, row)) for row in rows.values()):
        raise _refusal(path, f"it does not hold {images} finite values of each metric")
    return Result(cell=cell, values=rows)


def _refusal(path: Path, why: str) -> InputError:
    return InputError(f"{path} is no finished cell: {why}; delete it and start again to compute it anew")
