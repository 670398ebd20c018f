"""Measuring block error rates over the channel: how many blocks are enough, and at which SNRs to look."""

import math
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from scipy import stats

from dekag.baseline.code import block_code
from dekag.baseline.mcs import BY_NAME, Code, Mcs, usable
from dekag.baseline.thresholds import (
    HIGHEST_DB,
    LOWEST_DB,
    TARGET,
    Measurement,
    Thresholds,
    kind,
    merge,
    read_thresholds,
    write_thresholds,
)
from dekag.channel import BlockFading
from dekag.types import Condition
from dekag.units import linear_to_db

BATCH = 100
WRONG = 0.01
"""Probability of a wrong verdict that the sequential test is built for."""
CODE_GAP_DB = 2.0
"""First guess of what the shortest codes need above capacity; later schemes take that of the one before."""


@dataclass(frozen=True, kw_only=True)
class Rule:
    """Wald's sequential probability ratio test (1945) of TARGET / ratio against TARGET * ratio, cut short.

    Looked at after every batch; after `blocks` blocks the share of lost ones decides. With any of the rules below
    a rate of TARGET * ratio passes, or one of TARGET / ratio fails, with a probability under 2 %, which
    `tests/unit/baseline/test_baseline.py` computes exactly. In between either verdict may come: the threshold is
    that inexact. step_db: between two SNRs of a search.
    """

    ratio: float
    blocks: int
    step_db: float

    def decided(self, sent: int, errors: int) -> bool:
        """Whether that many lost blocks of those sent settle the matter."""
        good, bad = TARGET / self.ratio, TARGET * self.ratio
        evidence = errors * math.log(bad / good) + (sent - errors) * math.log((1 - bad) / (1 - good))
        return abs(evidence) >= -math.log(WRONG) or sent >= self.blocks


AWGN = Rule(ratio=2.0, blocks=1000, step_db=0.5)
"""The error rate falls by a decade within 1 to 1.5 dB, so that a factor of 2 is 0.3 to 0.5 dB."""
FADING = Rule(ratio=2.0, blocks=1000, step_db=1.0)
"""Four blocks and more: a decade within 2.5 dB at most, a factor of 2 is 0.8 dB."""
SLOW = Rule(ratio=1.6, blocks=2000, step_db=1.0)
"""Fewer blocks: at J = 1 a decade takes 10 dB, a factor of 1.6 is 2 dB; even gains make it more exact."""
MOSTLY = 0.5
"""Share of lost blocks at which a descent ends."""
GOLDEN = (math.sqrt(5) - 1) / 2


def rule_for(condition: Condition) -> Rule:
    """The rule for the channel of one condition."""
    if not bool(condition.rayleigh):
        return AWGN
    return SLOW if int(condition.blocks) < 4 else FADING


@dataclass(frozen=True, kw_only=True)
class Extent:
    """How much is measured.

    schemes: of a number of payload uses, the least efficient of each constellation first. rule: for every
    condition, the one of its channel if None. highest_db: where a search ends.
    """

    schemes: Callable[[int], Sequence[Mcs]] = usable
    rule: Rule | None = None
    highest_db: float = HIGHEST_DB


ALL = Extent()


def measure(
    condition: Condition,
    known: dict[str, tuple[Measurement, ...]],
    *,
    seed: int = 0,
    extent: Extent = ALL,
) -> Iterator[tuple[str, tuple[Measurement, ...]]]:
    """Measure every usable scheme on the kind of channel of one condition, whose SNR does not matter.

    Yields each scheme's name and measurements once they are known; those in `known` are not repeated, but over AWGN
    others are added below them until most blocks are lost. A search
    starts where the scheme would hold if it were as far from the SNR whose capacity log2(1 + SNR) is its
    efficiency as the scheme before. Once a scheme fails at the highest SNR, those of less redundancy in the same
    constellation and code fail there too and have no measurements.
    """
    name = kind(condition)
    gap_db = CODE_GAP_DB + fade_margin_db(condition)
    rule = rule_for(condition) if extent.rule is None else extent.rule
    beyond: set[tuple[int, Code]] = set()
    for mcs in extent.schemes(int(condition.payload)):
        if mcs.name in known:
            points = known[mcs.name]
        elif (mcs.bits, mcs.code) in beyond:
            points = ()
        else:
            start_db = capacity_db(mcs) + gap_db
            points = tuple(
                search(condition, mcs, start_db, rule=rule, seed=seed, highest_db=extent.highest_db)
            )
        if points and not bool(condition.rayleigh):
            points += tuple(descent(condition, mcs, points, rule=rule, seed=seed))
        yield mcs.name, points
        found_db = Thresholds(measured={name: {mcs.name: points}}).threshold_db(name, mcs)
        if math.isfinite(found_db):
            gap_db = found_db - capacity_db(mcs)
        else:
            beyond.add((mcs.bits, mcs.code))


