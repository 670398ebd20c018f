"""A sweep in a few numbers: means over the grid, gains, worst cells, duels with the digital methods, bounds.

The unit of evidence is the image: its values are averaged over cells, and intervals are over images.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from dekag.evaluation.statistics import Mean, mean_interval
from dekag.evaluation.table import Cell, Table, Tabular
from dekag.tasks.sweep.cells import Result
from dekag.tasks.sweep.results import WEIGHTED, BoundRow, Outcome, mean_of

REFERENCE, ADAPTED = "no_ka", "cala"
LOW_SNR_DB = 10.0
"""Below it the analogue way has to be ahead of the digital one."""
METRICS = {
    "psnr_db": ("PSNR (dB)", 2),
    "weighted_snr_db": ("latent SNR (dB)", 2),
    "latent_nmse": ("latent NMSE", 3),
    "ssim": ("SSIM", 3),
    "dino": ("dino", 3),
    "clip": ("clip", 3),
    "lpips": ("LPIPS", 3),
    "arrived": ("arrived", 2),
}
"""Metrics of a received image, what a table calls them, and their digits there."""

Cells = dict[str, Result]
"""The results of one method by the name of their point."""


@dataclass(frozen=True, kw_only=True)
class Gap:
    """Distance to the bound in dB, mean over cells: to that of the measured and of the held-out spectrum."""

    measured_db: float
    held_out_db: float


@dataclass(frozen=True, kw_only=True)
class Gains:
    """PSNR over that of the codec without KA in dB, paired by image.

    worst: name of the cell of the least mean gain, and that gain.
    """

    overall: Mean
    by_split: dict[str, Mean]
    by_family: dict[str, Mean]
    by_uses: dict[str, Mean]
    worst: tuple[str, float]


@dataclass(frozen=True, kw_only=True)
class MethodSummary:
    """One method over the grid.

    metrics: means, of levels where a metric is one. received: images of digital cells that were sent and that
    arrived, of how many. silent: cells in which no image could be sent. to_bound: by SNR.
    """

    metrics: dict[str, Mean]
    gains: Gains | None
    received: tuple[int, int, int] | None
    silent: int
    to_bound: dict[str, Gap]


@dataclass(frozen=True, kw_only=True)
class Duel:
    """CALA against a digital method in the cells below LOW_SNR_DB; losses by cell, in dB of mean PSNR."""

    method: str
    rival: str
    cells: int
    losses: dict[str, float]

    @property
    def won(self) -> int:
        """Cells in which the mean PSNR is higher."""
        return self.cells - len(self.losses)


@dataclass(frozen=True, kw_only=True)
class Summary(Tabular):
    """What a sweep found, by method."""

    world: str
    images: int
    cells: int
    draws: int
    methods: dict[str, MethodSummary]
    duels: list[Duel]

    def to_json(self) -> dict[str, Any]:
        """JSON values; infinite ends of intervals are null."""
        return {
            "world": self.world,
            "images": self.images,
            "cells": self.cells,
            "draws": self.draws,
            "methods": {label: _method_json(method) for label, method in self.methods.items()},
            "duels": [
                {"method": d.method, "rival": d.rival, "cells": d.cells, "won": d.won, "losses_db": d.losses}
                for d in self.duels
            ],
        }

    def tables(self) -> list[Table]:
        """Means over the grid, gains by channel, uses and split, and distances to the bound."""
        found = [_means_table(self)]
        if any(method.gains is not None for method in self.methods.values()):
            found.append(_gains_table(self))
        if any(method.to_bound for method in self.methods.values()):
            found.append(_bound_table(self))
        return found


def summarise(outcome: Outcome) -> Summary:
    """The summary of a sweep."""
    by_label: dict[str, Cells] = {}
    for result in outcome.results:
        by_label.setdefault(result.cell.label, {})[result.cell.point.name] = result
    bounds = {row.point.name: row for row in outcome.bounds}
    splits = [split for split, _ in outcome.prompts]
    return Summary(
        world=outcome.world,
        images=len(outcome.prompts),
        cells=len(outcome.results),
        draws=outcome.draws,
        methods={
            label: MethodSummary(
                metrics=_metrics(cells),
                gains=_gains(cells, _reference(cells, by_label), splits),
                received=_received(cells),
                silent=sum(is_silent(result) for result in cells.values()),
                to_bound=_to_bound(cells, bounds),
            )
            for label, cells in by_label.items()
        },
        duels=_duels(by_label),
    )


def is_silent(result: Result) -> bool:
    """Whether a digital method could send nothing at all."""
    return "sent" in result.values and not any(result.values["sent"])


def _metrics(cells: Cells) -> dict[str, Mean]:
    names = next(iter(cells.values())).values
    return {n: _over_images(np.array(r.values[n]) for r in cells.values()) for n in names}


def _over_images(rows: Iterable[np.ndarray]) -> Mean:
    """Mean of one row of values per cell, clustered by image."""
    table = np.stack(list(rows))
    return mean_interval(table.ravel(), np.tile(np.arange(table.shape[1]), len(table)))


def _reference(cells: Cells, by_label: dict[str, Cells]) -> Cells | None:
    """The codec without KA, of the same constellation if there is one."""
    first = next(iter(cells.values())).cell
    if first.method == REFERENCE:
        return None
    plain = [c for c in by_label.values() if next(iter(c.values())).cell.method == REFERENCE]
    same = [c for c in plain if next(iter(c.values())).cell.constellation == first.constellation]
    return next(iter(same or plain), None)


def _gains(cells: Cells, reference: Cells | None, splits: list[str]) -> Gains | None:
    if reference is None:
        return None
    gain = {name: _psnr(result) - _psnr(reference[name]) for name, result in cells.items()}

    def by(group: Callable[[Result], str]) -> dict[str, Mean]:
        groups: dict[str, list[np.ndarray]] = {}
        for name, result in cells.items():
            groups.setdefault(group(result), []).append(gain[name])
        return {name: _over_images(rows) for name, rows in groups.items()}

    worst = min(gain, key=lambda name: gain[name].mean())
    return Gains(
        overall=_over_images(gain.values()),
        by_split={
            split: _over_images(row[[first == split for first in splits]] for row in gain.values())
            for split in dict.fromkeys(splits)
        },
        by_family=by(lambda result: result.cell.point.family),
        by_uses=by(lambda result: str(result.cell.point.uses)),
        worst=(worst, float(gain[worst].mean())),
    )


def _received(cells: Cells) -> tuple[int, int, int] | None:
    rows = [result.values for result in cells.values()]
    if "sent" not in rows[0]:
        return None
    sent, arrived = (int(sum(sum(row[name]) for row in rows)) for name in ("sent", "arrived"))
    return sent, arrived, sum(len(row["sent"]) for row in rows)


def _to_bound(cells: Cells, bounds: dict[str, BoundRow]) -> dict[str, Gap]:
    gaps: dict[str, list[tuple[float, float]]] = {}
    for name, result in cells.items():
        if name in bounds and WEIGHTED in result.values:
            level, row = mean_of(WEIGHTED, result.values[WEIGHTED]).mean, bounds[name]
            both = (row.informed_db - level, row.held_out_db - level)
            gaps.setdefault(f"{result.cell.point.snr_db:g}", []).append(both)
    means = {snr: np.mean(both, axis=0).tolist() for snr, both in gaps.items()}
    return {snr: Gap(measured_db=pair[0], held_out_db=pair[1]) for snr, pair in means.items()}


def _duels(by_label: dict[str, Cells]) -> list[Duel]:
    adapted = {k: c for k, c in by_label.items() if next(iter(c.values())).cell.method == ADAPTED}
    rivals = {k: c for k, c in by_label.items() if "sent" in next(iter(c.values())).values}
    return [
        _duel(label, cells, rival, rival_cells)
        for label, cells in adapted.items()
        for rival, rival_cells in rivals.items()
        if any(result.cell.point.snr_db < LOW_SNR_DB for result in cells.values())
    ]


def _duel(label: str, cells: Cells, rival: str, rival_cells: Cells) -> Duel:
    low = {n: r for n, r in cells.items() if r.cell.point.snr_db < LOW_SNR_DB}
    lead = {name: float((_psnr(result) - _psnr(rival_cells[name])).mean()) for name, result in low.items()}
    losses = {name: value for name, value in lead.items() if value <= 0}
    return Duel(method=label, rival=rival, cells=len(low), losses=losses)


def _psnr(result: Result) -> np.ndarray:
    return np.array(result.values["psnr_db"])


def _method_json(method: MethodSummary) -> dict[str, Any]:
    entry: dict[str, Any] = {name: mean.to_json() for name, mean in method.metrics.items()}
    if method.received is not None:
        entry["received"] = dict(zip(("sent", "arrived", "images"), method.received, strict=True))
        entry["silent_cells"] = method.silent
    if method.gains is not None:
        gains = method.gains
        groups = {"by_split": gains.by_split, "by_family": gains.by_family, "by_uses": gains.by_uses}
        entry["gain_db"] = gains.overall.to_json()
        entry["gain_db_by"] = {
            group: {name: mean.to_json() for name, mean in means.items()} for group, means in groups.items()
        }
        entry["worst_cell"] = {"cell": gains.worst[0], "gain_db": gains.worst[1]}
    entry["to_bound_db"] = {
        snr: {"measured": gap.measured_db, "held_out": gap.held_out_db}
        for snr, gap in method.to_bound.items()
    }
    return entry


def _means_table(summary: Summary) -> Table:
    methods = summary.methods
    rows: dict[str, list[Cell | None]] = {}
    for name, (heading, digits) in METRICS.items():
        found = [method.metrics.get(name) for method in methods.values()]
        if any(found):
            rows[heading] = [None if mean is None else Cell(mean, digits) for mean in found]
    gains = [method.gains for method in methods.values()]
    over: dict[str, list[Cell | None]] = {}
    if any(gains):
        over["gain over no_ka (dB)"] = [None if gain is None else Cell(gain.overall, 2) for gain in gains]
    title = f"Mean over the grid, {summary.images} images, {summary.cells} cells"
    return Table(title=title, headings=("", *methods), sections=(rows, over))


def _gains_table(summary: Summary) -> Table:
    found = {label: method.gains for label, method in summary.methods.items() if method.gains is not None}
    first = next(iter(found.values()))
    sections = [
        {
            f"{name}{unit}": [Cell(getattr(gains, group)[name], 2) for gains in found.values()]
            for name in getattr(first, group)
        }
        for group, unit in (("by_family", ""), ("by_uses", " uses"), ("by_split", ""))
    ]
    return Table(
        title="Gain over no_ka in dB of PSNR, by channel, uses and split",
        headings=("", *found),
        sections=tuple(sections),
    )


def _bound_table(summary: Summary) -> Table:
    found = {label: method.to_bound for label, method in summary.methods.items() if method.to_bound}
    rows = {
        f"{snr}, {spectrum}": [Cell(getattr(gaps[snr], field), 2) for gaps in found.values()]
        for snr in next(iter(found.values()))
        for spectrum, field in (("measured", "measured_db"), ("held out", "held_out_db"))
    }
    return Table(
        title="Distance to the Gaussian reference in dB of weighted latent SNR, by SNR and spectrum",
        headings=("SNR (dB), spectrum", *found),
        sections=(rows,),
        caption=f"spectrum of {summary.draws} latents; with few the measured one is too high, the held-out one too low."
        " Latents are not Gaussian: a reference, no bound",
    )
