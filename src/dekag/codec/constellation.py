"""Constellations: Gray-labelled square QAM of unit average energy, or none ("analogue").

The paper sends the nearest constellation point, s_hat_k = argmin_{c in C} |s_k - c|^2, and keeps the encoder
close to the points with a commitment loss. On a square grid the nearest point is a rounding of each axis.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Bool, Complex, Float, Int64
from scipy import special
from torch import Tensor

from dekag.codec.power import truncate
from dekag.types import InputError, PerImage, Symbols

Bits = Bool[Tensor, "batch uses bits"]


@dataclass(frozen=True, kw_only=True)
class Constellation:
    """A square grid of 2^bits points.

    name: what a user types.
    bits: per symbol, even; 0 leaves symbols as they are.
    """

    name: str
    bits: int

    @property
    def levels(self) -> int:
        """Amplitudes per axis."""
        return 1 << (self.bits // 2)

    @property
    def unit(self) -> float:
        """Half the distance between neighbours: amplitudes are odd multiples of it."""
        # Proakis, Digital Communications: square M-QAM on odd integers has mean energy 2 (M - 1) / 3.
        return math.sqrt(3 / (2 * (2**self.bits - 1)))

    @property
    def load(self) -> float:
        """Root mean square, per complex symbol, of Gaussian symbols that this grid quantises with least error."""
        # Max 1960, Table II: steps of the best uniform quantisers of a unit Gaussian
        return 2 * math.sqrt(2) * self.unit / _STEPS[self.levels] if self.bits else 1.0

    @property
    def distortion(self) -> float:
        """Mean square error of Gaussian symbols quantised at that load, over their power; 0 if analogue.

        Scaled to unit power, points are sqrt(1 - distortion) times the symbol, plus an error of that power that is
        uncorrelated with it: the levels of a best quantiser are centroids (Bussgang 1952; Max 1960).
        """
        return _DISTORTIONS[self.levels] if self.bits else 0.0

    def information(
        self, snr: Float[Tensor, "*shape"]
    ) -> tuple[Float[Tensor, "*shape"], Float[Tensor, "*shape"]]:
        """Mean and variance of the information of a use whose points are alike, bits and bits^2, at an SNR over AWGN.

        Of a finite constellation, between tabulated values. Both axes are alike, so that one is integrated.
        """
        table = _information_table(self)
        at = 10 * snr.double().clamp(min=1e-4, max=1e7).log10()
        place = ((at - TABLE_DB[0]) / TABLE_STEP_DB).clamp(0, table.shape[1] - 1.001)
        low = place.floor().long()
        share = place - low
        found = table[:, low] * (1 - share) + table[:, low + 1] * share
        return found[0], found[1]

    @property
    def points(self) -> Complex[Tensor, " points"]:
        """Point of each label, whose bits are those of `map_bits`; complex64 [2^bits], empty if analogue."""
        if not self.bits:
            return torch.empty(0, dtype=torch.complex64)
        labels = _to_bits(torch.arange(2**self.bits), self.bits)
        return map_bits(labels[None], self)[0]


TABLE_DB, TABLE_STEP_DB = (-40.0, 70.0), 0.125
"""SNRs at which the information of a constellation is tabulated."""
_NODES = 96
_STEPS = {2: 1.596, 4: 0.9957, 8: 0.5860, 16: 0.3352, 32: 0.1881}
_DISTORTIONS = {2: 0.3634, 4: 0.1188, 8: 0.03744, 16: 0.01154, 32: 0.00349}

CONSTELLATIONS = {
    name: Constellation(name=name, bits=bits)
    for name, bits in (
        ("analogue", 0),
        ("qpsk", 2),
        ("16qam", 4),
        ("64qam", 6),
        ("256qam", 8),
        ("1024qam", 10),
    )
}


def constellation_named(name: str) -> Constellation:
    """The constellation of that name; raises InputError, listing the known ones, if there is none."""
    if name not in CONSTELLATIONS:
        raise InputError(f"unknown constellation {name!r}; known are {', '.join(CONSTELLATIONS)}")
    return CONSTELLATIONS[name]


def quantise(symbols: Symbols, constellation: Constellation) -> Symbols:
    """The nearest point to each symbol; its gradient is the identity (straight-through).

    0 is no point, so uses beyond the payload must be zeroed again: `truncate(quantised, payload)`.
    """
    if not constellation.bits:
        return symbols
    nearest = torch.complex(
        _amplitude(_nearest_level(symbols.real, constellation), constellation),
        _amplitude(_nearest_level(symbols.imag, constellation), constellation),
    )
    # s - stop_gradient(s) is exactly 0, so the result is exactly a point.
    return nearest + (symbols - symbols.detach())


def commitment_loss(
    symbols: Symbols, quantised: Symbols, payload: Int64[Tensor, " batch"] | None = None
) -> PerImage:
    """Mean squared distance of an image's symbols to their points, which are held fixed, float [batch].

    payload: the uses of each image that count; all of them if None.
    """
    distance = symbols - quantised.detach()
    if payload is None:
        return (distance.real.square() + distance.imag.square()).mean(dim=1)
    sent = truncate(distance, payload)
    return (sent.real.square() + sent.imag.square()).sum(dim=1) / payload


def map_bits(bits: Bits, constellation: Constellation) -> Symbols:
    """Points of bits, complex64; the first half of a symbol's bits sets the real part, the rest the other.

    Raises InputError for an analogue constellation or a wrong number of bits.
    """
    if not constellation.bits:
        raise InputError("analogue symbols carry no bits; choose a finite constellation")
    if bits.shape[-1] != constellation.bits:
        raise InputError(
            f"{constellation.name} carries {constellation.bits} bits a symbol, got {bits.shape[-1]}"
        )
    # Gray code: bit n of the level is the parity of the label's bits up to n.
    parity = bits.reshape(*bits.shape[:-1], 2, -1).cumsum(dim=-1) % 2
    axes = _amplitude(_from_bits(parity).float(), constellation)
    return torch.complex(axes[..., 0], axes[..., 1])


def demap_bits(symbols: Symbols, constellation: Constellation) -> Bits:
    """Hard decisions: the bits of the nearest point to each symbol. Raises InputError if analogue."""
    if not constellation.bits:
        raise InputError("analogue symbols carry no bits; choose a finite constellation")
    level = _nearest_level(torch.stack([symbols.real, symbols.imag], dim=-1), constellation).to(torch.int64)
    return _to_bits(level ^ (level >> 1), constellation.bits // 2).flatten(-2)


def _nearest_level(axis: Float[Tensor, "*shape"], constellation: Constellation) -> Float[Tensor, "*shape"]:
    """Whole number of the nearest amplitude, counted from the most negative."""
    last = constellation.levels - 1
    return ((axis.detach() / constellation.unit + last) / 2).round().clamp(0, last)


def _amplitude(level: Float[Tensor, "*shape"], constellation: Constellation) -> Float[Tensor, "*shape"]:
    return (2 * level - (constellation.levels - 1)) * constellation.unit


def _to_bits(number: Int64[Tensor, "*shape"], bits: int) -> Bool[Tensor, "*shape bits"]:
    """Binary digits, the most significant first."""
    place = torch.arange(bits - 1, -1, -1, device=number.device)
    return (number[..., None] >> place) % 2 == 1


def _from_bits(digits: Int64[Tensor, "*shape bits"]) -> Int64[Tensor, "*shape"]:
    place = torch.arange(digits.shape[-1] - 1, -1, -1, device=digits.device)
    return (digits << place).sum(dim=-1)


@lru_cache(maxsize=8)
def _information_table(constellation: Constellation) -> Float[Tensor, "2 snrs"]:
    """Mean and variance at each tabulated SNR, by Gauss-Hermite quadrature over the noise of one axis."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(_NODES)
    weights = weights / weights.sum()
    levels = (2 * np.arange(constellation.levels) - constellation.levels + 1) * constellation.unit
    rows = []
    for snr_db in np.arange(TABLE_DB[0], TABLE_DB[1] + TABLE_STEP_DB / 2, TABLE_STEP_DB):
        deviation = math.sqrt(10 ** (-snr_db / 10) / 2)
        received = levels[:, None] + deviation * nodes
        distance = ((received[..., None] - levels) ** 2 - (deviation * nodes[None, :, None]) ** 2) / (
            2 * deviation**2
        )
        density = np.log2(constellation.levels) - special.logsumexp(-distance, axis=-1) / math.log(2)
        mean = (density * weights).sum(1).mean()
        rows.append((2 * mean, 2 * (((density - mean) ** 2) * weights).sum(1).mean()))
    return torch.tensor(rows, dtype=torch.float64).T.contiguous()
