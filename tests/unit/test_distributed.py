"""Two real processes (gloo, CPU): they take the steps of one, and go on where they were killed."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import together
import torch
from accelerate import PartialState

from dekag.training.loop import Progress, train
from dekag.types import InputError

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What both launches wrote."""
    folder = tmp_path_factory.mktemp("together")
    broken, resumed = launch(folder, "break"), launch(folder, "resume")
    assert "Signal 9 (SIGKILL)" in broken.stderr, broken.stderr
    assert not (folder / "broken-0.pt").exists()
    assert resumed.returncode == 0, resumed.stderr
    return folder


def launch(folder: Path, stage: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"),
            *(together.__file__, str(folder), stage),
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def load(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(path, weights_only=True)
    return content


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, second[name]) for name, value in first.items())


def test_two_processes_take_the_steps_of_one_that_accumulates_two_shares(folder: Path) -> None:
    net = together.model()
    reports: list[Progress] = []
    trained = train(
        net,
        together.loss_of(net),
        replace(together.CONFIG, accumulation=2),
        on_step=reports.append,
        validate=lambda _: together.scorer(net),
        validate_every=8,
    )
    both = load(folder / "straight-0.pt")
    # halving is exact and a sum of two has one order, so two shares agree to the bit; more would to rounding
    assert same(both["model"], net.state_dict())
    assert both["losses"] == pytest.approx([report.loss for report in reports], rel=1e-6)
    assert both["scores"] == trained.scores


def test_processes_agree_and_only_the_main_one_reports(folder: Path) -> None:
    main, other = load(folder / "straight-0.pt"), load(folder / "straight-1.pt")
    assert same(main["model"], other["model"])
    assert (main["scores"], main["best_step"]) == (other["scores"], other["best_step"])
    assert (len(main["losses"]), len(other["losses"])) == (24, 0)


def test_running_statistics_agree(folder: Path) -> None:
    main, other = load(folder / "norm-0.pt"), load(folder / "norm-1.pt")
    assert main["1.num_batches_tracked"] == 24
    assert same(main, other)


def test_killed_and_undisturbed_runs_end_in_the_same_bytes(folder: Path) -> None:
    for rank in (0, 1):
        straight, resumed = load(folder / f"straight-{rank}.pt"), load(folder / f"resumed-{rank}.pt")
        assert same(straight["model"], resumed["model"])
        assert straight["scores"] == resumed["scores"]
    # the checkpoint of step 12 was the last one before the kill in step 16
    assert load(folder / "resumed-0.pt")["losses"] == load(folder / "straight-0.pt")["losses"][12:]


def test_one_process_does_not_go_on_with_the_run_of_two(folder: Path) -> None:
    net = together.model()
    with pytest.raises(InputError, match="is of a run with processes 2, this one has 1"):
        train(
            net,
            together.loss_of(net),
            together.CONFIG,
            checkpoint=folder / "state.pt",
            validate=lambda _: together.scorer(net),
            validate_every=8,
        )


def test_processes_that_were_launched_but_not_joined_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    PartialState()
    monkeypatch.setenv("WORLD_SIZE", "2")
    net = together.model()
    with pytest.raises(InputError, match="2 processes were launched, but accelerate joined 1"):
        train(net, together.loss_of(net), replace(together.CONFIG, keep="last"))
