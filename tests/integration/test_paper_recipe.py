"""The recipe at paper scale, from end to end, with tiny random pipelines of the same kinds."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_pipelines
from tiny_judges import save_clip, save_dinov2

RECIPE = Path(__file__).parents[2] / "recipes" / "paper"
PAIRS: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "paper": (tiny_pipelines.stable_diffusion, tiny_pipelines.pixart_sigma),
    "permissive": (tiny_pipelines.prx, tiny_pipelines.z_image),
}


def run(pair: str, out: Path, settings: dict[str, str]) -> "subprocess.CompletedProcess[str]":
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        ["bash", str(RECIPE / "run.sh"), pair, str(out)],
        env={**os.environ, "PATH": path, **settings},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`LoraLoaderMixin` is deprecated:FutureWarning")  # of PRX about itself
@pytest.mark.parametrize("pair", PAIRS)
def test_every_command_runs_and_the_table_is_there(pair: str, tmp_path: Path) -> None:
    """Twice: the second time everything that was trained is there already."""
    edge, cloud = PAIRS[pair]
    tiny_pipelines.save(tiny_pipelines.build(edge), tmp_path / "edge")
    tiny_pipelines.save(tiny_pipelines.build(cloud), tmp_path / "cloud")
    save_clip(tmp_path / "clip")
    save_dinov2(tmp_path / "dino")
    settings = {
        "EDGE": str(tmp_path / "edge"), "CLOUD": str(tmp_path / "cloud"),
        "DEVICE": "cpu", "HALF": "fp32", "TRAINED": "no", "PROMPTS": "30", "PIXELS": "16", "EDGE_STEPS": "2",
        "JUDGES": f"dino={tmp_path / 'dino'} clip={tmp_path / 'clip'}",
        "METAWORD": "1", "JOINT": "1", "FROZEN": "1", "BATCH": "2", "SUM": "1", "RANK": "2", "CODEC": "2", "CALA": "2",
        "REPORTED": "2", "DRAWS": "1",
        "SWEEP": "--methods no_ka,cala --uses 4 --snrs 10 --channels awgn --images 2 --draws 1",
    }  # fmt: skip
    done = run(pair, tmp_path / "out", settings)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "out" / "table" / "report.json").exists()
    again = run(pair, tmp_path / "out", settings)
    assert again.returncode == 0, again.stderr[-2000:]
    assert "align generation" not in again.stderr


def test_prompts_are_many_and_the_same_each_time(tmp_path: Path) -> None:
    for name in ("a", "b"):
        command = [
            sys.executable,
            str(RECIPE / "prompts.py"),
            "--count",
            "1500",
            "--out",
            str(tmp_path / name),
        ]
        subprocess.run(command, check=True)
    lines = (tmp_path / "a").read_text().splitlines()
    assert len(set(lines)) == 1500
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert max(len(line.split()) for line in lines) < 40


def test_an_unknown_pair_is_refused(tmp_path: Path) -> None:
    done = run("other", tmp_path / "out", {})
    assert done.returncode == 2
    assert done.stderr == "run.sh: the pair is paper or permissive, got other\n"
    assert not (tmp_path / "out").exists()
