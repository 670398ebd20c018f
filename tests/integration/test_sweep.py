"""Sweeps end in the same bytes however they are interrupted and wherever their cells are computed."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from missing_packages import complaint, complaints
from typer.testing import CliRunner

from dekag.channel import BlockFading, ChannelSettings, named_channel
from dekag.cli import app
from dekag.evaluation.grid import CHANNELS, Grid, read_grid
from dekag.evaluation.statistics import mean_interval
from dekag.tasks import sweep
from dekag.tasks.sweep.cells import Cell, channel_seed, read_result
from dekag.tasks.sweep.engines import Work, engine_named
from dekag.tasks.sweep.methods import CodecMethod, further_codec
from dekag.tasks.sweep.results import mean_of
from dekag.tasks.sweep.run import SweepConfig
from dekag.types import Condition, InputError, Received, Symbols
from dekag.world import load_world, shipped

TINY = Grid(uses=(64,), snrs_db=(-5.0, 14.0), channels=(CHANNELS["awgn"],))
CONFIG = SweepConfig(
    world=load_world("emoji"), grid=TINY, images=2, draws=16, methods=("no_ka", "cala", "digital", "jpeg")
)
FILES = ("results.jsonl", "results.parquet", "summary.json", "transmission.png", "transmission_latent.png")


def run(config: SweepConfig, out: Path, engine: sweep.Engine | None = None) -> sweep.Outcome:
    return sweep.sweep(config, out, engine or sweep.Inline(), on_stage=lambda _: None)


def contents(folder: Path) -> dict[str, bytes]:
    """Every finished cell."""
    return {path.name: path.read_bytes() for path in (folder / "cells").glob("*.json")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished sweep with its files."""
    out = tmp_path_factory.mktemp("sweep")
    sweep.write(run(CONFIG, out), out)
    return out


@pytest.fixture(scope="module")
def outcome(folder: Path) -> sweep.Outcome:
    return run(CONFIG, folder)


def test_a_finished_sweep_computes_nothing(folder: Path, outcome: sweep.Outcome, tmp_path: Path) -> None:
    assert outcome.computed == 0
    assert len(outcome.results) == 2 * 4
    sweep.write(outcome, tmp_path)
    for name in FILES:
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


WORDS = [
    *("evaluate", "transmission", "--images", "2", "--draws", "16", "--uses", "64", "--snrs=-5,14"),
    *("--channels", "awgn", "--methods", "no_ka,cala,digital,jpeg"),
]
"""The command that is CONFIG."""


def test_the_command_prints_the_summary(folder: Path, tmp_path: Path) -> None:
    out = copied(folder, tmp_path)
    told = CliRunner().invoke(app, [*WORDS, "--out", str(out), "--json"])
    assert told.exit_code == 0
    assert json.loads(told.stdout) == json.loads((folder / "summary.json").read_text())
    printed = CliRunner().invoke(app, [*WORDS, "--out", str(out)])
    for text in (
        "Mean over the grid, 4 images, 8 cells",
        "Distance to the Gaussian reference",
        "cala beats digital in",
    ):
        assert text in printed.stdout
    for name in FILES:
        assert (out / name).read_bytes() == (folder / name).read_bytes()


def test_a_larger_sweep_computes_what_is_new(folder: Path, tmp_path: Path) -> None:
    out = copied(folder, tmp_path)
    before = contents(out)
    more = replace(CONFIG, grid=replace(TINY, snrs_db=(-5.0, 8.0, 14.0)), methods=("no_ka", "cala"))
    assert run(more, out).computed == 2
    assert before.items() <= contents(out).items()


def copied(folder: Path, out: Path) -> Path:
    """The same latents and cells elsewhere."""
    for part in ("latents", "cells"):
        (out / part).mkdir(parents=True)
        for path in (folder / part).iterdir():
            (out / part / path.name).write_bytes(path.read_bytes())
    return out


