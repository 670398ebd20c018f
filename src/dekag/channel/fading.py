"""Rayleigh block fading: the block that each channel use lies in, and the gain of each block.

An image's payload is cut into J resource blocks, and block j has the gain h_j of h ~ CN(0, R) with

    R[j', j] = E[h_j' conj(h_j)] = rho^|j' - j| exp(i phase (j' - j)).

The phase that is linear in the block distance is the paper's; the exponential magnitude is our choice, for it
is positive semidefinite for every J. J = 1 is slow fading, J = payload is fast fading.

Every draw fills the whole [batch, width] rectangle, however short an image's payload is: what an image meets
then depends on its own condition, its row and the shape of the batch, and on nothing else.
"""

import torch
from jaxtyping import Bool, Complex, Int64
from torch import Tensor

from dekag.types import Condition, InputError, Symbols

MOST_DEVIATIONS = 6.0
"""By which the mean power of an image's symbols may differ from 1, if they are drawn independently."""

ComplexRows = Complex[Tensor, "batch width"]


def fit(condition: Condition, symbols: Symbols) -> Condition:
    """The condition with one row for each image of `symbols`, on their device.

    Raises InputError if the batch sizes differ, the symbols are fewer than a payload, or the mean power of an image's
    symbols is not 1: an SNR means nothing then. Independent points and Gaussian symbols of power 1 pass, whose mean
    over n uses differs from 1 by 1 / sqrt(n) in standard deviation at most, and silence does.
    """
    batch, width = symbols.shape
    fitted = condition.expand(batch).to(symbols.device)
    payload = int(fitted.payload.max())
    if payload > width:
        raise InputError(
            f"the condition has a payload of {payload} uses, but there are {width} symbols an image"
        )
    _check_power(symbols, fitted)
    return fitted


def _check_power(symbols: Symbols, condition: Condition) -> None:
    sent = symbols.detach() * used(condition, symbols.shape[1])
    power = (sent.real.square() + sent.imag.square()).sum(1) / condition.payload
    off = (power - 1).abs() > MOST_DEVIATIONS * condition.payload**-0.5
    # what is NaN is none of this check's business
    if bool((off & (power > 0)).any()):
        row = int((off & (power > 0)).nonzero()[0])
        raise InputError(
            f"symbols of an image must have mean power 1 (codec.normalise_power), got {power[row].item():.3g}"
        )


def complex_normal(
    batch: int, width: int, *, rng: torch.Generator, device: torch.device, dtype: torch.dtype
) -> ComplexRows:
    """Draws of CN(0, 1), variance 1/2 per real dimension, made where `rng` lives and moved to `device`."""
    return torch.randn(batch, width, dtype=dtype, device=rng.device, generator=rng).to(device)


def used(condition: Condition, width: int) -> Bool[Tensor, "batch width"]:
    """Whether a channel use carries payload."""
    return torch.arange(width, device=condition.uses.device) < condition.payload[:, None]


def num_blocks(condition: Condition) -> Int64[Tensor, " batch"]:
    """Blocks J of each image; without fading there is one."""
    return torch.where(condition.rayleigh, condition.blocks, 1)


def block_index(condition: Condition, width: int) -> Int64[Tensor, "batch width"]:
    """Block of each channel use: floor(k J / payload) for use k, so that lengths differ by at most one.

    Uses beyond the payload are given the last block.
    """
    use = torch.arange(width, device=condition.uses.device)
    blocks = num_blocks(condition)[:, None]
    return torch.minimum(use * blocks // condition.payload[:, None], blocks - 1)


def correlate(white: ComplexRows, condition: Condition) -> ComplexRows:
    """Block gains h ~ CN(0, R) from draws of CN(0, I); column j is block j, of which the first J count."""
    rho = condition.correlation.to(white.real.dtype)[:, None]
    # g_0 = w_0, g_j = rho g_{j-1} + sqrt(1 - rho^2) w_j has E[g_j' conj(g_j)] = rho^|j' - j|.
    gain = torch.cat([white[:, :1], (1 - rho.square()).sqrt() * white[:, 1:]], dim=1)
    # With S the delay by one block, sum_n (rho S)^n = prod_k (1 + (rho S)^(2^k)): log2(J) steps instead of J.
    max_blocks, lag = int(num_blocks(condition).max()), 1
    while lag < max_blocks:
        gain = torch.cat([gain[:, :lag], gain[:, lag:] + rho**lag * gain[:, :-lag]], dim=1)
        lag *= 2
    block = torch.arange(gain.shape[1], device=gain.device)
    angle = condition.phase.to(rho.dtype)[:, None] * block
    return gain * torch.polar(torch.ones_like(angle), angle)


def spread(gain: ComplexRows, condition: Condition) -> ComplexRows:
    """Gain per channel use from gains per block: 1 without fading, 0 beyond the payload."""
    width = gain.shape[1]
    faded = gain.gather(1, block_index(condition, width))
    return torch.where(condition.rayleigh[:, None], faded, 1.0) * used(condition, width)


def block_gains(
    condition: Condition, width: int, *, rng: torch.Generator, dtype: torch.dtype = torch.complex64
) -> ComplexRows:
    """A draw of the gain per channel use; E|h|^2 = 1 within the payload, 0 beyond it."""
    device = condition.uses.device
    white = complex_normal(len(condition), width, rng=rng, device=device, dtype=dtype)
    return spread(correlate(white, condition), condition)
