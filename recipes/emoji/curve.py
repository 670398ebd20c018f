"""Consistency against bytes: `python recipes/emoji/curve.py BUNDLE[,BUNDLE...] ...`; prints JSON.

An argument is one method at one size: its bundles, one for each training seed, or updates that
`methods.py` kept as NAME.pt, which have no bytes. Each draws the prompts of the splits, beside the edge without KA and
the ceiling. With `--figure`, the gap closed over the bytes is drawn as well, a line for each method.
"""

import argparse
import json
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from dekag.alignment.generation.bundles import apply_generation
from dekag.alignment.generation.update import apply_update, remove_update
from dekag.bundle.bundle import load_bundle
from dekag.evaluation.figures import save_figure
from dekag.evaluation.generation import EDGE_SEED, Drawn, draw, score_generation
from dekag.generation.diffusers import DiffusersGenerator
from dekag.tasks.compare import draw_references
from dekag.types import Image
from dekag.world import load_world, locate

Numbers = dict[str, float | int | None]


@dataclass(frozen=True, kw_only=True)
class Point:
    """One method at one size, on one split."""

    name: str
    split: str
    bytes: int | None
    gain_percent: Numbers
    gap_closed: Numbers
    by_training_seed: list[float]


@contextmanager
def aligned(edge: DiffusersGenerator, source: str) -> Iterator[DiffusersGenerator]:
    """The edge with a bundle, or with an update as `methods.py` keeps it."""
    if source.endswith(".pt"):
        generator = apply_update(edge, torch.load(source, weights_only=False))
    else:
        generator, _ = apply_generation(edge, locate(source, "bundle"))
    yield generator
    remove_update(generator)


def size(source: str) -> int | None:
    """Bytes that a bundle draws with."""
    return None if source.endswith(".pt") else load_bundle(locate(source, "bundle")).drawn_bytes()


def name_of(sources: Sequence[str]) -> str:
    """The name of the first of a method's bundles, without its training seed."""
    return re.sub(r"-\d+(?=-int|-fp|$)", "", Path(sources[0]).stem)


def points(
    methods: Sequence[Sequence[str]], splits: Sequence[str], *, seeds: int, domain: str | None
) -> list[Point]:
    """Score every method on every split."""
    chosen = load_world("emoji")
    edge, known = chosen.edge(), chosen.judges()
    texts = {split: chosen.prompts(f"{split}:{domain}" if domain else split) for split in splits}
    first = list(range(seeds))
    references = draw_references(chosen.cloud(), texts, first)
    at_edge = [EDGE_SEED + i for i in first]
    drawings: dict[str, dict[str, list[Image]]] = {
        split: {"no_ka": [draw(edge, prompts, at_edge)]} for split, prompts in texts.items()
    }
    for sources in methods:
        for source in sources:
            with aligned(edge, source) as generator:
                for split, prompts in texts.items():
                    images = draw(generator, prompts, at_edge)
                    drawings[split].setdefault(name_of(sources), []).append(images)
    found = []
    for split, prompts in texts.items():
        drawn = Drawn(
            prompts=torch.arange(len(prompts)).repeat_interleave(seeds),
            cloud=references[split].cloud,
            ceiling=references[split].ceiling,
            by_method=drawings[split],
        )
        scores = score_generation(drawn, known)
        found += [
            Point(
                name=name_of(sources),
                split=split,
                bytes=size(sources[0]),
                gain_percent=scores.gain_percent[name_of(sources)].to_json(),
                gap_closed=scores.gap_closed[name_of(sources)].to_json(),
                by_training_seed=scores.by_training_seed[name_of(sources)],
            )
            for sources in methods
        ]
    return found


def _distance(mean: Numbers, end: str) -> float:
    """From a mean to an end of its interval; NaN, which is not drawn, where that is infinite."""
    middle, reached = mean["mean"], mean[end]
    return math.nan if middle is None or reached is None else abs(middle - reached)


def figure(found: Sequence[Point], path: Path) -> None:
    """The gap closed over the bytes; methods without bytes are levels."""
    from matplotlib.figure import Figure

    splits = list(dict.fromkeys(point.split for point in found))
    sheet = Figure(figsize=(5 * len(splits), 4), layout="constrained")
    for panel, split in zip(
        sheet.subplots(1, len(splits), sharey=True, squeeze=False)[0], splits, strict=True
    ):
        lines: dict[str, list[Point]] = {}
        for point in found:
            if point.split == split:
                lines.setdefault(re.split(r"[@-]", point.name)[0], []).append(point)
        for method, line in lines.items():
            line.sort(key=lambda point: point.bytes or 0)
            way = [point.gap_closed for point in line]
            means = [each["mean"] for each in way]
            if line[0].bytes is None:
                panel.axhline(means[0], color="0.5", linestyle=":", label=method)
                continue
            ends = [[_distance(each, end) for each in way] for end in ("low", "high")]
            kilobytes = [(point.bytes or 0) / 1000 for point in line]
            panel.errorbar(kilobytes, means, yerr=ends, marker="o", capsize=3, label=method)
        panel.set(xscale="log", title=split, xlabel="update, kB")
        panel.grid(alpha=0.3)
    panel.legend()
    sheet.axes[0].set_ylabel("way from no KA to the ceiling")
    save_figure(sheet, path)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("methods", nargs="*", help="bundles of one method, separated by commas")
    parser.add_argument("--domain", help="prompts of one domain alone")
    parser.add_argument("--splits", default="compositions,concepts")
    parser.add_argument("--seeds", type=int, default=1, help="drawings of each prompt")
    parser.add_argument("--points", type=Path, nargs="*", default=[], help="points of earlier runs")
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    found = [Point(**point) for path in options.points for point in json.loads(path.read_text())]
    methods = [argument.split(",") for argument in options.methods]
    if methods:
        found += points(methods, options.splits.split(","), seeds=options.seeds, domain=options.domain)
    if options.figure:
        figure(found, options.figure)
    print(json.dumps([asdict(point) for point in found], indent=1))


if __name__ == "__main__":
    main()
