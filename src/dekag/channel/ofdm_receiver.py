"""Channel estimation from pilots, and what LMMSE equalisation leaves of the streams.

An estimate of the channel at the elements of data is a linear filter of the least-squares estimates at the
pilots: `interpolate` needs no statistics, `wiener` is the LMMSE filter over time and frequency at once.
Sionna's LMMSE estimator filters one axis after the other, and all images of a batch on one grid.
"""

from dataclasses import dataclass
from types import ModuleType

import numpy as np
import torch
from jaxtyping import Bool, Complex, Float
from torch import Tensor

from dekag.channel.ofdm_grid import Layout
from dekag.types import ChannelState, Received


@dataclass(frozen=True, kw_only=True)
class Filter:
    """Weights of the pilots at each element of data, and the error variance of a unit-power channel there."""

    weights: Complex[Tensor, "batch elements pilots"]
    error: Float[Tensor, "batch elements"]


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """Covariance of a channel of unit power between OFDM symbols and between tones, E[h_a conj(h_b)].

    The covariance between two elements is the product, which is exact if Doppler and delay are independent.
    """

    time: Complex[Tensor, "symbols symbols"]
    tone: Complex[Tensor, "tones tones"]


def interpolate(layout: Layout, sent: Bool[Tensor, "batch pilots"], noise: Float[Tensor, " batch"]) -> Filter:
    """Least squares at the pilots, linear in between, constant beyond the outermost.

    The stated error is that of the noise, N0 sum |w|^2: what lies between two pilots is taken as it is.
    """
    tones, times = layout.pilot_tone.unique(), layout.pilot_time.unique()
    across = _linear(layout.data_tone, tones)
    weights = [
        torch.einsum("et,ef->etf", _linear(layout.data_time, times[:count]), across).flatten(1)
        for count in range(1, len(times) + 1)
    ]
    padded = torch.stack([torch.nn.functional.pad(w, (0, sent.shape[1] - w.shape[1])) for w in weights])
    selected = padded[sent.sum(dim=1) // len(tones) - 1]
    return Filter(weights=selected.to(torch.complex128), error=noise[:, None] * selected.square().sum(dim=2))


def shrink(plain: Filter) -> Filter:
    """The estimate scaled by 1 / (1 + v), for an error of variance v that is independent of the channel.

    With E|h|^2 = 1 it leaves an error v / (1 + v) that is uncorrelated with the estimate, as equalisation
    and the stated noise presume; a plain least-squares gain overstates itself.
    """
    scale = 1 / (1 + plain.error)
    return Filter(weights=scale[..., None] * plain.weights, error=scale * plain.error)


def wiener(
    layout: Layout,
    sent: Bool[Tensor, "batch pilots"],
    noise: Float[Tensor, " batch"],
    statistics: Statistics,
    shift: int,
) -> Filter:
    """W = R_dp (R_pp + N0 I)^-1, with error variance 1 - diag(W R_pd) (Kay, Estimation Theory, 12.5).

    shift: tones by which the pilots lie higher than those of the first stream.
    """
    tone = layout.pilot_tone + shift
    pilots = _covariance(statistics, layout.pilot_time, tone, layout.pilot_time, tone)
    cross = _covariance(statistics, layout.data_time, layout.data_tone, layout.pilot_time, tone)
    # pilots that an image does not send are cut out, which leaves 1 on their diagonal
    both = sent[:, :, None] & sent[:, None, :]
    matrix = pilots * both + torch.diag_embed(torch.where(sent, noise[:, None], 1.0))
    heard = cross * sent[:, None, :]
    weights = torch.linalg.solve(matrix, heard.mH).mH
    return Filter(weights=weights, error=1 - (weights * heard.conj()).sum(dim=2).real)


def combine(
    phy: ModuleType,
    received: Complex[Tensor, "batch elements antennas"],
    gain: Complex[Tensor, "batch elements antennas streams"],
    noise: Float[Tensor, "batch elements"],
) -> tuple[Complex[Tensor, "batch elements streams"], Float[Tensor, "batch elements streams"]]:
    """Unbiased LMMSE estimates of unit-energy streams, s + e, and the variance of e, by Sionna.

    noise: per receive antenna, with the power of the estimation error in it.
    """
    antennas = torch.eye(received.shape[2], dtype=torch.complex128, device=received.device)
    covariance = noise[:, :, None, None] * antennas
    estimate, error = phy.mimo.lmmse_equalizer(received, gain, covariance, precision="double")
    return estimate, error


def as_one_tap(
    estimate: Complex[Tensor, "batch uses"],
    error: Float[Tensor, "batch uses"],
    noise: Float[Tensor, " batch"],
    used: Bool[Tensor, "batch uses"],
    dtype: torch.dtype,
) -> Received:
    """What one antenna would have received over a real gain g: y = g (s + e), with g^2 E|e|^2 = N0.

    `mmse_equalise` then ends in the LMMSE estimate, and `reliability` in 1 / (1 + E|e|^2), so that a codec
    needs to know neither of streams nor of antennas.
    """
    gain = (noise[:, None] / error).sqrt() * used
    state = ChannelState(gain=gain.to(dtype), noise_power=noise.to(dtype.to_real()))
    return Received(symbols=(gain * estimate).to(dtype), state=state)


def _linear(to: Tensor, known: Tensor) -> Float[Tensor, "to known"]:
    """Matrix of linear interpolation from sorted positions, constant beyond the outermost."""
    columns = [np.interp(to.cpu(), known.cpu(), unit) for unit in np.eye(len(known))]
    return torch.as_tensor(np.stack(columns, axis=1), device=to.device)


def _covariance(
    statistics: Statistics, time: Tensor, tone: Tensor, other_time: Tensor, other_tone: Tensor
) -> Complex[Tensor, "elements others"]:
    return statistics.time[time[:, None], other_time] * statistics.tone[tone[:, None], other_tone]
