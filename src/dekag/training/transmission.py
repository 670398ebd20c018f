"""The loss of a JSCC codec through the channel, and the conditions it is drawn over."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dekag.channel import BlockFading, mmse_equalise
from dekag.codec.jscc import Encoded
from dekag.training.loop import Progress, TrainConfig, train
from dekag.types import Channel, Condition, Image, InputError, Latent, PerImage, Received

COMMITMENT = 0.25
FAST = -1
"""In place of a number of blocks: one block for each use."""
SMALLEST_ERROR = 1e-6
"""Below it an error counts no less: the logarithm of a perfect delivery is finite."""


@runtime_checkable
class TrainableCodec(Protocol):
    """A codec whose encoding tells its commitment loss."""

    def transmit(self, latent: Latent, condition: Condition) -> Encoded: ...

    def decode(self, received: Received, condition: Condition) -> Latent: ...


@dataclass(frozen=True, kw_only=True)
class ConditionRange:
    """Conditions to train over: every field drawn evenly from its values.

    blocks: of the fading, 0 for AWGN and FAST for one a use. correlations and pilots: under fading of more than
    one block and fewer than FAST.
    """

    uses: tuple[int, ...]
    snrs_db: tuple[float, ...]
    blocks: tuple[int, ...]
    correlations: tuple[float, ...] = (0.0,)
    pilots: tuple[int, ...] = (0,)

    def draw(self, batch: int, rng: torch.Generator) -> Condition:
        """One condition for each image."""

        def pick(values: Sequence[int | float]) -> Tensor:
            return torch.tensor(values)[torch.randint(len(values), (batch,), generator=rng)]

        uses, drawn = pick(self.uses), pick(self.blocks)
        few = drawn > 1
        return Condition(
            uses=uses,
            snr_db=pick(self.snrs_db),
            rayleigh=drawn != 0,
            blocks=torch.where(drawn == FAST, uses, drawn.clamp(min=1)),
            correlation=torch.where(few, pick(self.correlations), 0.0),
            pilots=torch.where(few, pick(self.pilots), 0),
        )


def transmission_loss(
    codec: TrainableCodec,
    channel: Channel,
    latents: Latent,
    condition: Condition,
    importance: Float[Tensor, " channels"],
    *,
    rng: torch.Generator,
) -> Tensor:
    """Mean logarithm of each image's weighted latent error, plus the commitment loss; scalar.

    PSNR is a logarithm too: so a decibel counts alike under every condition, and the error of the worst does
    not drown the others.
    """
    encoded = codec.transmit(latents, condition)
    received = mmse_equalise(channel(encoded.symbols, condition, rng=rng))
    error = weighted_error(codec.decode(received, condition) - latents, importance)
    return error.clamp(min=SMALLEST_ERROR).log().mean() + COMMITMENT * encoded.commitment.mean()


def weighted_error(difference: Latent, importance: Float[Tensor, " channels"]) -> PerImage:
    """Mean square over the numbers of a latent, each channel weighted by its importance of mean 1."""
    return (difference.float().square() * importance[:, None, None]).flatten(1).mean(1)


def fit(
    codec: nn.Module,
    importance: Float[Tensor, " channels"],
    latents: Latent,
    conditions: ConditionRange,
    training: TrainConfig,
    batch: int,
    *,
    checkpoint: Path | None = None,
    on_step: Callable[[Progress], None] | None = None,
) -> None:
    """Train what requires a gradient of a codec, in place, on latents of unit scale over a range of conditions.

    With `checkpoint`, an interrupted run goes on where it was. Raises InputError if `codec` is no TrainableCodec.
    """
    if not isinstance(codec, TrainableCodec):
        raise InputError(f"a codec to train needs transmit and decode, {type(codec).__name__} lacks one")
    channel = BlockFading()

    def loss(rng: torch.Generator) -> Tensor:
        chosen = latents[torch.randint(len(latents), (batch,), generator=rng)].float()
        condition = conditions.draw(batch, rng)
        return transmission_loss(codec, channel, chosen, condition, importance, rng=rng)

    train(codec, loss, training, checkpoint=checkpoint, on_step=on_step)


@torch.no_grad()
def channel_importance(
    decode: Callable[[Latent], Image], latents: Latent, *, rng: torch.Generator
) -> Float[Tensor, " channels"]:
    """Squared change of the image for a small change in each latent channel, mean 1."""
    images = decode(latents)
    changes = []
    for channel in range(latents.shape[1]):
        moved = latents.clone()
        moved[:, channel] += 0.1 * torch.randn(moved[:, channel].shape, generator=rng).to(moved)
        changes.append((decode(moved) - images).square().mean())
    importance = torch.stack(changes)
    return importance / importance.mean()
