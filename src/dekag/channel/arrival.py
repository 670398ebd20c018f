"""How much power an image that was received may have, by the condition that it was sent under."""

import math

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from dekag.channel.fading import num_blocks
from dekag.types import Condition, PerImage
from dekag.units import snr_db_to_noise_power

FALSE_ALARM = 1e-9
"""Probability at each end that the power of an image that is right lies outside."""
LEVEL = 2.0
"""Factor, 3 dB, by which the power of what is right may be off beside its statistics: what a gain control leaves, what
an offset of the carrier's level or a clipping receiver adds or takes, and an SNR that is not quite the metadata's."""
EQUALISED = 1e4
"""Largest power under fading over 1 + N0: a radio that divides by the gain returns noise of N0 / |h|^2, which has no
mean. It passes 40 dB with a probability of about N0 / 10,000, and has then drowned the picture."""
LEAST_NOISE = 1e-6
"""Noise power below which the noise no longer counts beside LEVEL; keeps the bounds in range."""


def power_window(condition: Condition, count: Int64[Tensor, " batch"]) -> tuple[PerImage, PerImage]:
    """Least and largest mean power of so many received symbols of each image, at which an image may be right.

    As sent the mean power is 1; as received it is that of symbols of power 1, faded as the condition says, in noise N0.
    With LEVEL as a margin, an image that is right lies outside with a probability of at most FALSE_ALARM at each end,
    but for fading that was equalised (EQUALISED).
    """
    noise = snr_db_to_noise_power(condition.snr_db.double()).clamp(min=LEAST_NOISE)
    symbols = count.clamp(min=1).double()
    x = math.log(2 / FALSE_ALARM)  # half for the fading, half for the noise
    lower = _received(_least(condition, x), noise, symbols, x)[0].clamp(0, 1)
    upper = _received(torch.ones_like(noise), noise, symbols, x)[1] * LEVEL
    return lower / LEVEL, torch.where(condition.rayleigh, EQUALISED * (1 + noise), upper)


def _received(signal: PerImage, noise: PerImage, count: PerImage, x: float) -> tuple[PerImage, PerImage]:
    """Bounds on the mean power of n symbols of mean power `signal` in noise, each exceeded with at most exp(-x).

    2 n / N0 times it is noncentral chi-square, D = 2 n degrees of freedom and noncentrality B = 2 n signal / N0,
    with E exp(t X) = (1 - 2 t)^(-D / 2) exp(B t / (1 - 2 t)). Chernoff 1952: P(X >= q) <= exp(-x) for
    q = (log E exp(t X) + x) / t at any t in (0, 1/2), and below likewise with -t.
    """
    away = 2 * count * signal / noise
    t = torch.logspace(-6, 0, 200, dtype=torch.float64)[:, None]
    lower = (count * (2 * t).log1p() + away * t / (1 + 2 * t) - x) / t
    t = t / 2.001
    upper = (-count * (-2 * t).log1p() + away * t / (1 - 2 * t) + x) / t
    scale = noise / (2 * count)
    return scale * lower.amax(dim=0), scale * upper.amin(dim=0)


def _least(condition: Condition, x: float) -> PerImage:
    """Least mean of |h|^2 over the blocks of each image, less with at most exp(-x); 1 without fading.

    It is a sum of exponential variables whose weights are the eigenvalues of R / J (`channel.fading`), of sum 1 and
    sum of squares F^2. Laurent and Massart 2000, Lemma 1: at least 1 - F sqrt(2 x).
    """
    rows = zip(num_blocks(condition).tolist(), condition.correlation.tolist(), strict=True)
    norm = torch.stack([_norm(blocks, correlation) for blocks, correlation in rows])
    return torch.where(condition.rayleigh, (1 - norm * math.sqrt(2 * x)).clamp(min=0), 1.0)


def _norm(blocks: int, correlation: float) -> Float[Tensor, ""]:
    """Frobenius norm F of R / J: the root of the mean of rho^(2 lag) over all pairs of blocks."""
    lag = torch.arange(blocks, dtype=torch.float64)
    pairs = torch.where(lag == 0, 1.0, 2.0) * (blocks - lag)
    return ((pairs * correlation ** (2 * lag)).sum() / blocks**2).sqrt()
