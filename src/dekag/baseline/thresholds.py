"""Block error rates, measured: from which SNR on a scheme holds, on the channel that it will be used on."""

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from dekag.baseline.code import ITERATIONS
from dekag.baseline.mcs import Mcs
from dekag.types import Condition, InputError
from dekag.wire.files import write_bytes

TARGET = 1e-2
"""Largest block error rate at which a scheme is used."""
LOWEST_DB, HIGHEST_DB = -12.0, 21.0
"""Where thresholds are looked for; some tables reach further up."""
SHIPPED = Path(__file__).with_name("thresholds.json")


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """Blocks sent at an SNR, and how many of them were lost: CRC failed or bits wrong."""

    snr_db: float
    blocks: int
    errors: int

    @property
    def passes(self) -> bool:
        """Whether the rate is at most the target."""
        return self.errors <= TARGET * self.blocks


@dataclass(frozen=True, kw_only=True, eq=False)
class Thresholds:
    """Measurements by scheme, for each kind of transmission as `kind` names it.

    A scheme without any has a threshold beyond HIGHEST_DB, as one of more redundancy had.
    """

    measured: dict[str, dict[str, tuple[Measurement, ...]]]

    def threshold_db(self, kind_name: str, mcs: Mcs) -> float:
        """SNR from which on the block error rate is at most the target; infinite if no measurement passed.

        Between the last failing and the first passing measurement, log error rate is taken as linear.
        """
        points = sorted(self.measured[kind_name][mcs.name], key=lambda point: point.snr_db)
        first = next((number for number, point in enumerate(points) if point.passes), None)
        if first is None:
            return math.inf
        above = points[first]
        if first == 0:
            return above.snr_db
        below = points[first - 1]
        # half a block where none was lost, since its logarithm is needed
        low, high = (math.log(max(point.errors, 0.5) / point.blocks) for point in (below, above))
        share = (low - math.log(TARGET)) / (low - high)
        return below.snr_db + share * (above.snr_db - below.snr_db)


def kind(condition: Condition) -> str:
    """Everything but the SNR that the error rate of one image's block depends on, in words.

    The receiver undoes the phase of the gains, so that their phase profile does not matter.
    """
    if len(condition) != 1:
        raise InputError(f"the kind of one transmission was asked for, got {len(condition)}")
    payload = int(condition.payload)
    if not bool(condition.rayleigh):
        return f"awgn {payload} uses"
    blocks, pilots, correlation = int(condition.blocks), int(condition.pilots), float(condition.correlation)
    text = f"rayleigh {payload} uses {blocks} blocks"
    if blocks > 1 and correlation > 0:
        text += f" correlation {correlation:.3g}"
    return text + (f" {pilots} pilots" if pilots else "")


def read_thresholds(path: Path) -> Thresholds:
    """Read measurements. Raises InputError if the file holds none, or of another decoder or target."""
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        found = (table["target"], table["iterations"])
        measured = {
            name: {mcs: tuple(_point(*row) for row in rows) for mcs, rows in by_mcs.items()}
            for name, by_mcs in table["measured"].items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} holds no measured thresholds: {error}") from error
    if found != (TARGET, ITERATIONS):
        raise InputError(f"{path} was measured with target and iterations {found}, not {TARGET, ITERATIONS}")
    return Thresholds(measured=measured)


def merge(tables: Iterable[Thresholds]) -> Thresholds:
    """All measurements of several tables. Raises InputError where two differ on the same scheme."""
    measured: dict[str, dict[str, tuple[Measurement, ...]]] = {}
    for table in tables:
        for name, by_mcs in table.measured.items():
            known = measured.setdefault(name, {})
            for mcs, points in by_mcs.items():
                if known.setdefault(mcs, points) != points:
                    raise InputError(f"two tables differ on {mcs!r} for {name!r}; leave one of them out")
    return Thresholds(measured=measured)


def write_thresholds(thresholds: Thresholds, path: Path, made_by: str) -> None:
    """Write measurements, one scheme a line, whole or not at all."""
    measured = {
        name: {mcs: [[p.snr_db, p.blocks, p.errors] for p in points] for mcs, points in by_mcs.items()}
        for name, by_mcs in sorted(thresholds.measured.items())
    }
    lines = ",\n".join(
        f"  {json.dumps(name)}: {{\n"
        + ",\n".join(f"   {json.dumps(mcs)}: {json.dumps(rows)}" for mcs, rows in by_mcs.items())
        + "\n  }"
        for name, by_mcs in measured.items()
    )
    head = {"made_by": made_by, "row": ["snr_db", "blocks", "errors"]}
    head |= {"target": TARGET, "iterations": ITERATIONS}  # type: ignore[dict-item]
    text = json.dumps(head, indent=1)[:-2] + ',\n "measured": {\n' + lines + "\n }\n}\n"
    write_bytes(path, text.encode())


@lru_cache(maxsize=1)
def shipped_thresholds() -> Thresholds:
    """What was measured once and ships with the package."""
    return read_thresholds(SHIPPED)


def _point(snr_db: float, blocks: int, errors: int) -> Measurement:
    return Measurement(snr_db=snr_db, blocks=blocks, errors=errors)
