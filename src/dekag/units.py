"""Conversions between units: the only file of the package with `10 **` or `log10`.

Power ratios are linear inside the package and in decibels at its edge. SNR is per complex channel use with
unit symbol energy and E|h|^2 = 1, so the noise power per complex use is N0 = 10^(-SNR/10), N0/2 per real
dimension.
"""

import math

import torch
from torch import Tensor


def db_to_linear(value_db: Tensor) -> Tensor:
    """Power ratio of a value in decibels."""
    return torch.pow(10.0, value_db / 10.0)


def linear_to_db(ratio: Tensor) -> Tensor:
    """Decibels of a power ratio."""
    return 10.0 * torch.log10(ratio)


def snr_db_to_noise_power(snr_db: Tensor) -> Tensor:
    """Noise power N0 per complex use at unit symbol energy."""
    return db_to_linear(-snr_db)


def noise_power_to_snr_db(noise_power: Tensor) -> Tensor:
    """SNR per complex use at unit symbol energy."""
    return -linear_to_db(noise_power)


def ebno_db_to_snr_db(ebno_db: Tensor, bits_per_symbol: int) -> Tensor:
    """SNR per complex symbol of an uncoded constellation: Es/N0 = bits * Eb/N0."""
    return ebno_db + 10.0 * math.log10(bits_per_symbol)


def mse_to_psnr_db(mse: Tensor) -> Tensor:
    """PSNR in decibels for a peak value of 1."""
    return -linear_to_db(mse)


def uses_to_cbr(uses: Tensor, height: int, width: int) -> Tensor:
    """Channel bandwidth ratio: complex channel uses per real pixel value, uses / (3 H W)."""
    return uses / (3.0 * height * width)


def cbr_to_uses(cbr: Tensor, height: int, width: int) -> Tensor:
    """Channel uses of a bandwidth ratio, rounded to the nearest whole use."""
    return torch.round(cbr * (3.0 * height * width)).to(torch.int64)
