"""Means and gains with 95 % intervals; the unit of evidence is the prompt, however many seeds it was drawn at.

Several values of one prompt are not independent, so every function takes `clusters`, the prompt index of each
value: values are first averaged within a prompt, and prompts are then what is averaged and what is resampled.
An interval that the data cannot bound is infinite, for one prompt say; in JSON its ends are null.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import stdtrit
from torch import Tensor

from dekag.types import InputError

CONFIDENCE = 0.95
RESAMPLES = 2000

Row = NDArray[np.float64]
Values = Tensor | Sequence[float] | NDArray[np.float64] | NDArray[np.float32]
"""One-dimensional and finite."""
Clusters = Tensor | Sequence[int] | NDArray[np.int64]
"""Prompt index of each value."""


@dataclass(frozen=True, kw_only=True)
class Mean:
    """An estimate, its 95 % interval [low, high], and the number n of values (not of prompts) behind it."""

    mean: float
    low: float
    high: float
    n: int

    def to_json(self) -> dict[str, float | int | None]:
        """Fields by name, with null for an end that is infinite."""
        return {name: value if math.isfinite(value) else None for name, value in asdict(self).items()}


def mean_interval(values: Values, clusters: Clusters | None = None) -> Mean:
    """Mean and Student's t interval.

    With clusters it is the mean of the prompts' means and the interval is over those, with one degree of
    freedom less than there are prompts.
    Raises InputError if there is no value or one is not finite.
    """
    row = _row(values, "values")
    per_prompt = _per_prompt(row, clusters)
    mean, freedom = float(per_prompt.mean()), len(per_prompt) - 1
    if freedom == 0:
        return Mean(mean=mean, low=-math.inf, high=math.inf, n=len(row))
    error = float(per_prompt.std(ddof=1)) / math.sqrt(len(per_prompt))
    half = float(stdtrit(freedom, (1 + CONFIDENCE) / 2)) * error
    return Mean(mean=mean, low=mean - half, high=mean + half, n=len(row))


def paired_relative_gain(
    before: Values,
    after: Values,
    *,
    clusters: Clusters | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Mean:
    """Gain of the mean in percent, 100 (mean(after) / mean(before) - 1), for values paired by position.

    The interval is a percentile bootstrap over prompts. Raises InputError if the values do not pair or the
    mean before is not positive, since a share of nothing has no meaning.
    """
    was, now = _row(before, "before"), _row(after, "after")
    _check_paired(was, now)
    if was.mean() <= 0:
        raise InputError(f"a relative gain needs a positive mean before, got {was.mean():.4g}")
    gain, base = _per_prompt(now - was, clusters), _per_prompt(was, clusters)
    ratio = _ratio_interval(gain, base, n=len(was), seed=seed, resamples=resamples)
    return Mean(mean=100 * ratio.mean, low=100 * ratio.low, high=100 * ratio.high, n=ratio.n)


def gap_closed(
    before: Values,
    after: Values,
    ceiling: Values,
    *,
    clusters: Clusters | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Mean:
    """Share of the way from before to the ceiling, (after - before) / (ceiling - before), of means.

    1 is the ceiling, 0 no change. Values are paired by position; the interval is a percentile bootstrap over
    prompts, and unbounded where the ceiling cannot be told from the level before.
    Raises InputError if the values do not pair or the mean ceiling is not above the mean before.
    """
    was, now, best = _row(before, "before"), _row(after, "after"), _row(ceiling, "ceiling")
    _check_paired(was, now)
    _check_paired(was, best)
    if best.mean() <= was.mean():
        raise InputError(
            f"the ceiling must be above the level before, got {best.mean():.4g} and {was.mean():.4g}"
        )
    gain, room = _per_prompt(now - was, clusters), _per_prompt(best - was, clusters)
    return _ratio_interval(gain, room, n=len(was), seed=seed, resamples=resamples)


def _ratio_interval(top: Row, bottom: Row, *, n: int, seed: int, resamples: int) -> Mean:
    """Ratio of means with the percentile bootstrap interval of Efron and Tibshirani 1993, section 13.3."""
    rng = np.random.default_rng(seed)
    ratios = np.empty(resamples)
    for draw in range(resamples):
        rows = rng.integers(len(top), size=len(top))
        above, below = float(top[rows].mean()), float(bottom[rows].mean())
        # a denominator that reached zero says that the ratio has no bound on that side
        ratios[draw] = above / below if below > 0 else math.copysign(math.inf, above)
    tail = (1 - CONFIDENCE) / 2
    # no interpolation between draws, of which some may be infinite
    low, high = np.quantile(ratios, [tail, 1 - tail], method="inverted_cdf")
    if len(top) == 1:
        low, high = -math.inf, math.inf
    return Mean(mean=float(top.mean() / bottom.mean()), low=float(low), high=float(high), n=n)


def _row(values: Values, name: str) -> Row:
    array = values.detach().cpu().numpy() if isinstance(values, Tensor) else values
    row = np.asarray(array, dtype=np.float64)
    if row.ndim != 1 or len(row) == 0:
        raise InputError(f"{name} must be one row of at least one number, got shape {row.shape}")
    if not np.isfinite(row).all():
        raise InputError(f"{name} must be finite, got {row[~np.isfinite(row)][0]}")
    return row


def _per_prompt(row: Row, clusters: Clusters | None) -> Row:
    if clusters is None:
        return row
    prompt = torch.as_tensor(clusters).cpu().numpy()
    if prompt.shape != row.shape:
        raise InputError(
            f"clusters must be one prompt index for each of {len(row)} values, got shape {prompt.shape}"
        )
    _, which = np.unique(prompt, return_inverse=True)
    means: Row = np.bincount(which, weights=row) / np.bincount(which)
    return means


def _check_paired(one: Row, other: Row) -> None:
    if len(one) != len(other):
        raise InputError(f"values are paired by position, got {len(one)} and {len(other)}")
