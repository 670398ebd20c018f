"""A channel whose SNR both ends take for another."""

from dataclasses import dataclass, field, replace

import torch

from dekag.channel.block_fading import BlockFading
from dekag.types import Channel, Condition, Received, Symbols
from dekag.units import db_to_linear


@dataclass(frozen=True, kw_only=True)
class MisjudgedSnr:
    """Another channel at an SNR that is lower by `overrated_db` than the condition says.

    The gain is known as the other channel tells it; the noise power that the receiver goes by is that of the
    condition, so codec and equaliser are wrong alike. Raises what the other channel raises.
    """

    overrated_db: float | int
    channel: Channel = field(default_factory=BlockFading)

    def __call__(self, symbols: Symbols, condition: Condition, *, rng: torch.Generator) -> Received:
        """Send over the other channel at the lower SNR, and leave the noise power at that of the condition."""
        true = replace(condition, snr_db=condition.snr_db - self.overrated_db)
        received = self.channel(symbols, true, rng=rng)
        believed = received.state.noise_power / db_to_linear(torch.tensor(float(self.overrated_db)))
        return replace(received, state=replace(received.state, noise_power=believed))
