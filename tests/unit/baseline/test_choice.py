"""Schemes by expected quality: error rates fitted to what was measured, in any fading, and the choice itself."""

import itertools

import numpy as np
import pytest
import torch

from dekag.baseline import Quality, Thresholds, best_scheme, shipped_thresholds
from dekag.baseline.choice import waterfalls_at
from dekag.baseline.mcs import BY_NAME
from dekag.baseline.thresholds import Measurement
from dekag.baseline.waterfall import (
    SNRS_DB,
    Waterfall,
    effective_snr_db,
    fades_db,
    fitted_waterfall,
    information,
    interpolated,
)
from dekag.codec.constellation import CONSTELLATIONS
from dekag.types import Condition

QUALITY = Quality(budgets=(16, 64, 256, 1024), decibels=(4.0, 9.0, 13.0, 18.0), lost=1.0)


@pytest.mark.parametrize("name", ["qpsk", "16qam", "64qam", "256qam"])
def test_bits_carry_no_more_than_symbols(name: str) -> None:
    """Bit-interleaved coded modulation with Gray labels: below the constellation's information, by a third
    of a bit a symbol at most (Caire, Taricco and Biglieri 1998, Figure 2), and equal to it for QPSK."""
    constellation = CONSTELLATIONS[name]
    bits = information(constellation.bits)
    whole, _ = constellation.information(torch.from_numpy(10 ** (SNRS_DB / 10)))
    assert (bits <= whole.numpy() + 1e-3).all()
    if name == "qpsk":
        np.testing.assert_allclose(bits, whole.numpy(), atol=2e-3)
    assert (whole.numpy() - bits).max() < 1 / 3


def test_a_waterfall_is_found_again() -> None:
    """Losses drawn at seven SNRs, 10,000 blocks each: middle and width within 0.02 dB, some five standard errors."""
    truth, rng = Waterfall(middle_db=3.2, width_db=0.6), np.random.default_rng(0)
    snrs_db = np.linspace(2, 5, 7)
    lost = rng.binomial(10_000, truth.error_rate(snrs_db))
    found = fitted_waterfall(
        [Measurement(snr_db=s, blocks=10_000, errors=int(n)) for s, n in zip(snrs_db, lost, strict=True)]
    )
    assert found.middle_db == pytest.approx(truth.middle_db, abs=0.02)
    assert found.width_db == pytest.approx(truth.width_db, abs=0.02)


def test_shipped_measurements_lie_on_their_waterfalls() -> None:
    """Measured and fitted rates of all schemes over AWGN differ by less than 4 standard errors in 99 of 100 points."""
    off = []
    for by_mcs in (m for kind, m in shipped_thresholds().measured.items() if kind.startswith("awgn")):
        for points in filter(None, by_mcs.values()):
            waterfall = fitted_waterfall(points)
            for point in points:
                rate = float(waterfall.error_rate(np.array(point.snr_db)))
                deviation = max((rate * (1 - rate) / point.blocks) ** 0.5, 1 / point.blocks)
                off.append(abs(point.errors / point.blocks - rate) / deviation > 4)
    print(f"{len(off)} points, {sum(off)} off their waterfall")
    assert np.mean(off) < 0.01


@pytest.mark.parametrize("blocks", [1, 4, 8])
def test_error_rates_in_fading_are_near_what_was_measured(blocks: int) -> None:
    """From AWGN by mutual information, against the measured rates around 1 %: the SNR of 1 % within 3 dB.

    A rate of 1 % over slow fading is known to some 1 dB from 2,048 fades.
    """
    thresholds, worst = shipped_thresholds(), 0.0
    for uses in (64, 128):
        condition = Condition(uses=uses, snr_db=0.0, rayleigh=True, blocks=blocks)
        fades, known = fades_db(condition), waterfalls_at(thresholds, uses)
        kind = f"rayleigh {uses} uses {blocks} blocks"
        for name in itertools.islice(known, 0, None, 6):
            if name not in thresholds.measured[kind]:
                continue
            measured_db = thresholds.threshold_db(kind, BY_NAME[name])
            if not np.isfinite(measured_db):
                continue
            grid = np.arange(measured_db - 6, measured_db + 6, 0.25)
            rates = [
                known[name].error_rate(effective_snr_db(fades + snr, BY_NAME[name].bits)).mean()
                for snr in grid
            ]
            found_db = np.interp(-0.01, -np.array(rates), grid)
            worst = max(worst, abs(found_db - measured_db))
    print(f"{blocks} blocks: the SNR of 1 % is off by at most {worst:.2f} dB")
    assert worst < 3.0


