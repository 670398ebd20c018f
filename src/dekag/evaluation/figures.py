"""The pictures of a report: what each stage shows, fidelity against SNR, and contact sheets of samples.

Drawn in matplotlib's default style, whatever the user's is, and without its global state; a figure is then
the same bytes wherever the same versions are installed. All lengths here are inches from the top left.
"""

import contextlib
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float
from torch import Tensor

from dekag.evaluation.statistics import Mean
from dekag.types import InputError
from dekag.wire.files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Pictures = Float[Tensor, "_ 3 _ _"]
"""RGB in [0, 1], of any number and size."""

DPI = 200
WIDTH = 9.0
"""At the 900 pixels of a README a point is then 1.4 pixels."""
MARGIN = 0.1
GAP = 0.04
LABEL_WIDTH = 1.2
LARGEST = 1.5
"""Side of a picture in a report of few columns."""
PANEL_HEIGHT = 2.7
SMALL, NORMAL = 7.0, 9.0
"""Font sizes in points."""
LINE = 1.25 / 72
"""Height of a line of text for each point of font size."""
INK, FAINT = "#222222", "#d9d9d9"
# Okabe and Ito 2008, which the colour-blind can tell apart; markers and strokes differ as well
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P")


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """A white page of WIDTH x `height`."""

    figure: "Figure"
    height: float

    def axes(self, left: float, top: float, width: float, height: float) -> "Axes":
        """Axes in a rectangle."""
        below = self.height - top - height
        box = (left / WIDTH, below / self.height, width / WIDTH, height / self.height)
        return self.figure.add_axes(box)

    def picture(self, image: Tensor, left: float, top: float, side: float) -> None:
        """One image [3, height, width] in [0, 1], fitted into a square."""
        axes = self.axes(left, top, side, side)
        axes.imshow(image.detach().cpu().permute(1, 2, 0).float().numpy(), interpolation="bicubic")
        axes.set_axis_off()

    def write(
        self, lines: Sequence[str], left: float, top: float, size: float, *, align: str = "left"
    ) -> None:
        """Lines of text below one another, each aligned to `left` as `align` says."""
        for number, line in enumerate(lines):
            at = (left / WIDTH, 1 - (top + number * size * LINE) / self.height)
            self.figure.text(*at, line, size=size, ha=align, va="top", color=INK, parse_math=False)


def report_figure(
    rows: Sequence[tuple[str, Pictures]],
    columns: Sequence[str],
    curves: Mapping[str, tuple[Sequence[float], Sequence[Mean]]],
    summary: Sequence[str],
) -> "Figure":
    """Pictures, one row for each stage and one column for each prompt, above curves of PSNR and some text.

    rows: label and images [columns, 3, height, width] in [0, 1]. columns: the prompts.
    curves: SNR in dB and PSNR in dB with its intervals, drawn as bands, by label. summary: lines of text.
    Raises InputError if there are no pictures, or a row has not one for each column.
    """
    if not rows or not columns:
        raise InputError("a report needs at least one row and one column of pictures")
    for label, images in rows:
        if len(images) != len(columns):
            raise InputError(f"row {label!r} needs {len(columns)} images, one a column, got {len(images)}")
    side = min(LARGEST, (WIDTH - 2 * MARGIN - LABEL_WIDTH) / len(columns) - GAP)
    captions = [_wrap(caption, side, SMALL, max_lines=4) for caption in columns]
    top = 2 * MARGIN + max(len(lines) for lines in captions) * SMALL * LINE
    panel = top + len(rows) * (side + GAP) + 3 * MARGIN
    with default_style():
        sheet = blank_sheet(panel + PANEL_HEIGHT)
        for column, lines in enumerate(captions):
            left = MARGIN + LABEL_WIDTH + column * (side + GAP)
            base = top - MARGIN / 2 - len(lines) * SMALL * LINE
            sheet.write(lines, left + side / 2, base, SMALL, align="center")
            for row, (_, images) in enumerate(rows):
                sheet.picture(images[column], left, top + row * (side + GAP), side)
        for row, (label, _) in enumerate(rows):
            lines = _wrap(label, LABEL_WIDTH - MARGIN, NORMAL)
            middle = top + row * (side + GAP) + side / 2
            sheet.write(lines, MARGIN, middle - len(lines) * NORMAL * LINE / 2, NORMAL)
        _panel(sheet, curves, panel)
        _summary(sheet, summary, panel + (len(curves) + 1) * 0.2)
    return sheet.figure


