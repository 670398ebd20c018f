"""A sweep as curves against SNR: PSNR, and the weighted latent SNR beside what Gaussian latents could have."""

from pathlib import Path

from dekag.evaluation.figures import save_figure
from dekag.evaluation.statistics import Mean
from dekag.evaluation.transmission_figures import Curve, grid_figure
from dekag.tasks.sweep.cells import Result
from dekag.tasks.sweep.results import WEIGHTED, BoundRow, Outcome, mean_of
from dekag.tasks.sweep.summary import is_silent

Place = tuple[str, str]
LINES = {
    "reference": "held_out_db",
    "reference, measured spectrum": "informed_db",
    "reference, short blocks": "dispersed_db",
    "reference, constellation": "finite_db",
}
"""Curves beside the methods, as they are labelled."""


def write_figures(outcome: Outcome, folder: Path) -> list[Path]:
    """Write transmission.png and, if a method sends latents, transmission_latent.png; returns the files."""
    written = [folder / "transmission.png"]
    save_figure(grid_figure(panels(outcome, "psnr_db"), quantity="PSNR (dB)"), written[0])
    latent = panels(outcome, WEIGHTED)
    if latent:
        written.append(folder / "transmission_latent.png")
        save_figure(grid_figure(latent, quantity="Weighted latent SNR (dB)"), written[1])
    return written


def panels(outcome: Outcome, metric: str) -> dict[Place, dict[str, Curve]]:
    """Curves of a metric by channel and uses; with that of the weighted latent SNR come the Gaussian lines."""
    found: dict[Place, dict[str, list[Result]]] = {}
    for result in outcome.results:
        if metric in result.values:
            lines = found.setdefault(_place(result.cell.point.channel, result.cell.point.uses), {})
            lines.setdefault(result.cell.label, []).append(result)
    curves = {
        place: {label: _curve(results, metric) for label, results in lines.items()}
        for place, lines in found.items()
    }
    if metric == WEIGHTED:
        for place, rows in _bounds(outcome.bounds).items():
            if place in curves:
                for label, field in LINES.items():
                    curves[place][label] = _limit(rows, field)
    return curves


def _curve(results: list[Result], metric: str) -> Curve:
    ordered = sorted(results, key=lambda result: result.cell.point.snr_db)
    return Curve(
        snr_db=[result.cell.point.snr_db for result in ordered],
        means=[mean_of(metric, result.values[metric]) for result in ordered],
        silent=[result.cell.point.snr_db for result in ordered if is_silent(result)],
    )


def _limit(rows: list[BoundRow], field: str) -> Curve:
    ordered = sorted(rows, key=lambda row: row.point.snr_db)
    levels = [getattr(row, field) for row in ordered]
    means = [Mean(mean=level, low=level, high=level, n=ordered[0].draws) for level in levels]
    return Curve(snr_db=[row.point.snr_db for row in ordered], means=means, limit=True)


def _bounds(rows: list[BoundRow]) -> dict[Place, list[BoundRow]]:
    found: dict[Place, list[BoundRow]] = {}
    for row in rows:
        found.setdefault(_place(row.point.channel, row.point.uses), []).append(row)
    return found


def _place(channel: str, uses: int) -> Place:
    return channel, f"{uses} uses"
