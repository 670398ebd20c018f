"""`train.py`: what it refuses, and that a run that is killed and started again ends in the same files."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from random import Random

import pytest
from places import ROOT

TRAIN = ROOT / "recipes" / "emoji" / "train.py"
DATA = ROOT.parent / "shared" / "data" / "emoji"
NEEDED = ("concepts.json", "fluent3d.zip", "noto.zip", "twemoji.zip")
LONGEST = 1200
"""Seconds that no rehearsal takes, however busy the machine is."""


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """What looks like data as long as nobody reads it."""
    folder = tmp_path / "data"
    folder.mkdir()
    for name in NEEDED:
        (folder / name).touch()
    return folder


def refused(tmp_path: Path, *options: object) -> str:
    """What the recipe says of options that it refuses, before it has imported torch."""
    trap = tmp_path / "trap"
    trap.mkdir(exist_ok=True)
    (trap / "torch.py").write_text("raise SystemExit('torch was imported')\n")
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, str(TRAIN), *map(str, options)],
        env={**os.environ, "PYTHONPATH": str(trap)},
        capture_output=True,
        text=True,
    )
    assert time.monotonic() - started < 3
    assert done.returncode != 0
    assert done.stdout == ""
    assert done.stderr.startswith("train: ")
    assert done.stderr.count("\n") == 1
    return done.stderr


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ([], "either --minutes or --steps"),
        (["--minutes", 3, "--steps", 4], "either --minutes or --steps"),
        (["--minutes", -3], "must be a positive number, got -3"),
        (["--minutes", 0], "must be a positive number"),
        (["--minutes", "nan"], "must be a positive number"),
        (["--minutes", "inf"], "must be a positive number"),
        (["--minutes", "long"], "invalid float value: 'long'"),
        (["--steps", "cloud=4,fog=3"], "no stage is called fog; there are autoencoder, mini-clip"),
        (["--steps", "many"], "no stage is called many"),
        (["--steps", -4], "no stage is called -4"),
        (["--steps", "cloud"], "steps of cloud must be a number, got ''"),
        (["--steps", "cloud=-4"], "steps of cloud must be a number, got '-4'"),
        (["--steps", 4, "--device", "tpu"], "invalid choice: 'tpu'"),
        (["--steps", 4, "--pixels", 96], "invalid choice: 96"),
        (["--step", 4, "--speed", 3], "unrecognized arguments: --speed 3"),
    ],
)
def test_refused_options(tmp_path: Path, data: Path, options: list[object], sentence: str) -> None:
    said = refused(tmp_path, "--run", tmp_path / "run", "--data", data, *options)
    assert sentence in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", NEEDED)
def test_missing_data(tmp_path: Path, data: Path, name: str) -> None:
    (data / name).unlink()
    said = refused(tmp_path, "--run", tmp_path / "run", "--data", data, "--steps", 4)
    assert f"{data} has no {name}" in said
    assert "prepare.py" in said


def test_no_run_and_a_run_that_is_a_file(tmp_path: Path, data: Path) -> None:
    assert "required: --run" in refused(tmp_path, "--steps", 4)
    file = data / NEEDED[0]
    assert f"{file} is not a folder" in refused(tmp_path, "--run", file, "--data", data, "--steps", 4)


def start(folder: Path, log: Path) -> subprocess.Popen[bytes]:
    """A rehearsal of four steps a stage, in a process group of its own."""
    command = ["--rehearse", "--steps", "4", "--run", str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with log.open("ab") as out:
        return subprocess.Popen(
            [sys.executable, str(TRAIN), *command],
            env=environment,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )


def finish(process: subprocess.Popen[bytes], log: Path) -> None:
    try:
        assert process.wait(LONGEST) == 0, log.read_text()
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def killed(process: subprocess.Popen[bytes], after: float) -> bool:
    """Kill all processes of a run after some seconds; False if it had ended by itself."""
    try:
        process.wait(after)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return True
    return False


def written(folder: Path) -> dict[str, bytes]:
    """The bytes of the splits, the tokenizer and every model, by path."""
    found = [folder / "splits.json", *folder.glob("tokenizer/*"), *folder.glob("*/model/**/*")]
    return {str(p.relative_to(folder)): p.read_bytes() for p in found if p.is_file()}


@pytest.mark.slow
@pytest.mark.skipif(not DATA.exists(), reason="the emoji data are not in the repository")
def test_a_killed_run_ends_in_the_same_files(tmp_path: Path) -> None:
    """Killed after shares of the time that a whole run took, most of them within the trainings."""
    log = tmp_path / "log"
    started = time.monotonic()
    finish(start(tmp_path / "whole", log), log)
    took = time.monotonic() - started
    rng = Random(7)
    kills = sum(killed(start(tmp_path / "broken", log), took * rng.uniform(0.2, 0.7)) for _ in range(4))
    assert kills >= 2
    finish(start(tmp_path / "broken", log), log)
    whole, broken = written(tmp_path / "whole"), written(tmp_path / "broken")
    models = {name.split("/")[0] for name in whole if "/model/" in name}
    assert models == {"autoencoder", "mini-clip", "mini-dino", "cloud", "edge"}
    assert whole.keys() == broken.keys()
    assert [name for name in whole if whole[name] != broken[name]] == []
    tokenizers = [name for name in whole if name.endswith("tokenizer.json")]
    assert len({whole[name] for name in tokenizers}) == 1
    assert not [name for name, content in whole.items() if str(tmp_path).encode() in content]
