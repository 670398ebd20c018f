"""One-tap equalisation of received symbols on the gain that the receiver knows."""

from dataclasses import replace

from jaxtyping import Float
from torch import Tensor

from dekag.types import ChannelState, Received


def _energy(state: ChannelState) -> Float[Tensor, "batch uses"]:
    return state.gain.real.square() + state.gain.imag.square()


def mmse_equalise(received: Received) -> Received:
    """Linear MMSE estimate of unit-energy symbols, s_hat = conj(h) y / (|h|^2 + N0), with the same state.

    It is biased towards 0, E[s_hat | s] = reliability(state) * s; divide by the reliability before a hard
    decision on more than one amplitude.
    """
    state = received.state
    weight = state.gain.conj() / (_energy(state) + state.noise_power[:, None])
    return replace(received, symbols=weight * received.symbols)


def reliability(state: ChannelState) -> Float[Tensor, "batch uses"]:
    """Share of a unit-energy symbol that survives MMSE equalisation, |h|^2 / (|h|^2 + N0), in [0, 1].

    1 less the mean square error of the equalised symbol; 0 where nothing is sent.
    """
    energy = _energy(state)
    return energy / (energy + state.noise_power[:, None])
