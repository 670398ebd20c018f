"""Intervals against scipy, by coverage, and by the laws that gains obey."""

import json
import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats

from dekag.evaluation.statistics import Mean, gap_closed, mean_interval, paired_relative_gain
from dekag.types import InputError

Row = NDArray[np.float64]


def scores(n: int, seed: int = 0) -> Row:
    return 0.6 + 0.1 * np.random.default_rng(seed).standard_normal(n)


def test_the_t_interval_is_scipys() -> None:
    values = scores(17)
    ours = mean_interval(values)
    theirs = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), rel=1e-12)
    assert ours.mean == pytest.approx(values.mean(), rel=1e-12)
    assert ours.n == 17
    assert mean_interval(torch.from_numpy(values)) == ours


def test_clusters_are_averaged_first_and_may_come_in_any_order() -> None:
    values, prompt = scores(12), np.arange(12) % 4
    by_prompt = mean_interval([values[prompt == p].mean() for p in range(4)])
    shuffled = np.random.default_rng(1).permutation(12)
    ours = mean_interval(values[shuffled], prompt[shuffled])
    assert (ours.mean, ours.low, ours.high) == pytest.approx(
        (by_prompt.mean, by_prompt.low, by_prompt.high), rel=1e-12
    )
    assert (ours.n, by_prompt.n) == (12, 4)


def test_unequal_clusters_weigh_alike() -> None:
    ours = mean_interval([1.0, 1.0, 1.0, 3.0], [7, 7, 7, 2])
    assert ours.mean == pytest.approx(2.0)


def test_coverage_is_95_percent_over_prompts_and_less_over_values() -> None:
    """4000 sets of 8 prompts x 3 seeds; prompts' means are normal, so coverage is exactly 0.95.

    The bounds are 5 sigma = 0.0172 from it; the binomial false alarm is 1e-6. Values taken for independent,
    at an intraclass correlation of 0.8, cover 0.81.
    """
    sets, prompts, seeds = 4000, 8, 3
    rng = np.random.default_rng(0)
    effect = math.sqrt(0.8) * rng.standard_normal((sets, prompts, 1))
    values = (effect + math.sqrt(0.2) * rng.standard_normal((sets, prompts, seeds))).reshape(sets, -1)
    prompt = np.repeat(np.arange(prompts), seeds)
    clustered = [mean_interval(row, prompt) for row in values]
    naive = [mean_interval(row) for row in values]
    covered, fooled = (np.mean([m.low <= 0 <= m.high for m in found]) for found in (clustered, naive))
    half = 5 * math.sqrt(0.95 * 0.05 / sets)
    outside = stats.binom(sets, 0.95)
    assert outside.cdf(sets * (0.95 - half)) + outside.sf(sets * (0.95 + half)) < 2e-6
    assert abs(covered - 0.95) < half
    assert fooled < 0.85


def test_the_bootstrap_interval_is_scipys() -> None:
    """20000 resamples on each side: an end has a standard error of 0.019 standard deviations of the gain.

    The bound is 5 sigma of the difference, 0.134 standard deviations; false alarm 6e-7 for each end.
    """
    before, after = scores(40), scores(40) * 1.3 + 0.05 * scores(40, seed=2)
    ours = paired_relative_gain(before, after, seed=3, resamples=20000)

    def gain(b: Row, a: Row, axis: int) -> Row:
        percent: Row = 100 * (a.mean(axis) / b.mean(axis) - 1)
        return percent

    theirs = stats.bootstrap(
        (before, after),
        gain,
        paired=True,
        method="percentile",
        n_resamples=20000,
        rng=np.random.default_rng(9),
    )
    spread = theirs.standard_error
    assert ours.mean == pytest.approx(gain(before, after, 0), rel=1e-12)
    assert ours.low == pytest.approx(theirs.confidence_interval.low, abs=0.134 * spread)
    assert ours.high == pytest.approx(theirs.confidence_interval.high, abs=0.134 * spread)