def test_uses_between_those_measured_are_interpolated() -> None:
    known = {64: Waterfall(middle_db=4.0, width_db=1.0), 256: Waterfall(middle_db=2.0, width_db=0.5)}
    assert interpolated(known, 128) == Waterfall(middle_db=3.0, width_db=0.75)
    assert interpolated(known, 16) == known[64]
    assert interpolated(known, 4096) == known[256]


def test_quality_is_linear_between_budgets_and_lost_below_them() -> None:
    assert QUALITY(15) == QUALITY.lost
    assert QUALITY(40) == pytest.approx(6.5)
    assert QUALITY(10_000) == 18.0
    assert Quality.of_tensors(QUALITY.tensors()) == QUALITY


@pytest.mark.parametrize(
    "condition",
    [
        Condition(uses=256, snr_db=8.7),
        Condition(uses=256, snr_db=8.7, rayleigh=True),
        Condition(uses=64, snr_db=-5.0, rayleigh=True),
        Condition(uses=200, snr_db=3.7, rayleigh=True, blocks=4, pilots=2),
    ],
)
def test_no_other_scheme_has_a_better_expectation(condition: Condition) -> None:
    """And nothing is silent where a scheme would be expected to gain: below 1 % of errors or not."""
    chosen = best_scheme(shipped_thresholds(), QUALITY, condition)
    uses, fades = int(condition.payload), fades_db(condition)

    def expected(name: str) -> float:
        mcs = BY_NAME[name]
        lost = (
            waterfalls_at(shipped_thresholds(), uses)[name]
            .error_rate(effective_snr_db(fades, mcs.bits))
            .mean()
        )
        return float((1 - lost) * QUALITY(mcs.info_bits(uses)) + lost * QUALITY.lost)

    all_of_them = {name: expected(name) for name in waterfalls_at(shipped_thresholds(), uses)}
    assert chosen is not None
    assert all_of_them[chosen.name] == pytest.approx(max(all_of_them.values()))
    assert all_of_them[chosen.name] > QUALITY.lost


def test_nothing_is_sent_where_nothing_arrives() -> None:
    assert best_scheme(shipped_thresholds(), QUALITY, Condition(uses=64, snr_db=-40.0)) is None


def test_slow_fading_takes_a_higher_rate_than_one_percent_of_errors_would(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What the audit found: with a target of 1 % nothing was sent at 8.7 dB; the best expectation sends."""
    condition = Condition(uses=256, snr_db=8.7, rayleigh=True)
    holds = [
        name
        for name, points in shipped_thresholds().measured["rayleigh 256 uses 1 blocks"].items()
        if points and shipped_thresholds().threshold_db("rayleigh 256 uses 1 blocks", BY_NAME[name]) <= 8.7
    ]
    assert not holds
    assert best_scheme(shipped_thresholds(), QUALITY, condition) is not None


def test_error_rates_over_awgn_are_needed() -> None:
    from dekag.types import InputError

    points = {"qpsk 449": (Measurement(snr_db=0.0, blocks=10, errors=0),)}
    with pytest.raises(InputError, match="over AWGN"):
        waterfalls_at(Thresholds(measured={"rayleigh 64 uses 1 blocks": points}), 64)
