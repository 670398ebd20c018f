"""Block error rates, measured: from which SNR on a scheme holds, on the channel that it will be used on."""

import json
import math
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch

from dekag.baseline.code import ITERATIONS, block_code
from dekag.baseline.mcs import BY_NAME, Mcs, usable
from dekag.channel import BlockFading
from dekag.types import Condition, InputError
from dekag.units import linear_to_db

TARGET = 1e-2
"""Largest block error rate at which a scheme is used."""
BLOCKS = 1000
"""Blocks of a measurement; at the target 10 +- 3.2 of them are lost."""
BATCH = 100
HOPELESS = 3 * TARGET * BLOCKS
"""Lost blocks after which a measurement stops: the rate is above the target with a false alarm of 4e-8."""
STEP_DB = 0.5
LOWEST_DB, HIGHEST_DB = -12.0, 25.0
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


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """Measurements by scheme, for each kind of transmission as `kind` names it."""

    measured: dict[str, dict[str, tuple[Measurement, ...]]]

    def threshold_db(self, kind_name: str, mcs: Mcs) -> float:
        """SNR from which on the block error rate is at most the target; infinite if beyond HIGHEST_DB.

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

    def best(self, condition: Condition) -> Mcs | None:
        """The scheme of most bits that holds under the condition of one image; None if none does.

        Raises InputError if transmissions of this kind have not been measured.
        """
        name = kind(condition)
        if name not in self.measured:
            raise InputError(
                f"no block error rates were measured for {name!r}; python -m dekag.baseline measures them"
            )
        snr_db = float(condition.snr_db)
        holds = [mcs for mcs in self._schemes(name) if self.threshold_db(name, mcs) <= snr_db]
        return max(holds, key=lambda mcs: mcs.efficiency, default=None)

    def _schemes(self, name: str) -> Iterator[Mcs]:
        return (BY_NAME[scheme] for scheme in self.measured[name])


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


def measure(
    condition: Condition, known: dict[str, tuple[Measurement, ...]], *, seed: int = 0
) -> Iterator[tuple[str, tuple[Measurement, ...]]]:
    """Measure every usable scheme on the kind of channel of one condition, whose SNR does not matter.

    Yields each scheme's name and measurements once they are known; those in `known` are not repeated. The
    search walks in steps of 0.5 dB from the threshold of the scheme before, but from no less than the SNR
    whose capacity log2(1 + SNR) is the efficiency. Every scheme meets the same gains.
    """
    start_db = LOWEST_DB
    for mcs in usable(int(condition.payload)):
        shannon_db = float(linear_to_db(torch.tensor(2**mcs.efficiency - 1)))
        start_db = max(start_db, STEP_DB * math.ceil(shannon_db / STEP_DB))
        points = known.get(mcs.name) or tuple(_walk(condition, mcs, start_db, seed))
        yield mcs.name, points
        start_db = min((point.snr_db for point in points if point.passes), default=HIGHEST_DB + STEP_DB)


def _walk(condition: Condition, mcs: Mcs, start_db: float, seed: int) -> Iterator[Measurement]:
    """Measurements upwards until one passes, or downwards from the start until one fails."""
    snr_db = start_db
    if snr_db > HIGHEST_DB:
        yield Measurement(snr_db=snr_db, blocks=1, errors=1)
        return
    first = count_errors(condition, mcs, snr_db, seed=seed)
    yield first
    step = -STEP_DB if first.passes else STEP_DB
    passed = first.passes
    while passed == first.passes and LOWEST_DB < snr_db < HIGHEST_DB:
        snr_db += step
        point = count_errors(condition, mcs, snr_db, seed=seed)
        yield point
        passed = point.passes


def count_errors(
    condition: Condition, mcs: Mcs, snr_db: float, *, seed: int = 0, blocks: int = BLOCKS
) -> Measurement:
    """Random blocks over the channel at an SNR, at most `blocks`, fewer once the target is out of reach."""
    uses = int(condition.payload)
    code = block_code(uses, mcs, "cpu")
    at = Condition(
        uses=condition.uses,
        snr_db=snr_db,
        rayleigh=condition.rayleigh,
        blocks=condition.blocks,
        correlation=condition.correlation,
        pilots=condition.pilots,
    ).expand(BATCH)
    # the same for every scheme and SNR of a kind
    rng = torch.Generator().manual_seed(zlib.crc32(kind(condition).encode()) + (seed << 32))
    sent, errors = 0, 0
    while sent < blocks and errors < HOPELESS:
        bits = torch.rand(BATCH, code.info_bits, generator=rng) < 0.5
        decoded, valid = code.demodulate(BlockFading()(code.modulate(bits), at, rng=rng))
        errors += int((~valid | (decoded != bits).any(1)).sum())
        sent += BATCH
    return Measurement(snr_db=snr_db, blocks=sent, errors=errors)


def read_thresholds(path: Path) -> Thresholds:
    """Read measurements. Raises InputError if the file holds none, or of another decoder or target."""
    try:
        table = json.loads(path.read_text())
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
    part = path.with_suffix(".part")
    part.write_text(text)
    part.replace(path)


@lru_cache(maxsize=1)
def shipped_thresholds() -> Thresholds:
    """What was measured once and ships with the package."""
    return read_thresholds(SHIPPED)


def extend_table(
    path: Path, conditions: list[Condition], *, made_by: str, report: Callable[[str], None]
) -> None:
    """Measure what the table at `path` lacks and write it after every scheme; start again to go on."""
    measured = dict(read_thresholds(path).measured) if path.exists() else {}
    for condition in conditions:
        name = kind(condition)
        points = dict(measured.get(name, {}))
        for mcs, found in measure(condition, points):
            points[mcs] = found
            measured[name] = points
            table = Thresholds(measured=measured)
            write_thresholds(table, path, made_by)
            report(f"{name} {mcs}: {table.threshold_db(name, BY_NAME[mcs]):.2f} dB")


def _point(snr_db: float, blocks: int, errors: int) -> Measurement:
    return Measurement(snr_db=snr_db, blocks=blocks, errors=errors)
