"""Which scheme to send with: the one of best expected quality, by what both ends know of channel and source."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from dekag.baseline.mcs import BY_NAME, Mcs, usable
from dekag.baseline.thresholds import Thresholds
from dekag.baseline.waterfall import (
    Waterfall,
    effective_snr_db,
    fades_db,
    fitted_waterfall,
    interpolated,
)
from dekag.types import Condition, InputError

LEAST_GAIN_DB = 1e-3
"""Expected over showing the concealment, below which nothing is sent."""


@dataclass(frozen=True, kw_only=True)
class Quality:
    """What a source is worth at a number of bits: mean decibels over items like those that are sent.

    budgets: in bits, rising. decibels: at each. lost: of what is shown in place of an item.
    """

    budgets: tuple[int, ...]
    decibels: tuple[float, ...]
    lost: float

    def __call__(self, budget: int) -> float:
        """Decibels at a budget, linear between those that were measured; below the smallest the item is lost."""
        if budget < self.budgets[0]:
            return self.lost
        return float(np.interp(budget, self.budgets, self.decibels))

    def tensors(self) -> dict[str, Tensor]:
        """As it is written."""
        rows = [*zip(self.budgets, self.decibels, strict=True)]
        return {"quality": torch.tensor(rows), "lost": torch.tensor(self.lost)}

    @staticmethod
    def of_tensors(tensors: dict[str, Tensor]) -> "Quality":
        """As it was written, taken out of some tensors; raises KeyError or ValueError if it is not there."""
        budgets, decibels = tensors.pop("quality").T.tolist()
        return Quality(
            budgets=tuple(map(round, budgets)), decibels=tuple(decibels), lost=float(tensors.pop("lost"))
        )

    @staticmethod
    def measured(budgets: Sequence[int], decibels: Callable[[int], float], lost: float) -> "Quality":
        """By a function of the budget."""
        return Quality(budgets=tuple(budgets), decibels=tuple(map(decibels, budgets)), lost=lost)


def best_scheme(thresholds: Thresholds, quality: Quality, condition: Condition) -> Mcs | None:
    """The scheme of the best expected quality for one image; None if with none more than the concealment is expected.

    It takes the statistics of the channel alone, which the condition tells both ends, and of the source.
    Raises InputError if no scheme was measured over AWGN.
    """
    uses = int(condition.payload)
    fades = fades_db(condition)
    effective = {bits: effective_snr_db(fades, bits) for bits in {mcs.bits for mcs in BY_NAME.values()}}
    best, expected = None, quality.lost + LEAST_GAIN_DB
    for name, waterfall in waterfalls_at(thresholds, uses).items():
        mcs = BY_NAME[name]
        lost = float(waterfall.error_rate(effective[mcs.bits]).mean())
        found = (1 - lost) * quality(mcs.info_bits(uses)) + lost * quality.lost
        if found > expected:
            best, expected = mcs, found
    return best


def waterfalls_at(thresholds: Thresholds, uses: int) -> dict[str, Waterfall]:
    """The waterfall of every scheme that carries information in so many uses, between the numbers that were measured.

    Raises InputError if none was.
    """
    known = _waterfalls(thresholds)
    if not known:
        raise InputError(
            "no block error rates were measured over AWGN; python -m dekag.baseline measures them"
        )
    return {mcs.name: interpolated(known[mcs.name], uses) for mcs in usable(uses) if mcs.name in known}


@lru_cache(maxsize=8)
def _waterfalls(thresholds: Thresholds) -> dict[str, dict[int, Waterfall]]:
    """By scheme and number of uses."""
    found: dict[str, dict[int, Waterfall]] = {}
    for kind, by_mcs in thresholds.measured.items():
        family, uses, _ = kind.split(" ", 2)
        if family != "awgn":
            continue
        for name, points in by_mcs.items():
            if points:
                found.setdefault(name, {})[int(uses)] = fitted_waterfall(points)
    return found
