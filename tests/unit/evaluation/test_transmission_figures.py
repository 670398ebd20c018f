"""Curves of a grid stand in their panels, share their axes, and show where nothing can be sent."""

import math
from pathlib import Path

import pytest

from dekag.evaluation.figures import save_figure
from dekag.evaluation.statistics import Mean
from dekag.evaluation.transmission_figures import SILENT, Curve, grid_figure
from dekag.types import InputError

SNRS = (-5.0, 0.0, 10.0)


def curve(level: float, **changes: object) -> Curve:
    means = [Mean(mean=level + snr, low=level + snr - 1, high=level + snr + 1, n=8) for snr in SNRS]
    return Curve(snr_db=SNRS, means=means, **changes)  # type: ignore[arg-type]


PANELS = {
    (channel, f"{uses} uses"): {
        "cala": curve(20.0 + uses / 64),
        "digital": curve(18.0, silent=(-5.0,)),
        "bound": curve(40.0, limit=True),
    }
    for channel in ("awgn", "rayleigh-1")
    for uses in (64, 512)
}


def test_rows_are_channels_and_columns_are_uses() -> None:
    figure = grid_figure(PANELS, quantity="PSNR (dB)")
    assert len(figure.axes) == 4
    boxes = [axes.get_position() for axes in figure.axes]
    assert boxes[0].y0 == boxes[1].y0 > boxes[2].y0
    assert boxes[0].x0 == boxes[2].x0 < boxes[1].x0
    assert [axes.get_title() for axes in figure.axes] == ["64 uses", "512 uses", "", ""]
    assert [axes.get_ylabel() for axes in figure.axes] == ["awgn", "", "rayleigh-1", ""]
    assert figure.axes[1].lines[0].get_ydata()[0] == 20.0 + 8 - 5
    assert len({axes.get_ylim() for axes in figure.axes}) == 1
    assert len({axes.get_xlim() for axes in figure.axes}) == 1


def test_where_nothing_can_be_sent_is_marked() -> None:
    axes = grid_figure(PANELS, quantity="PSNR (dB)").axes[0]
    crosses = [line for line in axes.lines if line.get_marker() == "x"]
    assert [(line.get_xdata()[0], line.get_ydata()[0]) for line in crosses] == [(-5.0, 13.0)]
    none = grid_figure({("awgn", "64 uses"): {"cala": curve(1.0)}}, quantity="PSNR (dB)")
    assert not [line for line in none.axes[0].lines if line.get_marker() == "x"]


def test_a_bound_is_a_dashed_line_without_a_band() -> None:
    figure = grid_figure(PANELS, quantity="Weighted latent SNR (dB)")
    axes = figure.axes[0]
    (dashed,) = [line for line in axes.lines if line.get_linestyle() == "--"]
    assert dashed.get_ydata()[0] == 35.0
    assert len(axes.collections) == 2
    told = [text.get_text() for text in figure.legends[0].get_texts()]
    assert told == ["cala", "digital", "bound", SILENT]


def test_the_same_bytes_twice_and_intervals_without_bound(tmp_path: Path) -> None:
    alone = Curve(snr_db=(0.0,), means=[Mean(mean=20.0, low=-math.inf, high=math.inf, n=1)])
    for name in ("one", "two"):
        save_figure(
            grid_figure({("awgn", "64 uses"): {"cala": alone}}, quantity="x"), tmp_path / f"{name}.png"
        )
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()


def test_nothing_to_draw_is_refused() -> None:
    with pytest.raises(InputError, match="at least one curve"):
        grid_figure({}, quantity="PSNR (dB)")


def test_every_curve_lies_within_the_shared_axes() -> None:
    """Also those that are higher than all of the first panel."""
    low, high = curve(20.0), curve(60.0)
    panels = {("awgn", "64 uses"): {"cala": low}, ("awgn", "512 uses"): {"cala": high}}
    for axes in grid_figure(panels, quantity="PSNR (dB)").axes:
        bottom, top = axes.get_ylim()
        assert bottom < 20.0 - 5 - 1
        assert top > 60.0 + 10 + 1