def capacity_db(mcs: Mcs) -> float:
    """SNR over AWGN of which the efficiency is the capacity, log2(1 + SNR)."""
    return float(linear_to_db(torch.tensor(2**mcs.efficiency - 1)))


def fade_margin_db(condition: Condition) -> float:
    """How far the mean gain of independent resource blocks lies below 1 in a share TARGET of images."""
    if not bool(condition.rayleigh):
        return 0.0
    blocks = int(condition.blocks)
    # the sum of J exponential variables has Erlang's distribution
    return -float(linear_to_db(torch.tensor(stats.gamma.ppf(TARGET, blocks) / blocks)))


def search(
    condition: Condition,
    mcs: Mcs,
    start_db: float,
    *,
    rule: Rule,
    seed: int = 0,
    highest_db: float = HIGHEST_DB,
) -> Iterator[Measurement]:
    """Measurements from near the start upwards until one passes, or downwards until one fails."""
    snr_db = min(max(rule.step_db * round(start_db / rule.step_db), LOWEST_DB), highest_db)
    first = count_errors(condition, mcs, snr_db, rule=rule, seed=seed)
    yield first
    step_db = -rule.step_db if first.passes else rule.step_db
    passed = first.passes
    while passed == first.passes and LOWEST_DB <= snr_db + step_db <= highest_db:
        snr_db += step_db
        point = count_errors(condition, mcs, snr_db, rule=rule, seed=seed)
        yield point
        passed = point.passes


def descent(
    condition: Condition, mcs: Mcs, points: Sequence[Measurement], *, rule: Rule, seed: int = 0
) -> Iterator[Measurement]:
    """Further measurements below the others, until most blocks are lost: what a waterfall is fitted to."""
    lowest = min(points, key=lambda point: point.snr_db)
    while lowest.errors < MOSTLY * lowest.blocks:
        lowest = count_errors(condition, mcs, lowest.snr_db - rule.step_db, rule=rule, seed=seed)
        yield lowest


@torch.no_grad()
def count_errors(condition: Condition, mcs: Mcs, snr_db: float, *, rule: Rule, seed: int = 0) -> Measurement:
    """Random blocks over the channel at an SNR, as many as the rule asks for."""
    code = block_code(int(condition.payload), mcs, "cpu")
    # gains and noise have a generator of their own: the same for every scheme and SNR of a kind
    number = zlib.crc32(kind(condition).encode()) + (seed << 32)
    air, data = torch.Generator().manual_seed(number), torch.Generator().manual_seed(number + 1)
    sent, errors = 0, 0
    while not rule.decided(sent, errors):
        bits = torch.rand(BATCH, code.info_bits, generator=data) < 0.5
        at = _batch(condition, snr_db, sent)
        decoded, valid = code.demodulate(BlockFading()(code.modulate(bits), at, rng=air))
        errors += int((~valid | (decoded != bits).any(1)).sum())
        sent += BATCH
    return Measurement(snr_db=snr_db, blocks=sent, errors=errors)


def _batch(condition: Condition, snr_db: float, sent: int) -> Condition:
    """The condition of the next blocks of a measurement.

    One known gain h is AWGN at |h|^2 times the SNR. Slow fading is measured so, with |h|^2 at quantiles spread
    evenly (Weyl's sequence of the golden ratio): of N blocks, N TARGET +- 1 or so are in the deepest fades.
    """
    if bool(condition.rayleigh) and int(condition.blocks) == 1 and int(condition.pilots) == 0:
        share = (0.5 + GOLDEN * torch.arange(sent, sent + BATCH, dtype=torch.float64)) % 1
        gain_db = linear_to_db(-torch.log1p(-share))
        return Condition(uses=condition.uses, snr_db=snr_db + gain_db.float())
    return Condition(
        uses=condition.uses,
        snr_db=snr_db,
        rayleigh=condition.rayleigh,
        blocks=condition.blocks,
        correlation=condition.correlation,
        pilots=condition.pilots,
    ).expand(BATCH)


def extend_table(
    path: Path,
    conditions: Iterable[Condition],
    *,
    taken: Iterable[Path] = (),
    made_by: str,
    report: Callable[[str], None],
    extent: Extent = ALL,
) -> None:
    """Measure what the tables at `path` and `taken` lack; written after every scheme, start again to go on.

    Raises InputError if the tables contradict each other.
    """
    tables = [read_thresholds(file) for file in (*([path] if path.exists() else []), *taken)]
    measured = merge(tables).measured
    for condition in conditions:
        name = kind(condition)
        points = dict(measured.get(name, {}))
        for mcs, found in measure(condition, points, extent=extent):
            if points.get(mcs) == found:
                continue
            points[mcs] = found
            measured[name] = points
            table = Thresholds(measured=measured)
            write_thresholds(table, path, made_by)
            report(f"{name} {mcs}: {table.threshold_db(name, BY_NAME[mcs]):.2f} dB")
    write_thresholds(Thresholds(measured=measured), path, made_by)
