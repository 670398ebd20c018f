"""One-tap equalisation of received symbols on the gain that the receiver knows."""

from dataclasses import replace

from dekag.types import Received


def mmse_equalise(received: Received) -> Received:
    """Linear MMSE estimate of unit-energy symbols, s_hat = conj(h) y / (|h|^2 + N0), with the same state.

    It is biased towards 0, E[s_hat | s] = state.reliability * s; divide by it before a hard decision
    on more than one amplitude.
    """
    state = received.state
    energy = state.gain.real.square() + state.gain.imag.square()
    weight = state.gain.conj() / (energy + state.noise_power[:, None])
    return replace(received, symbols=weight * received.symbols)
