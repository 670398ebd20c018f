"""The channel core: y_k = h_k s_k + n_k over AWGN and correlated Rayleigh block fading."""

from dataclasses import dataclass

import torch

from dekag.channel.fading import block_gains, complex_normal, fit, used
from dekag.channel.pilots import receiver_state
from dekag.types import Condition, Received, Symbols
from dekag.units import snr_db_to_noise_power


@dataclass(frozen=True)
class BlockFading:
    """AWGN or Rayleigh block fading, image by image as `Condition.rayleigh` says.

    symbols: complex [batch, uses], mean |s|^2 = 1 over each payload; what lies beyond it is not sent.
    Returns unequalised symbols and the receiver's state; both are 0 beyond the payload.
    Differentiable in the symbols. Gains, noise and pilot noise are drawn from `rng` in this order, each for
    the whole [batch, uses] rectangle: an image's draws depend on neither content nor condition of its mates.

    Raises InputError if the condition does not fit the symbols.
    """

    def __call__(self, symbols: Symbols, condition: Condition, *, rng: torch.Generator) -> Received:
        """Fade and add noise to symbols [batch, uses]; gain and noise power are what the receiver knows."""
        batch, width = symbols.shape
        fitted = fit(condition, symbols)
        gain = block_gains(fitted, width, rng=rng, dtype=symbols.dtype)
        white = complex_normal(batch, width, rng=rng, device=symbols.device, dtype=symbols.dtype)
        # N0 is set by the mean SNR: a deep fade lowers the signal, never the noise.
        noise_power = snr_db_to_noise_power(fitted.snr_db)
        noise = noise_power.sqrt()[:, None] * white * used(fitted, width)
        return Received(symbols=gain * symbols + noise, state=receiver_state(gain, fitted, rng=rng))