def test_the_bootstrap_covers_the_true_gain() -> None:
    """300 sets of 40 prompts, true gain 30 %; the percentile interval covers about 0.93 at this size.

    Fewer than 0.86 or all of them would be wrong; binomial false alarm 2e-5 at 0.93, and 4e-10 for all.
    """
    rng, sets = np.random.default_rng(4), 300
    hits = 0
    for number in range(sets):
        before = 0.5 + 0.2 * rng.standard_normal(40)
        after = 1.3 * before + 0.1 * rng.standard_normal(40)
        found = paired_relative_gain(before, after, seed=number, resamples=300)
        hits += found.low <= 30 <= found.high
    assert stats.binom(sets, 0.93).cdf(0.86 * sets) < 2e-5
    assert 0.86 * sets < hits < sets


def test_an_exact_gain_has_no_width() -> None:
    before = scores(9)
    gain = paired_relative_gain(before, 1.44 * before)
    assert (gain.mean, gain.low, gain.high) == pytest.approx((44, 44, 44), rel=1e-9)
    way = gap_closed(before, 0.7 * before + 0.3, np.ones(9))
    assert (way.mean, way.low, way.high) == pytest.approx((0.3, 0.3, 0.3), rel=1e-9)


def test_copies_of_a_value_add_no_evidence() -> None:
    before, after, ceiling = scores(10), scores(10, seed=1) + 0.1, scores(10, seed=2) + 0.3
    prompt = np.repeat(np.arange(10), 5)
    one = gap_closed(before, after, ceiling, seed=5)
    many = gap_closed(before[prompt], after[prompt], ceiling[prompt], clusters=prompt, seed=5)
    assert (many.mean, many.low, many.high) == pytest.approx((one.mean, one.low, one.high), rel=1e-9)
    assert (one.n, many.n) == (10, 50)


def test_a_gain_does_not_depend_on_the_scale_and_depends_on_the_seed() -> None:
    before, after = scores(20), scores(20, seed=1) + 0.1
    one = paired_relative_gain(before, after, seed=1)
    scaled = paired_relative_gain(4 * before, 4 * after, seed=1)
    assert (scaled.low, scaled.high) == pytest.approx((one.low, one.high), rel=1e-9)
    assert paired_relative_gain(before, after, seed=1) == one
    assert paired_relative_gain(before, after, seed=2).low != one.low


def test_what_the_data_cannot_bound_is_infinite_and_null_in_json() -> None:
    alone = mean_interval([0.5])
    assert (alone.low, alone.high) == (-math.inf, math.inf)
    assert paired_relative_gain([0.5, 0.7], [0.6, 0.9], clusters=[3, 3]).high == math.inf
    before = scores(10)
    noise = 0.2 * np.random.default_rng(6).standard_normal(10)
    way = gap_closed(before, before + 0.1, before + noise - noise.mean() + 0.001)
    assert math.isinf(way.high)
    text = json.dumps(alone.to_json(), allow_nan=False)
    assert json.loads(text) == {"mean": 0.5, "low": None, "high": None, "n": 1}
    assert Mean(mean=1.0, low=0.5, high=1.5, n=3).to_json() == {"mean": 1.0, "low": 0.5, "high": 1.5, "n": 3}


def test_what_has_no_meaning_is_refused() -> None:
    with pytest.raises(InputError, match="at least one number"):
        mean_interval([])
    with pytest.raises(InputError, match="one row"):
        mean_interval(torch.zeros(2, 2))
    with pytest.raises(InputError, match="finite, got nan"):
        mean_interval([1.0, math.nan])
    with pytest.raises(InputError, match="one prompt index for each of 2"):
        mean_interval([1.0, 2.0], [1])
    with pytest.raises(InputError, match="paired by position, got 1 and 2"):
        paired_relative_gain([1.0], [1.0, 2.0])
    with pytest.raises(InputError, match="positive mean before, got -1"):
        paired_relative_gain([-1.0], [1.0])
    with pytest.raises(InputError, match="ceiling must be above"):
        gap_closed([1.0, 1.0], [2.0, 2.0], [1.0, 1.0])
