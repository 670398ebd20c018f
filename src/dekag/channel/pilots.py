"""What the receiver knows of the gains: all, or what it estimates from pilots that cost channel uses."""

import torch

from dekag.channel.fading import ComplexRows, block_index, complex_normal, used
from dekag.types import ChannelState, Condition
from dekag.units import snr_db_to_noise_power


def receiver_state(gain: ComplexRows, condition: Condition, *, rng: torch.Generator) -> ChannelState:
    """State of a transmission over `gain` [batch, width], the true gain per channel use.

    Where `condition.pilots` is 0 or nothing fades, that is the gain itself and N0. Elsewhere it is the LMMSE
    estimate of each block's gain from p unit-energy pilots at the same SNR, and N0 plus the variance of the
    estimation error, which is the noise that unit-energy symbols see. `Condition.payload` counts the pilots.
    """
    batch, width = gain.shape
    noise_power = snr_db_to_noise_power(condition.snr_db)
    estimated = condition.rayleigh & (condition.pilots > 0)
    pilots = condition.pilots.clamp(min=1)
    white = complex_normal(batch, width, rng=rng, device=gain.device, dtype=gain.dtype)
    # Least squares on p pilots gives h + CN(0, N0 / p); with E|h|^2 = 1 the LMMSE estimate shrinks it by
    # p / (p + N0), which leaves an error of variance N0 / (p + N0), uncorrelated with the estimate.
    error = (noise_power / pilots).sqrt()[:, None] * white.gather(1, block_index(condition, width))
    estimate = (pilots / (pilots + noise_power))[:, None] * (gain + error) * used(condition, width)
    error_power = noise_power / (pilots + noise_power)
    return ChannelState(
        gain=torch.where(estimated[:, None], estimate, gain),
        noise_power=noise_power + torch.where(estimated, error_power, 0.0),
    )
