"""Curves against SNR over a whole grid: a row of panels for each channel, a panel for each number of uses."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dekag.evaluation.figures import (
    COLOURS,
    FAINT,
    INK,
    LINE,
    MARGIN,
    MARKERS,
    NORMAL,
    SMALL,
    WIDTH,
    Sheet,
    blank_sheet,
    default_style,
)
from dekag.evaluation.statistics import Mean
from dekag.types import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LEFT, PANEL, GAP, AXIS = 0.62, 1.35, 0.16, 0.36
"""Room for the label of the rows, height of a panel, space between panels, and room for the SNR below."""
SILENT = "cannot send"


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Means with their intervals by SNR in dB.

    silent: SNRs at which nothing can be sent; they are marked. limit: drawn as a bound, without markers.
    """

    snr_db: Sequence[float]
    means: Sequence[Mean]
    silent: Sequence[float] = ()
    limit: bool = False


Panels = Mapping[tuple[str, str], Mapping[str, Curve]]
"""Curves by label, by row and column."""


def grid_figure(panels: Panels, *, quantity: str) -> "Figure":
    """One panel for each row and column, all of the same axes.

    quantity: what is drawn, with its unit. A label has one colour and marker in every panel.
    Raises InputError if there is nothing to draw.
    """
    rows, columns = (list(dict.fromkeys(place[axis] for place in panels)) for axis in (0, 1))
    labels = list(dict.fromkeys(label for curves in panels.values() for label in curves))
    if not labels:
        raise InputError("a figure needs at least one curve")
    per_line = 5
    legend = 0.22 * -(-(len(labels) + 1) // per_line)
    top = 3 * MARGIN + legend + NORMAL * LINE
    width = (WIDTH - LEFT - MARGIN - GAP * (len(columns) - 1)) / len(columns)
    with default_style():
        sheet = blank_sheet(top + len(rows) * (PANEL + GAP) + AXIS)
        styles = _styles(panels, labels)
        first: Axes | None = None
        for row, row_name in enumerate(rows):
            for column, column_name in enumerate(columns):
                left = LEFT + column * (width + GAP)
                axes = sheet.axes(left, top + row * (PANEL + GAP), width, PANEL)
                if first is None:
                    first = axes
                else:  # before anything is drawn: limits then grow with every panel
                    axes.sharex(first)
                    axes.sharey(first)
                _draw(axes, panels.get((row_name, column_name), {}), styles)
                axes.tick_params(labelleft=column == 0, labelbottom=row == len(rows) - 1)
                if row == 0:
                    axes.set_title(column_name, size=NORMAL, color=INK, pad=3)
                if column == 0:
                    axes.set_ylabel(row_name, size=NORMAL, color=INK)
        _captions(sheet, quantity, labels, styles, per_line)
    return sheet.figure


def _styles(panels: Panels, labels: Sequence[str]) -> dict[str, dict[str, Any]]:
    """How the line of each label is drawn; bounds are dashed and grey."""
    limits = {label for curves in panels.values() for label, curve in curves.items() if curve.limit}
    styles: dict[str, dict[str, Any]] = {
        label: {"color": INK, "linestyle": "--", "linewidth": 1.0} for label in labels if label in limits
    }
    for number, label in enumerate(label for label in labels if label not in limits):
        marker, colour = MARKERS[number % len(MARKERS)], COLOURS[number % len(COLOURS)]
        styles[label] = {"color": colour, "marker": marker, "markersize": 3.2, "linewidth": 1.2}
    return styles


def _draw(axes: "Axes", curves: Mapping[str, Curve], styles: Mapping[str, dict[str, Any]]) -> None:
    for label, curve in curves.items():
        style = styles[label]
        middle = [mean.mean for mean in curve.means]
        axes.plot(curve.snr_db, middle, **style)
        if not curve.limit:
            # an interval without bound is no band
            low = [m.low if np.isfinite(m.low) else m.mean for m in curve.means]
            high = [m.high if np.isfinite(m.high) else m.mean for m in curve.means]
            axes.fill_between(curve.snr_db, low, high, color=style["color"], alpha=0.22, linewidth=0)
        lost = [
            (snr, mean) for snr, mean in zip(curve.snr_db, middle, strict=True) if snr in set(curve.silent)
        ]
        if lost:
            at, levels = zip(*lost, strict=True)
            axes.plot(at, levels, linestyle="", marker="x", markersize=7, color=style["color"], zorder=4)
    axes.tick_params(labelsize=SMALL, colors=INK, length=0)
    axes.locator_params(axis="y", integer=True, nbins=6)
    axes.grid(color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left", "bottom"):
        axes.spines[side].set_visible(False)


def _captions(
    sheet: Sheet,
    quantity: str,
    labels: Sequence[str],
    styles: Mapping[str, dict[str, Any]],
    per_line: int,
) -> None:
    """What is drawn, the legend, and the unit of the horizontal axis."""
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], label=label, **styles[label]) for label in labels]
    handles.append(Line2D([], [], label=SILENT, color=INK, linestyle="", marker="x", markersize=6))
    sheet.figure.legend(
        handles=handles,
        loc="upper left",
        bbox_to_anchor=((LEFT - MARGIN) / WIDTH, 1 - (MARGIN + NORMAL * LINE) / sheet.height),
        ncols=per_line,
        frameon=False,
        fontsize=SMALL + 1,
        labelcolor=INK,
        borderaxespad=0,
    )
    sheet.write([f"{quantity} with 95 % interval"], LEFT, MARGIN, NORMAL)
    below = sheet.height - 1.6 * NORMAL * LINE
    sheet.write(["SNR per channel use (dB)"], (WIDTH + LEFT) / 2, below, NORMAL, align="center")
