"""Two real processes (gloo, CPU): they take the steps of one, and go on where they were killed."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import launched_command_line
import pytest
import torch
import two_process_training
from accelerate import PartialState
from command_line import exit_code
from tiny_worlds import miniature

from dekag.training.loop import Progress, Validation, train
from dekag.training.processes import joined
from dekag.types import InputError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What both launches wrote."""
    folder = tmp_path_factory.mktemp("together")
    broken, resumed = (launch(two_process_training.__file__, folder, stage) for stage in ("break", "resume"))
    assert "Signal 9 (SIGKILL)" in broken.stderr, broken.stderr
    assert not (folder / "broken-0.pt").exists()
    assert resumed.returncode == 0, resumed.stderr
    return folder


def launch(*words: object) -> subprocess.CompletedProcess[str]:
    """Run a program with its words in two processes."""
    return subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "--"),
            *map(str, words),
        ],
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
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
    net = two_process_training.model()
    reports: list[Progress] = []
    trained = train(
        net,
        two_process_training.loss_of(net),
        replace(two_process_training.CONFIG, accumulation=2),
        on_step=reports.append,
        validation=Validation(score=lambda _: two_process_training.scorer(net), every=8),
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
    net = two_process_training.model()
    with pytest.raises(InputError, match="is of a run with processes 2, this one has 1"):
        train(
            net,
            two_process_training.loss_of(net),
            two_process_training.CONFIG,
            checkpoint=folder / "state.pt",
            validation=Validation(score=lambda _: two_process_training.scorer(net), every=8),
        )


def test_processes_that_were_launched_but_not_joined_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    PartialState()
    monkeypatch.setenv("WORLD_SIZE", "2")
    net = two_process_training.model()
    with pytest.raises(InputError, match="2 processes were launched, but accelerate joined 1"):
        train(net, two_process_training.loss_of(net), replace(two_process_training.CONFIG, keep="last"))


def test_only_gpus_that_are_there_are_joined() -> None:
    with pytest.raises(InputError, match="no device cuda:99"), joined("cuda:99"):
        pass
    with pytest.raises(InputError, match="must be auto, cpu, cuda or"), joined("cuda:x"):
        pass


ALIGN = [
    *("align", "generation", "--quantisation", "fp32"),
    *("--batch", "4", "--rank", "2", "--few-steps", "1", "--few-step-training", "2"),
]
STEPS = ["--metaword-steps", "1", "--steps", "1", "--frozen-steps", "2"]


def within(folder: Path) -> tuple[str, str]:
    """The options that name the world in a folder."""
    return "--world", str(folder / "world")


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """A folder with a miniature of a world in it."""
    miniature(tmp_path / "world")
    return tmp_path


@pytest.mark.slow
@pytest.mark.slow
def test_the_command_line_in_two_processes_writes_the_bundle_of_one(world: Path) -> None:
    """Cloud images, prior, validation, guidance, few steps and noise map included; byte for byte, as a sum of two
    gradients has one order and halving is exact."""
    both = launch(
        launched_command_line.__file__, *ALIGN, *within(world), *STEPS, "--out", world / "two", "--log", world / "log",
        "--resume", world / "state",
    )  # fmt: skip
    assert both.returncode == 0, both.stderr
    assert both.stdout.count("wrote bundle") == 1
    assert both.stderr.count("cloud draws 4 images") == 1
    assert [path.name for path in (world / "log" / "pictures").iterdir()] == ["frozen-000002.png"]
    assert {path.name for path in world.iterdir()} == {"world", "two", "log", "state"}
    out = world / "one"
    words = [
        *ALIGN,
        *STEPS,
        "--world",
        str(world / "world"),
        "--accumulation",
        "2",
        "--device",
        "cpu",
        "--out",
        str(out),
    ]
    assert exit_code(*words) == 0
    assert {p.name: p.read_bytes() for p in out.iterdir()} == {
        p.name: p.read_bytes() for p in (world / "two").iterdir()
    }


@pytest.mark.slow
def test_what_the_main_process_cannot_read_ends_both_with_one_line(world: Path) -> None:
    both = launch(
        launched_command_line.__file__,
        *ALIGN,
        "--world",
        world / "world",
        "--images",
        world / "none",
        "--out",
        world / "two",
    )
    assert both.returncode != 0
    said = [line for line in both.stderr.splitlines() if line.startswith("dekag: ")]
    assert said == [f"dekag: {world / 'none'} is no folder; give a folder with images and their prompts"]
    assert [path.name for path in world.iterdir()] == ["world"]


@pytest.mark.gpu
def test_the_command_line_aligns_on_a_gpu(world: Path) -> None:
    words = [
        *ALIGN,
        *STEPS,
        "--world",
        str(world / "world"),
        "--precision",
        "bf16",
        "--gradient-checkpointing",
        "--device",
        "cuda",
    ]
    assert exit_code(*words, "--out", world / "one") == 0
    assert (world / "one" / "bundle.json").exists()
