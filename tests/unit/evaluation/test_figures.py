"""Figures show what they are given, in any surroundings, as the same bytes."""

import math
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
from full_disk import full_after
from PIL import Image as PilImage
from torch import Tensor

from dekag.evaluation.figures import contact_sheet, report_figure, save_figure
from dekag.evaluation.statistics import Mean
from dekag.types import InputError

RED, GREEN, BLUE, PINK = (204, 0, 0), (0, 153, 0), (0, 0, 204), (255, 102, 153)
CURVES = {
    label: ([0.0, 10.0], [Mean(mean=m, low=m - 1, high=m + 1, n=8), Mean(mean=m + 5, low=m, high=m + 6, n=8)])
    for label, m in (("without T-KA", 15.0), ("with T-KA", 20.0))
}


def flat(*colours: tuple[int, int, int], size: int = 8) -> Tensor:
    return (torch.tensor(colours) / 255)[:, :, None, None].expand(-1, 3, size, size)


def report(**changes: Any) -> Any:
    given = {
        "rows": [("cloud image", flat(RED, GREEN)), ("edge with KA", flat(BLUE, PINK, size=24))],
        "columns": ["a red apple", "a $5 note on a_b"],
        "curves": CURVES,
        "summary": ["DINO-score 0.61 to 0.78, +28 %"],
    }
    return report_figure(**{**given, **changes})


def centres(path: Path) -> dict[tuple[int, int, int], tuple[float, float]]:
    """Row and column of the middle of each colour's pixels."""
    with PilImage.open(path) as picture:
        pixels = np.asarray(picture.convert("RGB"))
    found = {}
    for colour in (RED, GREEN, BLUE, PINK):
        where = np.argwhere((pixels == colour).all(2))
        assert len(where) > 100 * 100
        found[colour] = tuple(where.mean(0))
    return found


def test_pictures_stand_in_their_rows_and_columns(tmp_path: Path) -> None:
    save_figure(report(), tmp_path / "report.png")
    at = centres(tmp_path / "report.png")
    for one, other, axis in ((RED, GREEN, 0), (BLUE, PINK, 0), (RED, BLUE, 1), (GREEN, PINK, 1)):
        assert at[one][axis] == pytest.approx(at[other][axis], abs=1)
        assert at[one][1 - axis] < at[other][1 - axis]


def test_a_contact_sheet_reads_line_by_line(tmp_path: Path) -> None:
    sheet = contact_sheet(flat(RED, GREEN, BLUE, PINK), ["one", "two", "three " * 50, "four"], columns=3)
    save_figure(sheet, tmp_path / "sheet.png")
    at = centres(tmp_path / "sheet.png")
    assert at[RED][1] < at[GREEN][1] < at[BLUE][1]
    assert at[PINK][0] > at[RED][0]
    assert at[PINK][1] == pytest.approx(at[RED][1], abs=1)


def test_a_file_is_the_same_bytes_in_any_style_and_tells_no_version(tmp_path: Path) -> None:
    save_figure(report(), tmp_path / "one.png")
    with matplotlib.rc_context({"axes.facecolor": "black", "font.size": 20, "savefig.bbox": "tight"}):
        surroundings = dict(matplotlib.rcParams)
        save_figure(report(), tmp_path / "two.png")
        assert dict(matplotlib.rcParams) == surroundings
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    with PilImage.open(tmp_path / "one.png") as picture:
        assert set(picture.info) == {"dpi"}


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "new" / "report.png"
    figure = report()
    save_figure(figure, path)
    before = path.read_bytes()
    with full_after(len(before) // 2), pytest.raises(OSError, match="File too large"):
        save_figure(figure, path)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]
    with pytest.raises(InputError, match=r"PNG files, got report\.pdf"):
        save_figure(figure, tmp_path / "report.pdf")


def test_the_panel_shows_curves_bands_and_units() -> None:
    (axes,) = [a for a in report().axes if a.get_ylabel()]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("SNR per channel use (dB)", "PSNR (dB), 95 % interval")
    assert [text.get_text() for text in axes.get_legend().get_texts()] == list(CURVES)
    assert axes.lines[1].get_ydata().tolist() == [20.0, 25.0]
    band = axes.collections[1].get_paths()[0].vertices[:, 1]
    assert {19.0, 20.0, 21.0, 26.0} <= set(band.tolist())
    assert axes.lines[0].get_color() != axes.lines[1].get_color()
    assert axes.lines[0].get_marker() != axes.lines[1].get_marker()


def test_intervals_without_bound_and_reports_without_curves_are_drawn(tmp_path: Path) -> None:
    alone = Mean(mean=20.0, low=-math.inf, high=math.inf, n=1)
    save_figure(report(curves={"one image": ([0.0], [alone])}), tmp_path / "one.png")
    save_figure(report(curves={}, summary=[]), tmp_path / "none.png")
    assert (tmp_path / "none.png").exists()


def test_pictures_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputError, match="row 'cloud image' needs 2 images, one a column, got 1"):
        report(rows=[("cloud image", flat(RED))])
    with pytest.raises(InputError, match="at least one row"):
        report(rows=[])
    with pytest.raises(InputError, match="got 1 images and 2 captions"):
        contact_sheet(flat(RED), ["one", "two"])