@pytest.mark.slow
def test_a_killed_run_goes_on_where_it_was(folder: Path, tmp_path: Path) -> None:
    """SIGKILL after the first cells: the second run repeats none of them and ends in the same files.

    What the edge drew is given, since a sum of other threads than the first run's would have other last bits.
    """
    for path in (copied(folder, tmp_path) / "cells").iterdir():
        path.unlink()
    command = [sys.executable, "-m", "dekag", *WORDS, "--out", str(tmp_path)]
    first = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 500
    while len(contents(tmp_path)) < 3 and first.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(first.pid, signal.SIGKILL)
    assert first.wait() == -signal.SIGKILL
    done = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "cells").glob("*.json")}
    assert 3 <= len(done) < 8
    second = run(CONFIG, tmp_path)
    assert second.computed == 8 - len(done)
    assert {name: (tmp_path / "cells" / name).stat().st_mtime_ns for name in done} == done
    sweep.write(second, tmp_path)
    for name in FILES:
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


ENGINES: dict[str, Any] = {
    "processes": lambda out: sweep.Processes(workers=2),
    "slurm": lambda out: sweep.Slurm(workers=2, folder=out / "jobs", minutes=20, cluster="local"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["processes", "slurm"])
def test_every_engine_gives_the_same_bytes(name: str, folder: Path, tmp_path: Path) -> None:
    """Slurm's jobs are local processes here, which submitit starts as it would start those of a cluster."""
    expected = contents(folder)
    out = copied(folder, tmp_path)
    for path in (out / "cells").iterdir():
        path.unlink()
    assert run(CONFIG, out, ENGINES[name](out)).computed == 8
    assert contents(out) == expected


@pytest.mark.slow
def test_ray_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    """On a cluster of this machine alone, in a process of its own: Ray leaves threads and sockets behind."""
    out = copied(folder, tmp_path)
    expected = contents(folder)
    for path in (out / "cells").iterdir():
        path.unlink()
    code = (
        "import sys, ray; ray.init(num_cpus=2, include_dashboard=False, _node_ip_address='127.0.0.1');"
        "from dekag.cli import main; main()"
    )
    words = [*WORDS, "--out", str(out), "--engine", "ray", "--workers", "2"]
    command = [sys.executable, "-c", code, *words]
    # Ray's workers otherwise give way to whatever else runs here
    env = {**os.environ, "RAY_worker_niceness": "0"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stderr
    assert contents(out) == expected


@pytest.mark.slow
def test_ray_that_is_not_there_is_named() -> None:
    code = "from dekag.tasks.sweep.engines import RayCluster\nnext(iter(RayCluster(workers=1)(None, ())))"
    assert "there is no Ray at 'auto': ray start --head starts one" in complaint(code, missing=[])


@pytest.mark.slow
def test_workers_end_with_the_process_that_started_them(tmp_path: Path) -> None:
    code = (
        "import time, sys\n"
        "from concurrent.futures import ProcessPoolExecutor\n"
        "import multiprocessing, os\n"
        "from dekag.tasks.sweep.engines import _end_with_parent\n"
        "pool = ProcessPoolExecutor(1, multiprocessing.get_context('spawn'), initializer=_end_with_parent)\n"
        "print(pool.submit(os.getpid).result(), flush=True)\n"
        "time.sleep(600)\n"
    )
    script = tmp_path / "parent.py"
    script.write_text("if __name__ == '__main__':\n" + "".join(f"    {line}\n" for line in code.splitlines()))
    parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    worker = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 60
    while is_running(worker) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_running(worker)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


DAMAGE = {
    "truncated": (lambda text, other: text[: len(text) // 2], "cut off"),
    "empty": (lambda text, other: "", "cut off"),
    "no cell": (lambda text, other: "[1, 2]", "cut off"),
    "another cell": (lambda text, other: other, "another cell than its name says"),
    "an image less": (lambda text, other: json.dumps(shortened(json.loads(text))), "does not hold 4 finite"),
}


def shortened(content: dict[str, Any]) -> dict[str, Any]:
    return {**content, "values": {name: row[1:] for name, row in content["values"].items()}}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_cell_is_named(case: str, folder: Path, outcome: sweep.Outcome, tmp_path: Path) -> None:
    one, other = (result.cell for result in outcome.results[:2])
    texts = [(folder / "cells" / f"{cell.key}.json").read_text() for cell in (one, other)]
    damage, text = DAMAGE[case]
    (tmp_path / f"{one.key}.json").write_text(damage(*texts))
    with pytest.raises(InputError, match=text) as caught:
        read_result(tmp_path, one, images=4)
    assert f"{one.key}.json" in str(caught.value)
    assert "\n" not in str(caught.value)


@dataclass(frozen=True)
class Watched:
    """Block fading that notes what it adds to the symbols, and under which gains."""

    def __call__(self, symbols: Symbols, condition: Condition, *, rng: torch.Generator) -> Received:
        received = BlockFading()(symbols, condition, rng=rng)
        SEEN.append((received.state.gain, received.symbols - received.state.gain * symbols))
        return received


SEEN: list[tuple[torch.Tensor, torch.Tensor]] = []


def test_all_methods_meet_the_same_gains_and_noise(folder: Path, tmp_path: Path) -> None:
    SEEN.clear()
    watched = replace(CHANNELS["awgn"], name="watched", channel=Watched())  # type: ignore[type-var]
    grid = replace(TINY, channels=(watched,), snrs_db=(14.0,))
    run(replace(CONFIG, grid=grid), copied(folder, tmp_path))
    assert len(SEEN) == 4
    for gain, noise in SEEN[1:]:
        assert torch.equal(gain, SEEN[0][0])
        assert torch.allclose(noise, SEEN[0][1], atol=1e-5)
    assert SEEN[0][1].abs().mean() > 0.1


def test_every_condition_has_a_seed_of_its_own(outcome: sweep.Outcome) -> None:
    seeds: dict[str, set[int]] = {}
    for result in outcome.results:
        seeds.setdefault(result.cell.point.name, set()).add(result.cell.channel_seed)
    assert all(len(found) == 1 for found in seeds.values())
    assert len(set.union(*seeds.values())) == len(seeds)
    point = outcome.results[0].cell.point
    assert channel_seed(0, point) != channel_seed(1, point)


@dataclass(frozen=True)
class Scaled:
    """Block fading at half the amplitude: a channel that the package does not know."""

    amplitude: float = 0.5

    def __call__(self, symbols: Symbols, condition: Condition, *, rng: torch.Generator) -> Received:
        received = BlockFading()(symbols, condition, rng=rng)
        return replace(received, symbols=self.amplitude * received.symbols)


def test_any_channel_can_be_measured(folder: Path, tmp_path: Path) -> None:
    """Its results are its own: the key holds the channel's description."""
    awgn = CHANNELS["awgn"]
    other = replace(awgn, name="scaled", channel=Scaled())  # type: ignore[type-var]
    grid = replace(TINY, channels=(awgn, other), snrs_db=(14.0,))
    found = run(replace(CONFIG, grid=grid, methods=("no_ka",)), copied(folder, tmp_path))
    assert found.computed == 1
    plain, scaled = (np.mean(result.values["weighted_snr_db"]) for result in found.results)
    assert scaled < plain


def test_values_are_those_of_the_metrics(outcome: sweep.Outcome) -> None:
    """Counts, ranges and what one metric says of another."""
    for result in outcome.results:
        values = result.values
        assert all(len(row) == 4 for row in values.values())
        assert all(-1 <= value <= 1 for name in ("ssim", "dino", "clip") for value in values[name])
        assert ("latent_nmse" in values) == (result.cell.method != "jpeg")
        assert ("arrived" in values) == (result.cell.method in ("digital", "jpeg"))
    by_name = {(r.cell.method, r.cell.point.snr_db): r for r in outcome.results}
    # the lowest rate loses more than half of its blocks at -5 dB and 64 uses, and what arrives is worth it
    faint = by_name["digital", -5.0]
    assert faint.cell.constellation == "qpsk 251 polar"
    assert faint.values["sent"] == (1.0,) * 4
    heard = by_name["digital", 14.0]
    assert heard.values["arrived"] == (1.0,) * 4
    assert np.mean(heard.values["psnr_db"]) > np.mean(faint.values["psnr_db"])


def test_a_mean_latent_snr_is_the_level_of_the_mean_error() -> None:
    """Errors 1/10 and 1/1000 have the mean 0.0505, 12.967 dB; the mean of the levels would be 20 dB."""
    assert mean_of("weighted_snr_db", (10.0, 30.0)).mean == pytest.approx(-10 * np.log10(0.0505))
    assert mean_of("psnr_db", (10.0, 30.0)).mean == 20.0


def test_the_summary_is_what_the_results_say(outcome: sweep.Outcome) -> None:
    """Means and gains from the values alone, another way; the duel counts the cells below 10 dB."""
    summary = sweep.summarise(outcome)
    rows = {(r.cell.method, r.cell.point.snr_db): np.array(r.values["psnr_db"]) for r in outcome.results}
    gain = np.mean([rows["cala", snr] - rows["no_ka", snr] for snr in TINY.snrs_db], axis=0)
    found = summary.methods["cala"].gains
    assert found is not None
    assert found.overall.mean == pytest.approx(gain.mean())
    assert found.overall.low == pytest.approx(mean_interval(gain).low)
    worst = min(TINY.snrs_db, key=lambda snr: (rows["cala", snr] - rows["no_ka", snr]).mean())
    assert found.worst[0] == f"awgn 64 uses {worst:g} dB"
    (duel,) = (duel for duel in summary.duels if duel.rival == "digital")
    assert (duel.cells, duel.won) == (1, int((rows["cala", -5.0] - rows["digital", -5.0]).mean() > 0))
    assert summary.methods["digital"].silent == 0
    assert summary.methods["no_ka"].gains is None
    json.dumps(summary.to_json(), allow_nan=False)


def test_results_hold_every_cell_and_every_image(folder: Path) -> None:
    import pyarrow.parquet

    lines = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    cells = [line for line in lines if line["method"] != "bound"]
    assert len(cells) == 8
    assert sum(line["method"] == "bound" for line in lines) == 2
    table = pyarrow.parquet.read_table(folder / "results.parquet").to_pylist()
    for cell in cells:
        for metric, mean in cell["metrics"].items():
            values = [
                row["value"]
                for row in table
                if all(row[k] == cell[k] for k in ("method", "snr_db")) and row["metric"] == metric
            ]
            assert len(values) == cell["n"] == 4
            assert mean["mean"] == mean_of(metric, tuple(values)).mean


def test_bounds_of_a_channel_without_fading_are_one(outcome: sweep.Outcome) -> None:
    for row in outcome.bounds:
        assert row.informed_db == pytest.approx(row.ergodic_db) == pytest.approx(row.outage_db)
        assert row.draws == 16
    summary = sweep.summarise(outcome)
    assert set(summary.methods["cala"].to_bound) == {"-5", "14"}
    assert summary.methods["jpeg"].to_bound == {}


@dataclass(frozen=True)
class Failing:
    """An engine that is told of no cell."""

    def __call__(self, work: Work, cells: Sequence[Cell]) -> Iterator[str]:
        raise AssertionError("wrong input must be found before the first cell")


BAD: dict[str, tuple[Any, str]] = {
    "unknown method": (lambda: replace(CONFIG, methods=("no_ka", "magic")), "unknown method 'magic'"),
    "a method twice": (lambda: replace(CONFIG, methods=("no_ka", "no_ka")), "distinct names"),
    "no draws": (lambda: replace(CONFIG, draws=0), "at least 8 draws"),
    "too many uses": (
        lambda: replace(CONFIG, methods=("no_ka",), draws=0, grid=replace(TINY, uses=(5000,))),
        "at most",
    ),
    "no bundle": (
        lambda: replace(CONFIG, methods=("cala",), world=CONFIG.world.with_bundles(["/no/such"])),
        "unknown bundle",
    ),
    "no directory": (lambda: replace(CONFIG, codecs=("mine=/no/such",)), "neither a codec"),
    "unknown grid": (lambda: read_grid("tiny"), "known are held-out, full, small"),
    "unknown channel": (lambda: read_grid("small", channels="awgn,rician"), "unknown channel 'rician'"),
    "unknown constellation": (lambda: read_grid("small", constellations="8psk"), "unknown constellation"),
    "uses in words": (lambda: read_grid("small", uses="many"), "whole numbers"),
    "an SNR twice": (lambda: read_grid("small", snrs="0,0"), "distinct SNRs"),
    "unknown engine": (
        lambda: engine_named("cloud", workers=1, folder=Path(), minutes=1, partition=None, address="auto"),
        "known are inline, processes, ray, slurm",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_wrong_input_is_found_before_any_cell(case: str, tmp_path: Path) -> None:
    make, text = BAD[case]
    with pytest.raises(InputError, match=text):
        run(make(), tmp_path, Failing())
    assert not (tmp_path / "cells").exists()


@pytest.mark.slow
def test_extras_that_are_not_there_are_named() -> None:
    said = complaints(
        "from dekag.tasks.sweep import engines\nnext(iter(engines.RayCluster(workers=1)(None, ())))",
        "next(iter(engines.Slurm(workers=1, folder=None)(None, ())))",
        "from dekag.tasks.sweep.bench import load_lpips\nload_lpips('cpu')",
        missing=["ray", "submitit", "lpips"],
    )
    for line, extra in zip(said, ("sweep", "sweep", "lpips"), strict=True):
        assert f"pip install 'dekag[{extra}]'" in line


def test_further_codecs_and_constellations(folder: Path, tmp_path: Path) -> None:
    """A copy of the shipped codec gives its numbers under another name; constellations have rows of their own."""
    for path in shipped("emoji/codec").iterdir():
        (tmp_path / "copy").mkdir(exist_ok=True)
        (tmp_path / "copy" / path.name).write_bytes(path.read_bytes())
    bundle = shipped("emoji/cala")
    config = replace(
        CONFIG,
        methods=("no_ka", "cala"),
        codecs=(f"copy={tmp_path / 'copy'}", f"again={bundle}"),
        grid=replace(TINY, snrs_db=(14.0,), constellations=("qpsk", "256qam")),
    )
    out = copied(folder, tmp_path / "out")
    found = {(r.cell.method, r.cell.constellation): r for r in run(config, out).results}
    for name, same in (("copy", "no_ka"), ("again", "cala")):
        for constellation in ("qpsk", "256qam"):
            assert found[name, constellation].values == found[same, constellation].values
    assert found["no_ka", "qpsk"].values != found["no_ka", "256qam"].values
    assert {r.cell.label for r in found.values()} >= {"no_ka qpsk", "again 256qam"}
    base = shipped("emoji/codec")
    assert further_codec(f"copy={tmp_path / 'copy'}", base) == CodecMethod(
        name="copy", codec=tmp_path / "copy"
    )


def test_a_grid_knows_ofdm_profiles_by_name() -> None:
    """As `dekag deliver` does: the same channel, and a condition that pays for the pilots."""
    (point,) = read_grid("small", uses="128", snrs="5", channels="tdl-c").points()
    named = named_channel(ChannelSettings(name="tdl-c"))
    assert (point.medium, point.family) == (named.channel, "ofdm")
    assert point.physics()["pilots"] == int(named.condition(128, 5.0).pilots) > 0
    assert int(point.condition.uses) <= 128
    with pytest.raises(InputError, match=r"known are awgn.*tdl-a.*cdl-e"):
        read_grid("small", channels="tdl-z")
