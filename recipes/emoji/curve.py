"""Consistency against bytes: `python recipes/emoji/curve.py BUNDLE ...`; prints JSON.

Every bundle draws the held-out prompts of both splits with one seed, beside the edge without KA and the ceiling.
"""

import argparse
import json
from dataclasses import asdict, dataclass

from dekag import presets, zoo
from dekag.comparison import SPLITS, Arm, bundle_bytes, compare, judges
from dekag.evaluation.generation import score_generation


@dataclass(frozen=True, kw_only=True)
class Point:
    """One bundle on one split."""

    bundle: str
    split: str
    bytes: int
    gain_percent: dict[str, float | int | None]
    way_to_ceiling: dict[str, float | int | None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundles", nargs="+")
    parser.add_argument("--domain", help="prompts of one domain alone")
    options = parser.parse_args()
    chosen = presets.emoji()
    known = judges(chosen)
    arms = {"no_ka": Arm(), **{bundle: Arm(bundles=(bundle,)) for bundle in options.bundles}}
    suffix = f":{options.domain}" if options.domain else ""
    texts = {split: zoo.prompts("emoji", split + suffix) for split in SPLITS}
    found = compare(presets.cloud(chosen), presets.edge(chosen), arms, texts, seeds=1)
    sizes = bundle_bytes(arms)
    points = []
    for split, compared in found.items():
        scores = score_generation(compared.drawn, known)
        points += [
            Point(
                bundle=bundle,
                split=split,
                bytes=sizes[bundle],
                gain_percent=scores.gain_percent[bundle].to_json(),
                way_to_ceiling=scores.way_to_ceiling[bundle].to_json(),
            )
            for bundle in options.bundles
        ]
    print(json.dumps([asdict(point) for point in points], indent=1))


if __name__ == "__main__":
    main()