def contact_sheet(images: Pictures, captions: Sequence[str], columns: int = 8) -> "Figure":
    """Images [n, 3, height, width] in [0, 1] in reading order, each above its prompt in small print.

    Raises InputError if there is no image, or not one caption for each.
    """
    if len(images) != len(captions) or not captions or columns < 1:
        raise InputError(
            f"a contact sheet needs one caption for each image, got {len(images)} images and {len(captions)}"
            f" captions in {columns} columns"
        )
    side = (WIDTH - 2 * MARGIN) / columns - 2 * GAP
    wrapped = [_wrap(caption, side + GAP, SMALL - 1, max_lines=3) for caption in captions]
    pitch = side + 2 * GAP + max(len(lines) for lines in wrapped) * (SMALL - 1) * LINE + MARGIN
    with default_style():
        sheet = blank_sheet(MARGIN + pitch * -(-len(images) // columns))
        for number, (image, lines) in enumerate(zip(images, wrapped, strict=True)):
            left = MARGIN + GAP + number % columns * (side + 2 * GAP)
            top = MARGIN + number // columns * pitch
            sheet.picture(image, left, top, side)
            sheet.write(lines, left + side / 2, top + side + GAP, SMALL - 1, align="center")
    return sheet.figure


def save_figure(figure: "Figure", path: str | Path) -> None:
    """Write a PNG file whole or not at all; it holds neither date nor version.

    Raises InputError if the file's name does not end in .png.
    """
    path = Path(path)
    if path.suffix != ".png":
        raise InputError(f"figures are PNG files, got {path.name}")
    with replacing(path) as part, default_style():
        figure.savefig(part, format="png", dpi="figure", metadata={"Software": None})


def _panel(sheet: Sheet, curves: Mapping[str, tuple[Sequence[float], Sequence[Mean]]], top: float) -> None:
    """PSNR against SNR, with the legend to the right."""
    if not curves:
        return
    axes = sheet.axes(0.65, top, 4.85, PANEL_HEIGHT - 0.6)
    for number, (label, (snr_db, means)) in enumerate(curves.items()):
        colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
        middle = [m.mean for m in means]
        axes.plot(snr_db, middle, color=colour, marker=marker, markersize=4.5, linewidth=1.6, label=label)
        # an interval without bound is no band
        low = [m.low if np.isfinite(m.low) else m.mean for m in means]
        high = [m.high if np.isfinite(m.high) else m.mean for m in means]
        axes.fill_between(snr_db, low, high, color=colour, alpha=0.22, linewidth=0)
    axes.set_xlabel("SNR per channel use (dB)", size=NORMAL, color=INK)
    axes.set_ylabel("PSNR (dB), 95 % interval", size=NORMAL, color=INK)
    axes.tick_params(labelsize=NORMAL - 1, colors=INK, length=0)
    axes.locator_params(axis="y", integer=True, nbins=7)
    axes.grid(color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left", "bottom"):
        axes.spines[side].set_visible(False)
    axes.legend(
        loc="upper left",
        bbox_to_anchor=(1.02, 1.03),
        frameon=False,
        fontsize=NORMAL,
        labelcolor=INK,
    )


def _summary(sheet: Sheet, summary: Sequence[str], top: float) -> None:
    """Paragraphs to the right of the panel."""
    for text in summary:
        lines = _wrap(text, WIDTH - 5.8 - MARGIN, NORMAL - 0.5)
        sheet.write(lines, 5.8, top, NORMAL - 0.5)
        top += len(lines) * (NORMAL - 0.5) * LINE + MARGIN / 2


def blank_sheet(height: float) -> Sheet:
    """A page without anything on it."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    return Sheet(figure=figure, height=height)


def default_style() -> contextlib.AbstractContextManager[None]:
    """Within, matplotlib's own style, whatever the user's is."""
    from matplotlib import style

    return style.context("default")


def _wrap(text: str, width: float, size: float, *, max_lines: int | None = None) -> list[str]:
    """At most `max_lines` lines of about `width` inches; a letter is taken to be 0.55 of the font size wide."""
    letters = max(8, int(width * 72 / (0.55 * size)))
    return textwrap.wrap(text, letters, break_on_hyphens=False, max_lines=max_lines, placeholder=" ...") or [
        ""
    ]
