"""What a receiver cannot use, NaN and infinity above all, becomes uses that were not received."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Int64
from torch import Tensor

from dekag.channel.fading import used
from dekag.types import ChannelState, Condition, Received

MOST_POWER = 1e8
"""Largest |y|^2 over |h|^2 + N0: equalised symbols stay below its root, which no decoder overflows on."""


@dataclass(frozen=True, kw_only=True)
class Erased:
    """What is left of received symbols, all finite, and how many payload uses of each image were erased."""

    received: Received
    uses: Int64[Tensor, " batch"]


def erase_invalid(received: Received, condition: Condition) -> Erased:
    """Unequalised symbols with each use that is NaN, infinite or absurd as if it had not been received.

    An erased use has gain 0 and symbol 0: its reliability is 0, as beyond the payload, and equalisation leaves
    it 0. A use is erased if its symbol or its gain is NaN or infinite, if the noise power of its image is, or
    if its power is more than `MOST_POWER` times what signal and noise have on average. Other uses and other
    images keep every bit.
    """
    symbols, state = received.symbols, received.state
    # the noise power is of the whole image; 1 stands in for it where it is not finite, and every use goes
    known = state.noise_power.isfinite()
    noise_power = torch.where(known, state.noise_power, 1.0)
    level = _power(state.gain) + noise_power[:, None]
    valid = symbols.isfinite() & level.isfinite() & known[:, None]
    # an infinite power is above the limit as well
    valid &= _power(symbols) <= MOST_POWER * level
    valid_state = ChannelState(gain=torch.where(valid, state.gain, 0.0), noise_power=noise_power)
    payload = used(condition.to(symbols.device), symbols.shape[1])
    return Erased(
        received=replace(received, symbols=torch.where(valid, symbols, 0.0), state=valid_state),
        uses=(~valid & payload).sum(dim=1),
    )


def _power(values: Tensor) -> Tensor:
    return values.real.square() + values.imag.square()
