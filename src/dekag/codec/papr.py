"""Peak-to-average power ratio of what is sent, its distribution, and clipping.

A power amplifier must be linear up to the peak, so the peak decides what it costs. Symbols sent one after
another have the peak of their constellation; OFDM adds many of them and comes near to complex Gaussian.
Ratios are linear power ratios inside, decibels where a user names a level.
"""

import math

import torch
from jaxtyping import Complex, Float, Int64
from torch import Tensor

from dekag.codec.power import normalise_power, truncate
from dekag.types import InputError, PerImage, Symbols
from dekag.units import db_to_linear

OVERSAMPLING = 4
"""Samples per symbol that miss little of a peak of OFDM: 0.7 dB, -20 log10 cos(pi / 8), where it is worst."""


def papr(symbols: Symbols, payload: Int64[Tensor, " batch"]) -> PerImage:
    """Largest over mean power of the first `payload[i]` symbols or samples of row i, linear, at least 1.

    NaN for a silent row. Raises InputError if a payload is not between 1 and the number of symbols.
    """
    kept = truncate(symbols, payload)
    power = kept.real.square() + kept.imag.square()
    return power.amax(dim=1) * payload / power.sum(dim=1)


def ofdm_waveform(
    symbols: Complex[Tensor, "batch subcarriers"], *, oversampling: int = OVERSAMPLING
) -> Complex[Tensor, "batch samples"]:
    """One OFDM symbol a row, without cyclic prefix: symbol k on subcarrier k - subcarriers // 2.

    x[n] = sum_k s_k exp(i 2 pi (k - K // 2) n / (K L)) / sqrt(K) at `oversampling` L samples per symbol, by an
    inverse FFT over zero-padded subcarriers; the mean power is that of the symbols. At L = 1 the samples miss
    the peaks between them. Raises InputError for an oversampling below 1.
    """
    if oversampling < 1:
        raise InputError(f"oversampling must be at least 1, got {oversampling}")
    carriers = symbols.shape[1]
    samples = oversampling * carriers
    padded = torch.nn.functional.pad(symbols, (0, samples - carriers))
    # carrier 0 lies in the middle of the symbols; rolled to the head, the lower half wraps round to the end
    centred = padded.roll(-(carriers // 2), dims=1)
    waveform: Tensor = torch.fft.ifft(centred, dim=1, norm="forward") / math.sqrt(carriers)
    return waveform


def ccdf(ratios: PerImage, threshold_db: Float[Tensor, " levels"]) -> Float[Tensor, " levels"]:
    """Share of the blocks whose PAPR, linear, lies above each level in dB."""
    return (ratios > db_to_linear(threshold_db)[:, None]).to(ratios.dtype).mean(dim=1)


def gaussian_ccdf(threshold_db: Float[Tensor, " levels"], samples: int) -> Float[Tensor, " levels"]:
    """P(PAPR > level) of blocks of independent complex Gaussian samples of known mean power.

    van Nee and de Wild 1998: 1 - (1 - exp(-level))^samples; OFDM without oversampling comes near it.
    """
    below = -torch.expm1(-db_to_linear(threshold_db))
    return 1 - below.pow(samples)


def clip(symbols: Symbols, payload: Int64[Tensor, " batch"], *, ratio_db: float) -> Symbols:
    """Symbols or samples with their amplitudes limited and their phases kept, then of mean power 1 again.

    ratio_db: highest power over the row's mean power before clipping. The row's PAPR afterwards is that ratio
    over the share of power that clipping left, and so a little higher. Differentiable.

    Raises InputError if the ratio is below 0 dB or not finite, or a payload does not fit.
    """
    if not (math.isfinite(ratio_db) and ratio_db >= 0):
        raise InputError(f"a clipping ratio must be at least 0 dB and finite, got {ratio_db}")
    sent = normalise_power(symbols, payload)
    limit = db_to_linear(torch.tensor(ratio_db, dtype=sent.real.dtype, device=sent.device))
    power = sent.real.square() + sent.imag.square()
    # The inner `where` keeps the gradient finite where nothing is sent.
    scale = (limit / torch.where(power > limit, power, limit)).sqrt()
    return normalise_power(scale * sent, payload)
