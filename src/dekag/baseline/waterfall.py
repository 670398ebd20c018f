"""How often a scheme fails: its error rate over AWGN, and that in any fading by way of mutual information.

Over AWGN the error rate of a block of n uses falls as a normal distribution does, epsilon = Q((SNR - m) / w) in dB
(the normal approximation of Polyanskiy, Poor and Verdu 2010): m and w are fitted to what was measured. A block that
meets many SNRs is taken for one at the SNR over AWGN that gives its bits the same mutual information on average
(mutual information effective SNR mapping; Brueninghaus et al. 2005). That serves to choose a scheme; what is sent
then fails or not by itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from scipy import optimize, special
from torch import Tensor

from dekag.baseline.thresholds import Measurement
from dekag.channel import BlockFading
from dekag.codec.constellation import Constellation, map_bits
from dekag.types import Condition

FADES = 2048
"""Draws of a channel over which an error rate is averaged."""
WIDTHS_DB = (0.05, 3.0)
SNRS_DB = np.arange(-30.0, 50.01, 0.25)
"""Where mutual information is tabulated."""
NODES = 64

Numbers = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Waterfall:
    """Error rates over AWGN: a half at `middle_db`, Q(1) one `width_db` above."""

    middle_db: float
    width_db: float

    def error_rate(self, snr_db: Numbers) -> Numbers:
        """Share of blocks that are lost."""
        return np.asarray(special.ndtr((self.middle_db - snr_db) / self.width_db))


def fitted_waterfall(points: Sequence[Measurement]) -> Waterfall:
    """The likeliest one of independent losses."""
    snrs_db = np.array([point.snr_db for point in points])
    lost = np.array([point.errors for point in points])
    kept = np.array([point.blocks - point.errors for point in points])

    def unlikelihood(values: Numbers) -> float:
        at = (values[0] - snrs_db) / np.exp(values[1])
        return -float((lost * special.log_ndtr(at) + kept * special.log_ndtr(-at)).sum())

    start = np.array([snrs_db[np.argmin(np.abs(lost - kept))], np.log(0.5)])
    bounds = [(snrs_db.min() - 5, snrs_db.max() + 5), tuple(np.log(WIDTHS_DB))]
    found = optimize.minimize(unlikelihood, start, bounds=bounds, method="L-BFGS-B")
    return Waterfall(middle_db=float(found.x[0]), width_db=float(np.exp(found.x[1])))


def interpolated(waterfalls: dict[int, Waterfall], uses: int) -> Waterfall:
    """The waterfall of one scheme at a number of uses, of those at others: linear in the logarithm of the number."""
    known = sorted(waterfalls)
    at, log_known = np.log2(uses), np.log2(known)
    return Waterfall(
        middle_db=float(np.interp(at, log_known, [waterfalls[n].middle_db for n in known])),
        width_db=float(np.interp(at, log_known, [waterfalls[n].width_db for n in known])),
    )


@lru_cache(maxsize=8)
def information(bits: int) -> Numbers:
    """Mutual information of the bits of a square QAM with Gray labels, in bits a symbol, at each of SNRS_DB.

    Caire, Taricco and Biglieri 1998, equation 15. Both axes of the square are alike, so that one is integrated, with
    Gauss and Hermite.
    """
    points = map_bits(_labels(bits)[None], Constellation(name="", bits=bits))[0]
    axis = torch.view_as_real(points)[:, 0].double().numpy()
    half = bits // 2
    # each amplitude once, with the labels of its axis
    levels, first = np.unique(axis.round(9), return_index=True)
    labels = _labels(bits).numpy()[first][:, :half]
    nodes, weights = np.polynomial.hermite.hermgauss(NODES)
    noise = np.sqrt(10 ** (-SNRS_DB / 10) / 2)
    received = levels[None, :, None] + np.sqrt(2) * noise[:, None, None] * nodes
    exponent = -((received[..., None] - levels) ** 2) / (2 * noise[:, None, None, None] ** 2)
    whole = special.logsumexp(exponent, axis=-1)
    found = np.full(len(SNRS_DB), float(half))
    for place in range(half):
        same = labels[:, place][None, :, None, None] == labels[:, place]
        alike = special.logsumexp(np.where(same, exponent, -np.inf), axis=-1)
        found -= ((whole - alike) * weights).sum(-1).mean(-1) / np.sqrt(np.pi) / np.log(2)
    return np.asarray(2 * np.clip(found, 0, half))


def effective_snr_db(snrs_db: Float[np.ndarray, "fades uses"], bits: int) -> Numbers:
    """SNR over AWGN at which the bits of a symbol have the mean information of all uses, for each fade."""
    table = information(bits)
    mean = np.interp(snrs_db, SNRS_DB, table).mean(1)
    rising = np.concatenate([[True], np.diff(table) > 1e-9])
    return np.asarray(np.interp(mean, table[rising], SNRS_DB[rising]))


@torch.no_grad()
def fades_db(condition: Condition, *, seed: int = 0) -> Float[np.ndarray, "fades uses"]:
    """SNR of each use as a receiver has it, over draws of the fading that the condition of one image describes.

    They are drawn for this alone: no block meets them. Estimated gains count with the error that is stated.
    """
    payload = int(condition.payload)
    count = FADES if bool(condition.rayleigh) else 1
    state = BlockFading()(
        torch.ones(count, payload, dtype=torch.complex64),
        condition.expand(count),
        rng=torch.Generator().manual_seed(seed),
    ).state
    energy = state.gain[:, :payload].abs().square() / state.noise_power[:, None]
    return np.asarray(10 * np.log10(energy.double().clamp(min=1e-6).numpy()))


def _labels(bits: int) -> Tensor:
    """Every label, bool [2^bits, bits]."""
    places = torch.arange(bits - 1, -1, -1)
    return (torch.arange(2**bits)[:, None] >> places) % 2 == 1
