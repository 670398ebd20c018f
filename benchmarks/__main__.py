"""What drawing and coding cost beside other ways, as one table of ratios: `python -m benchmarks`.

Every ratio is of ways that take turns in one process, by processor time, on one thread: median and range of `--rounds`.
`--script` adds MAKD beside diffusers' own training script (see `makd_speed.py`). A line of JSON for each ratio, with
commit, versions and processor, is added to `benchmarks/results/`.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable
from datetime import date
from importlib.metadata import version
from pathlib import Path
from time import process_time
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))
from coding import coding_ways
from drawing import drawing_ways

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "diffusers", "transformers", "peft", "onnxruntime")
LEAST_SECONDS = 0.5
Way = Callable[[], object]


def main() -> None:
    options = _arguments()
    torch.set_num_threads(1)
    rows = [
        row for ways, under in (drawing_ways(), coding_ways()) for row in ratios(ways, under, options.rounds)
    ]
    if options.script:
        rows += training_ratios(options.script, options.rounds)
    made = about()
    width = max(len(row["what"]) for row in rows)
    for row in rows:
        print(
            f"{row['what']:<{width}}  {row['ratio']:6.3f}  [{row['low']:.3f}, {row['high']:.3f}]  over {row['over']}"
        )
    if not options.dry:
        RESULTS.mkdir(exist_ok=True)
        file = RESULTS / f"{made['date']}-{made['commit']}.jsonl"
        file.write_text("".join(f"{json.dumps({**row, **made})}\n" for row in rows))
        print(f"wrote {file}")


def ratios(ways: dict[str, Way], under: dict[str, str], rounds: int) -> list[dict[str, Any]]:
    """Each way over the one that it is compared with, in the same round; the first round is not counted."""
    taken: list[dict[str, float]] = []
    for number in range(rounds + 1):
        found = {name: _seconds(way) for name, way in ways.items()}
        if number:
            taken.append(found)
    return [_row(name, other, [each[name] / each[other] for each in taken]) for name, other in under.items()]


def training_ratios(script: Path, rounds: int) -> list[dict[str, Any]]:
    """A step of diffusers' script over one of MAKD's, by processor time, both stages."""
    command = [
        sys.executable,
        "benchmarks/makd_speed.py",
        "--script",
        str(script),
        "--rounds",
        str(rounds),
        "--json",
    ]
    found = json.loads(subprocess.run(command, capture_output=True, check=True, text=True).stdout)
    return [
        {
            "what": f"MAKD, {stage}: images a second",
            "over": "diffusers' script",
            "ratio": found[name],
            "low": low,
            "high": high,
        }
        for stage, name in (("frozen stage", "ratio_cpu"), ("joint stage", "ratio_joint_cpu"))
        for low, high in [found[f"{name}_range"]]
    ]


def about() -> dict[str, Any]:
    """What the numbers depend on."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        capture_output=True,
        check=False,
        text=True,
        cwd=RESULTS.parent,
    )
    return {
        "date": date.today().isoformat(),
        "commit": commit.stdout.strip() or "unknown",
        "processor": _processor(),
        "python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    names = (
        [line for line in info.read_text().splitlines() if line.startswith("model name")]
        if info.exists()
        else []
    )
    return names[0].partition(":")[2].strip() if names else platform.processor() or platform.machine()


def _seconds(way: Way) -> float:
    """Of one call: the mean of as many as take LEAST_SECONDS together."""
    started, calls = process_time(), 0
    while (taken := process_time() - started) < LEAST_SECONDS:
        way()
        calls += 1
    return taken / calls


def _row(what: str, over: str, found: list[float]) -> dict[str, Any]:
    low, high = min(found), max(found)
    return {"what": what, "over": over, "ratio": statistics.median(found), "low": low, "high": high}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--script", type=Path, help="diffusers' train_text_to_image_lora.py")
    parser.add_argument("--dry", action="store_true", help="write no file")
    return parser.parse_args()


if __name__ == "__main__":
    main()
