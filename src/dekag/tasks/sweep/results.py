"""Finished cells and bounds as files: one line for each cell, and every image's values in a table."""

import importlib
import importlib.util
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dekag.evaluation.bounds import Bounds
from dekag.evaluation.grid import Point
from dekag.evaluation.statistics import Mean, mean_interval
from dekag.tasks.sweep.bench import CAP_DB
from dekag.tasks.sweep.cells import Cell, Result
from dekag.units import db_to_linear, linear_to_db
from dekag.wire.files import replacing, write_bytes

WEIGHTED = "weighted_snr_db"


@dataclass(frozen=True, kw_only=True, eq=False)
class BoundRow:
    """The least error of Gaussian latents at a point, as weighted latent SNR in dB.

    What is drawn is not Gaussian: the lines are a reference, and a method above one would break no theorem.
    informed_db: of each image in its own blocks, from the measured spectrum; it errs upwards with few draws.
    held_out_db: the same from variances of other latents; it errs downwards. The truth is between the two.
    held_out_error_db: half the difference between that of one half of those other latents and of the other.
    dispersed_db: from the held-out spectrum, what blocks of so few uses cost. finite_db: with the constellation.
    ergodic_db, outage_db: as in `evaluation.bounds`, from the measured spectrum.
    """

    point: Point
    informed_db: float
    held_out_db: float
    held_out_error_db: float
    dispersed_db: float
    finite_db: float
    ergodic_db: float
    outage_db: float
    draws: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Outcome:
    """A finished sweep.

    results: in the order of the cells. prompts: split and text of each image. draws: latents behind the bound.
    computed: cells that this run computed; the others were there.
    """

    world: str
    results: list[Result]
    bounds: list[BoundRow]
    prompts: list[tuple[str, str]]
    draws: int
    computed: int


@dataclass(frozen=True, kw_only=True, eq=False)
class PointBounds:
    """Bounds at a point: of the measured spectrum, of the held-out one, of its halves, and with a constellation."""

    measured: Bounds
    held_out: Bounds
    halves: tuple[Bounds, Bounds]
    finite: Bounds


def bound_row(point: Point, found: PointBounds, *, power: float, draws: int) -> BoundRow:
    """Bounds on the error of weighted latents of that power as levels in dB, at most CAP_DB.

    Few latents have no power beyond as many components, and then no error either.
    """

    def level(mse: torch.Tensor) -> float:
        return float(linear_to_db(power / mse)[0].clamp(max=CAP_DB))

    first, second = (level(half.informed) for half in found.halves)
    return BoundRow(
        point=point,
        informed_db=level(found.measured.informed),
        held_out_db=level(found.held_out.informed),
        held_out_error_db=abs(first - second) / 2,
        dispersed_db=level(found.held_out.dispersed),
        finite_db=level(found.finite.informed),
        ergodic_db=level(found.measured.ergodic),
        outage_db=level(found.measured.outage),
        draws=draws,
    )


def mean_of(metric: str, values: tuple[float, ...]) -> Mean:
    """Mean of a cell over images with its interval.

    That of the weighted latent SNR is the level of the mean error, as a bound is on mean error: a mean of
    levels would be higher and could pass the bound.
    """
    if metric != WEIGHTED:
        return mean_interval(values)
    error = mean_interval(db_to_linear(-torch.tensor(values, dtype=torch.float64)))
    ends = torch.tensor([error.mean, error.low, error.high], dtype=torch.float64).clamp(min=0)
    level, high, low = (-linear_to_db(ends)).tolist()
    return Mean(mean=level, low=low, high=high, n=error.n)


def write_results(outcome: Outcome, folder: Path) -> list[Path]:
    """Write results.jsonl and, if pyarrow is there, results.parquet; returns the files."""
    lines = [*map(cell_row, outcome.results), *map(_bound_json, outcome.bounds)]
    text = "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines)
    written = [folder / "results.jsonl"]
    write_bytes(written[0], text.encode())
    if importlib.util.find_spec("pyarrow") is not None:
        written.append(folder / "results.parquet")
        _write_parquet(outcome, written[1])
    return written


def cell_row(result: Result) -> dict[str, Any]:
    """A line of results.jsonl; an end of an interval that is infinite is null."""
    means = {metric: mean_of(metric, values).to_json() for metric, values in result.values.items()}
    for mean in means.values():
        del mean["n"]
    images = len(next(iter(result.values.values())))
    return {**_named(result.cell), "n": images, "metrics": means}


def _bound_json(row: BoundRow) -> dict[str, Any]:
    names = ("informed", "held_out", "held_out_error", "dispersed", "finite", "ergodic", "outage")
    levels = {name: getattr(row, f"{name}_db") for name in names}
    return {"method": "bound", **_where(row.point), "n": row.draws, WEIGHTED: levels}


def _named(cell: Cell) -> dict[str, Any]:
    return {"method": cell.method, **_where(cell.point), "constellation": cell.constellation}


def _where(point: Point) -> dict[str, Any]:
    physics = point.physics()
    del physics["medium"]
    place = {"channel": point.channel, "family": point.family, "uses": point.uses, "snr_db": point.snr_db}
    return {**place, "used": physics["uses"], **{k: v for k, v in physics.items() if k not in place}}


def _long(outcome: Outcome) -> Iterator[dict[str, Any]]:
    """A row for each value of each image."""
    for result in outcome.results:
        named = _named(result.cell)
        for metric, values in result.values.items():
            for image, value in enumerate(values):
                split, prompt = outcome.prompts[image]
                image_row = {"image": image, "split": split, "prompt": prompt}
                yield {**named, **image_row, "metric": metric, "value": value}


def _write_parquet(outcome: Outcome, path: Path) -> None:
    arrow = importlib.import_module("pyarrow")
    parquet = importlib.import_module("pyarrow.parquet")
    table = arrow.Table.from_pylist(list(_long(outcome)))
    with replacing(path) as part:
        parquet.write_table(table, part)
