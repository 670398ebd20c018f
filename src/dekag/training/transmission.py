"""The loss of a JSCC codec through the channel, and the conditions it is drawn over."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from dekag.channel.equaliser import mmse_equalise
from dekag.codec.jscc import Encoded
from dekag.types import Channel, Condition, Image, Latent, Received

COMMITMENT = 0.25


@runtime_checkable
class TrainableCodec(Protocol):
    """A codec whose encoding tells its commitment loss."""

    def transmit(self, latent: Latent, condition: Condition) -> Encoded: ...

    def decode(self, received: Received, condition: Condition) -> Latent: ...


@dataclass(frozen=True, kw_only=True)
class ConditionRange:
    """Conditions to train over, drawn evenly: the grid's corners and what lies between them."""

    uses: tuple[int, ...]
    snr_db: tuple[float, float]
    rayleigh_share: float
    blocks: tuple[int, ...] = (1,)

    def draw(self, batch: int, rng: torch.Generator) -> Condition:
        """One condition for each image."""
        low, high = self.snr_db
        return Condition(
            uses=torch.tensor(self.uses)[torch.randint(len(self.uses), (batch,), generator=rng)],
            snr_db=low + (high - low) * torch.rand(batch, generator=rng),
            rayleigh=torch.rand(batch, generator=rng) < self.rayleigh_share,
            blocks=torch.tensor(self.blocks)[torch.randint(len(self.blocks), (batch,), generator=rng)],
        )


def transmission_loss(
    codec: TrainableCodec,
    channel: Channel,
    latents: Latent,
    condition: Condition,
    importance: Tensor,
    *,
    rng: torch.Generator,
) -> Tensor:
    """Latent error weighted by channel, [channels] of mean 1, plus the commitment loss; scalar."""
    encoded = codec.transmit(latents, condition)
    received = mmse_equalise(channel(encoded.symbols, condition, rng=rng))
    error = (codec.decode(received, condition) - latents).square().mean((0, 2, 3))
    return (error * importance).mean() + COMMITMENT * encoded.commitment.mean()


@torch.no_grad()
def channel_importance(decode: Callable[[Latent], Image], latents: Latent, *, rng: torch.Generator) -> Tensor:
    """Squared change of the image for a small change in each latent channel, [channels] of mean 1."""
    images = decode(latents)
    changes = []
    for channel in range(latents.shape[1]):
        moved = latents.clone()
        moved[:, channel] += 0.1 * torch.randn(moved[:, channel].shape, generator=rng).to(moved)
        changes.append((decode(moved) - images).square().mean())
    importance = torch.stack(changes)
    return importance / importance.mean()
