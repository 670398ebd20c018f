"""Thresholds of the digital baseline's codes for long blocks, against a published list and Shannon's limit.

    python benchmarks/ldpc.py

A threshold is the Es/N0 over AWGN at which one block in a hundred is lost. `--json` prints one line.
"""

import argparse
import json
import math
from dataclasses import asdict, dataclass

import torch

from dekag.baseline.mcs import Mcs
from dekag.baseline.measuring import CODE_GAP_DB, Rule, capacity_db, search
from dekag.baseline.thresholds import Thresholds, kind
from dekag.types import Condition

CODED_BITS = 6144
RULE = Rule(ratio=3.0, blocks=400, step_db=0.25)
"""The error rate of such blocks falls by a decade within 0.3 dB, so that a factor of 3 is 0.15 dB."""
ALLOWED_DB = 0.5


@dataclass(frozen=True, kw_only=True)
class Listed:
    """A published threshold, or the two ends of a range; bits of a symbol and code rate."""

    name: str
    bits: int
    rate: float
    low_db: float
    high_db: float


LISTED = (
    Listed(name="QPSK 1/3", bits=2, rate=1 / 3, low_db=-1.0, high_db=-1.0),
    Listed(name="QPSK 1/2", bits=2, rate=1 / 2, low_db=1.5, high_db=1.5),
    Listed(name="16-QAM 1/2", bits=4, rate=1 / 2, low_db=6.5, high_db=6.5),
    Listed(name="16-QAM 2/3", bits=4, rate=2 / 3, low_db=9.0, high_db=9.0),
    Listed(name="64-QAM 2/3", bits=6, rate=2 / 3, low_db=14.0, high_db=14.0),
    Listed(name="64-QAM 3/4", bits=6, rate=3 / 4, low_db=15.5, high_db=16.0),
)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One scheme: dB, blocks sent in all, and whether it keeps both bounds."""

    scheme: str
    measured_db: float
    listed_db: float
    from_listed_db: float
    shannon_db: float
    from_shannon_db: float
    blocks: int
    holds: bool


def main() -> None:
    args = _arguments()
    torch.set_num_threads(args.threads)
    if not args.json:
        print("scheme       Es/N0   listed  difference  Shannon  difference  blocks")
    rows = []
    for listed in LISTED:
        rows.append(row := compare(listed))
        if not args.json:
            print(
                f"{row.scheme:10s} {row.measured_db:6.2f}   {row.listed_db:6.2f}  {row.from_listed_db:+10.2f}"
                f"  {row.shannon_db:7.2f}  {row.from_shannon_db:+10.2f}  {row.blocks:6d}",
                flush=True,
            )
    print(json.dumps({"holds": all(row.holds for row in rows), "rows": [asdict(row) for row in rows]}))


def compare(listed: Listed) -> Row:
    """Measure a scheme; of a listed range, the end that is nearer counts."""
    mcs = Mcs(bits=listed.bits, rate=1024 * listed.rate)
    condition = Condition(uses=CODED_BITS // listed.bits, snr_db=0.0)
    shannon_db = capacity_db(mcs)
    points = tuple(search(condition, mcs, shannon_db + CODE_GAP_DB / 2, rule=RULE))
    name = kind(condition)
    measured_db = Thresholds(measured={name: {mcs.name: points}}).threshold_db(name, mcs)
    listed_db = min(max(measured_db, listed.low_db), listed.high_db)
    assert math.isfinite(measured_db)
    return Row(
        scheme=listed.name,
        measured_db=measured_db,
        listed_db=listed_db,
        from_listed_db=measured_db - listed_db,
        shannon_db=shannon_db,
        from_shannon_db=measured_db - shannon_db,
        blocks=sum(point.blocks for point in points),
        holds=measured_db > shannon_db and abs(measured_db - listed_db) <= ALLOWED_DB,
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="print the last line alone")
    return parser.parse_args()


if __name__ == "__main__":
    main()
