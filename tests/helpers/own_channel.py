"""A channel of one's own: bursts of a strong interferer. `docs/own_codec.md` shows this file."""

from dataclasses import dataclass, replace

import torch

from dekag.channel import BlockFading
from dekag.types import Condition, Received, Symbols


@dataclass(frozen=True)
class Bursts:
    """Block fading, and on one in `every` uses an interferer of power 1 that the receiver does not know of."""

    every: int = 10

    def __call__(self, symbols: Symbols, condition: Condition, *, rng: torch.Generator) -> Received:
        received = BlockFading()(symbols, condition, rng=rng)
        hit = (
            torch.randint(self.every, symbols.shape, generator=rng, device=rng.device).to(symbols.device) == 0
        )
        sent = received.state.gain != 0
        return replace(received, symbols=received.symbols + (hit & sent))
