"""The scale of an image, sent beside it: without it a receiver cannot know how much a symbol of unit power stands for.

The logarithm t of an image's energy, as the code weighs it, is the phase of one component whose energy is fixed; it
lies in [-0.9 pi, 0.9 pi] over SPAN standard deviations to either side, so that an image's symbols have the same
energy whatever its scale. A receiver takes the mean of t given the phase in noise.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from dekag.types import PerImage

SPAN = 4.0
_LARGEST_PHASE = 0.9 * math.pi
LEAST_SHARE, LARGEST_SHARE = 1e-3, 0.3
"""Of an image's energy, in its scale."""


def phase(t: PerImage, mean: Tensor, deviation: Tensor) -> PerImage:
    """Of a log energy t; what lies beyond the span is at its end."""
    return _LARGEST_PHASE * ((t - mean) / (SPAN * deviation)).clamp(-1, 1)


def log_energy(
    component: Float[Tensor, "batch 2"], snr: PerImage, mean: Tensor, deviation: Tensor
) -> PerImage:
    """The estimate of t of a received component; `snr` is the energy of its noise, real and imaginary, under its own.

    For small noise the phase has the variance 1 / (2 SNR); the prior of t is Gaussian.
    """
    step = SPAN * deviation / _LARGEST_PHASE
    variance = step.square() / (2 * snr.clamp(min=1e-6))
    trust = deviation.square() / (deviation.square() + variance)
    return mean + trust * step * torch.atan2(component[:, 1], component[:, 0])


def share(captured: PerImage, slope: PerImage, snr: PerImage, deviation: Tensor) -> PerImage:
    """Share of an image's energy that its scale takes where the error of both is least.

    An error e of t makes one of e^2 / 4 of the energy that is captured, e^2 = step^2 / (2 rho SNR); the rest of the
    energy leaves an error that grows by `slope` times its share rho. snr: of all uses of an image together.
    """
    cost = captured * (SPAN * deviation / _LARGEST_PHASE).square() / (8 * snr)
    return (cost / slope.clamp(min=1e-12)).sqrt().clamp(LEAST_SHARE, LARGEST_SHARE)
