"""Images per second of MAKD against diffusers' text-to-image LoRA script on one model, data set and machine.

    python benchmarks/makd_speed.py --script train_text_to_image_lora.py

The two trainings take turns, each in a process of its own. What is measured, and what is not, is in README.md.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

from small_diffusion import write_data, write_model

HERE = Path(__file__).parent
Run = dict[str, Any]
"""What `subject.py` wrote: ends of steps by clock, the stage of each, seconds in transforms."""
CLOCKS = {"wall": "", "work": "_cpu"}
"""Clock of the step times: what goes behind its names in the result."""


def main() -> None:
    args = _arguments()
    if not args.script.is_file():
        sys.exit(f"there is no {args.script}; README.md says where the script comes from")
    with tempfile.TemporaryDirectory() as folder:
        parameters = write_model(Path(folder) / "model")
        write_data(Path(folder) / "data")
        runs = [
            {name: _run(name, Path(folder), number, args) for name in ("dekag", "diffusers")}
            for number in range(args.rounds)
        ]
    found = _summary(runs, args)
    print(json.dumps(found) if args.json else _table(found, parameters))


def _run(name: str, world: Path, number: int, args: argparse.Namespace) -> Run:
    """One training; what `subject.py` wrote about it."""
    out = world / f"{name}-{number}.json"
    numbers = {k: getattr(args, k) for k in ("batch", "rank", "threads")} | {
        "steps": args.warmup + args.steps
    }
    words = [word for key, value in numbers.items() for word in (f"--{key}", str(value))]
    subprocess.run(
        [
            sys.executable,
            HERE / "subject.py",
            name,
            "--world",
            world,
            "--out",
            out,
            "--script",
            args.script,
            *words,
        ],
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=None if args.verbose else subprocess.DEVNULL,
        env=os.environ | {"OMP_NUM_THREADS": str(args.threads), "HF_HUB_OFFLINE": "1"},
    )
    print(f"round {number + 1} of {args.rounds}: {name} done", file=sys.stderr)
    found: Run = json.loads(out.read_text())
    return found


def _summary(runs: list[dict[str, Run]], args: argparse.Namespace) -> dict[str, object]:
    found: dict[str, object] = {}
    for clock, suffix in CLOCKS.items():
        rates = {
            stage: [_rate(run[name], stage, clock, args) for run in runs]
            for name, stage in (("dekag", "joint"), ("dekag", "frozen"), ("diffusers", "script"))
        }
        ratios = {
            stage: [ours / theirs for ours, theirs in zip(rates[stage], rates["script"], strict=True)]
            for stage in ("joint", "frozen")
        }
        found |= {
            f"ours_images_per_s{suffix}": statistics.median(rates["frozen"]),
            f"ours_joint_images_per_s{suffix}": statistics.median(rates["joint"]),
            f"diffusers_images_per_s{suffix}": statistics.median(rates["script"]),
            f"ratio{suffix}": statistics.median(ratios["frozen"]),
            f"ratio_range{suffix}": [min(ratios["frozen"]), max(ratios["frozen"])],
            f"ratio_joint{suffix}": statistics.median(ratios["joint"]),
            f"ratio_joint_range{suffix}": [min(ratios["joint"]), max(ratios["joint"])],
        }
    shares = [_transforms_share(run["diffusers"]) for run in runs if "transforms" in run["diffusers"]]
    return found | {"transforms_share": statistics.median(shares) if shares else None}


def _rate(run: Run, stage: str, clock: str, args: argparse.Namespace) -> float:
    """Images per second at the median step of a stage, after its first `warmup` steps."""
    ends = [end for end, name in zip(run[clock], run["stages"], strict=True) if name == stage]
    steps = [after - before for before, after in pairwise(ends)]
    rate: float = args.batch / statistics.median(steps[args.warmup - 1 :])
    return rate


def _transforms_share(run: Run) -> float:
    """What the stand-in for torchvision takes of the script's steps, at most: its time over the steps'."""
    share: float = run["transforms"] / (run["wall"][-1] - run["wall"][0])
    return share


def _table(found: dict[str, object], parameters: dict[str, int]) -> str:
    total = sum(parameters.values())
    shares = ", ".join(f"{name} {count / total:.0%}" for name, count in parameters.items())
    rows = [f"{name:32s} {json.dumps(value)}" for name, value in found.items()]
    return "\n".join([f"{total / 1e6:.1f} M parameters: {shares}", *rows])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--script", type=Path, required=True, help="train_text_to_image_lora.py of diffusers")
    parser.add_argument("--rounds", type=int, default=3, help="how often both run")
    parser.add_argument("--steps", type=int, default=8, help="optimiser steps that count, per run and stage")
    parser.add_argument("--warmup", type=int, default=2, help="steps before those, at least 1")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="one line of JSON")
    parser.add_argument("--verbose", action="store_true", help="let the trainings speak")
    return parser.parse_args()


if __name__ == "__main__":
    main()
