"""Measure block error rates: `python -m dekag.baseline --uses 64,128 --out thresholds.json`.

Kinds are all combinations of uses, blocks (0 is AWGN, -1 one block a use), correlations and pilots that exist.
An interrupted run goes on where it stopped; what the table holds, or one that is taken over, is not measured
again. Several processes may measure into tables of their own: `--take a.json,b.json` then puts them together.
"""

import argparse
import sys
from importlib.metadata import version
from itertools import product
from pathlib import Path

from dekag.baseline.measuring import extend_table
from dekag.baseline.thresholds import SHIPPED
from dekag.types import Condition, InputError
from dekag.version import __version__


def main() -> None:
    """Measure what the options name."""
    parser = argparse.ArgumentParser(
        prog="python -m dekag.baseline",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--uses", default="64,128,192,256,512")
    parser.add_argument("--blocks", default="0,1,4,8,-1")
    parser.add_argument("--correlations", default="0")
    parser.add_argument("--pilots", default="0")
    parser.add_argument("--take", type=lambda text: [Path(part) for part in text.split(",")], default=[])
    parser.add_argument("--out", type=Path, default=SHIPPED)
    options = parser.parse_args()
    lists = (
        [float(part) for part in text.split(",")]
        for text in (options.uses, options.blocks, options.correlations, options.pilots)
    )
    conditions = [condition for numbers in product(*lists) for condition in _condition(*numbers)]
    versions = {"dekag": __version__, **{name: version(name) for name in ("torch", "sionna-no-rt")}}
    made_by = "python -m dekag.baseline, " + ", ".join(
        f"{name} {number}" for name, number in versions.items()
    )
    extend_table(
        options.out,
        conditions,
        taken=options.take,
        made_by=made_by,
        report=lambda line: print(line, flush=True),
    )


def _condition(uses: float, blocks: float, correlation: float, pilots: float) -> list[Condition]:
    """The condition of these numbers, or none if they repeat another or the pilots leave no payload."""
    if (blocks in (0, 1) and correlation) or (blocks == 0 and pilots):
        return []
    count = int(uses if blocks < 0 else blocks)
    if count * (pilots + 1) > uses:
        return []
    return [
        Condition(
            uses=int(uses),
            snr_db=0,
            rayleigh=count > 0,
            blocks=max(count, 1),
            correlation=correlation,
            pilots=int(pilots),
        )
    ]


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(str(error))
