"""Milliseconds per image at the edge: without KA, with MAKD, and with its update for fewer steps.

    python benchmarks/edge_speed.py

The three take turns for `--rounds` rounds; the ratios are those of one round.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch

from dekag.alignment.generation.bundles import apply_generation
from dekag.alignment.generation.update import remove_update
from dekag.generation.diffusers import DiffusersGenerator
from dekag.world import load_world, locate


def main() -> None:
    args = _arguments()
    torch.set_num_threads(args.threads)
    chosen = load_world("emoji")
    edge = chosen.edge()
    prompts = chosen.prompts("compositions")[: args.batch]
    bundle = locate(args.bundle, "bundle")
    ways: dict[str, Callable[[], float]] = {
        "no_ka": lambda: _timed(edge, prompts),
        "makd": lambda: _with_update(edge, prompts, lambda: apply_generation(edge, bundle)[0]),
        "makd_few_steps": lambda: _with_update(
            edge, prompts, lambda: apply_generation(edge, bundle, few_steps=True)[0]
        ),
    }
    for way in ways.values():
        way()
    rounds = [{name: way() for name, way in ways.items()} for _ in range(args.rounds)]
    ratios = sorted(each["makd"] / each["makd_few_steps"] for each in rounds)
    found = {
        **{f"{name}_ms": statistics.median(each[name] for each in rounds) for name in ways},
        "faster_by": statistics.median(ratios),
        "faster_by_range": [ratios[0], ratios[-1]],
    }
    print(json.dumps(found))


def _with_update(
    edge: DiffusersGenerator, prompts: list[str], apply: Callable[[], DiffusersGenerator]
) -> float:
    aligned = apply()
    milliseconds = _timed(aligned, prompts)
    remove_update(aligned)
    return milliseconds


def _timed(generator: DiffusersGenerator, prompts: list[str]) -> float:
    """Milliseconds per image of a drawing, from the prompts to the decoded pictures."""
    started = time.perf_counter()
    generator.decode(generator(prompts, seeds=list(range(len(prompts)))))
    return 1000 * (time.perf_counter() - started) / len(prompts)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--bundle", default="emoji/makd")
    parser.add_argument("--batch", type=int, default=1, help="images drawn at once")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


if __name__ == "__main__":
    main()
