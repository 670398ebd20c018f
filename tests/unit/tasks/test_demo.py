"""The demonstration, small: its report is complete and the same bytes twice, but for times."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

from dekag.cli import app
from dekag.evaluation import grid
from dekag.tasks import demo
from dekag.world import load_world

SMALL = demo.DemoConfig(prompts=4, seeds=1, sent=2)


def run(folder: Path) -> Path:
    """A run of the command, always with the same seed."""
    words = ["demo", "--prompts", "4", "--seeds", "1", "--out", str(folder)]
    assert CliRunner().invoke(app, words).exit_code == 0
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(tmp_path_factory.mktemp("demo") / "one")


def means(node: Any) -> list[dict[str, Any]]:
    """Every object with a mean below a node."""
    if isinstance(node, dict):
        here = [node] if "mean" in node else []
        return here + [m for value in node.values() for m in means(value)]
    return []


@pytest.mark.slow
def test_two_runs_differ_in_times_alone(folder: Path, tmp_path: Path) -> None:
    reports = [folder, run(tmp_path / "other")]
    one, other = ((each / "report.json").read_text() for each in reports)
    left, right = json.loads(one), json.loads(other)
    assert left.pop("seconds").keys() == right.pop("seconds").keys()
    assert json.dumps(left) == json.dumps(right)
    pictures = [(each / "report.png").read_bytes() for each in reports]
    assert pictures[0] == pictures[1]


def test_report_has_everything(folder: Path) -> None:
    report = json.loads((folder / "report.json").read_text())
    assert report.keys() >= {"generation", "transmission", "traffic", "seconds", "versions", "seed"}
    for split in ("compositions", "concepts"):
        part = report["generation"][split]
        assert part.keys() == {"no_ka", "makd", "ceiling", "floor"}
        assert part["makd"].keys() >= {"gain_percent", "gap_closed"}
        for method in part.values():
            assert method["consistency"].keys() == {"dino", "clip"}
    for codec in ("no_ka", "cala"):
        assert report["transmission"][codec]["by_condition"].keys() == {p.name for p in grid.SMALL.points()}
    assert report["traffic"].keys() == {"image_bytes", "prompt_bytes", "bundle_bytes", "channel_uses"}
    for mean in means(report):
        assert mean.keys() == {"mean", "low", "high", "n"}
        assert mean["low"] <= mean["mean"] <= mean["high"]


def test_floor_lies_below_the_ceiling(folder: Path) -> None:
    report = json.loads((folder / "report.json").read_text())
    for split in report["generation"].values():
        for judge in ("dino", "clip"):
            assert (
                split["floor"]["consistency"][judge]["mean"] < split["ceiling"]["consistency"][judge]["mean"]
            )


def test_picture_opens_and_is_large_enough_for_a_readme(folder: Path) -> None:
    with Image.open(folder / "report.png") as picture:
        assert picture.width >= 1500


@pytest.mark.slow
@pytest.mark.slow
def test_another_seed_gives_another_report(folder: Path) -> None:
    result = demo.run_demo(
        load_world("emoji"), demo.DemoConfig(prompts=4, seeds=1, sent=2, seed=1), on_stage=str
    )
    report = json.loads((folder / "report.json").read_text())
    assert result.to_json()["generation"] != report["generation"]
