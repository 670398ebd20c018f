"""The loss of a JSCC codec through the channel, and the conditions it is drawn over."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dekag.channel import BlockFading, recover
from dekag.codec import TrainableCodec, importance_of, require_trainable
from dekag.training.loop import Progress, TrainConfig, Trained, Validation, train
from dekag.training.state import StateFile, state_file
from dekag.types import Channel, Condition, Image, InputError, Latent, PerImage

COMMITMENT = 0.25
VALIDATE_EVERY = 250
FAST = -1
"""In place of a number of blocks: one block for each use."""
SMALLEST_ERROR = 1e-6
"""Below it an error counts no less: the logarithm of a perfect delivery is finite."""


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

    @property
    def max_payload(self) -> int:
        """The most symbols that a drawn image has, in channel uses."""
        paid = min(self.pilots) * min(self.blocks) if min(self.blocks) > 1 else 0
        return max(self.uses) - paid

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


@dataclass(frozen=True, kw_only=True, eq=False)
class TransmissionData:
    """What a codec, or an update of one, is trained on.

    latents: [images, channels, rows, cols] of unit scale, in any precision. conditions: drawn anew for each image of
    a batch. batch: images a step. channel: what lies between; it has to be differentiable in the symbols.
    importance: of errors in each latent channel, mean 1; the codec's own if None.
    """

    latents: Latent
    conditions: ConditionRange
    batch: int = 32
    channel: Channel = field(default_factory=BlockFading)
    importance: Float[Tensor, " channels"] | None = None


def transmission_loss(
    codec: TrainableCodec,
    channel: Channel,
    latents: Latent,
    condition: Condition,
    importance: Float[Tensor, " channels"],
    *,
    rng: torch.Generator,
    commitment: float = COMMITMENT,
) -> Tensor:
    """Mean logarithm of each image's weighted latent error, plus the commitment loss; scalar.

    PSNR is a logarithm too: so a decibel counts alike under every condition, and the error of the worst does
    not drown the others.
    """
    encoded = codec.transmit(latents, condition)
    received = channel(encoded.symbols, condition, rng=rng)
    error = weighted_error(recover(codec, received, condition).latent - latents, importance)
    return error.clamp(min=SMALLEST_ERROR).log().mean() + commitment * encoded.commitment.mean()


def weighted_error(difference: Latent, importance: Float[Tensor, " channels"]) -> PerImage:
    """Mean square over the numbers of a latent, each channel weighted by its importance of mean 1."""
    return (difference.float().square() * importance[:, None, None]).flatten(1).mean(1)


def fit(
    codec: nn.Module,
    data: TransmissionData,
    training: TrainConfig,
    *,
    checkpoint: Path | StateFile | None = None,
    on_step: Callable[[Progress], None] | None = None,
    validation: Validation | None = None,
) -> Trained:
    """Train what requires a gradient of a codec, in place, over a channel and a range of conditions.

    With `checkpoint`, an interrupted run goes on where it was. validation: as `held_out_quality` makes one.
    Raises InputError, before the first step, if `codec` is no TrainableCodec or does not fit the data.
    """
    trained = require_trainable(codec)
    check_data(trained, data)
    importance = importance_of(trained) if data.importance is None else data.importance
    importance = importance.to(data.latents.device)

    def loss(rng: torch.Generator) -> Tensor:
        drawn = data.latents[torch.randint(len(data.latents), (data.batch,), generator=rng)].float()
        condition = data.conditions.draw(data.batch, rng)
        return transmission_loss(trained, data.channel, drawn, condition, importance, rng=rng)

    kept = state_file(checkpoint)
    if kept is not None:
        fixed = {name: value for name, value in codec.named_parameters() if not value.requires_grad}
        kept = kept.depending_on(
            kind=type(codec).__qualname__,
            codec=fixed,
            latents=data.latents,
            conditions=data.conditions,
            batch=data.batch,
            channel=data.channel,
        )
    return train(codec, loss, training, checkpoint=kept, on_step=on_step, validation=validation)


def held_out_quality(codec: TrainableCodec, data: TransmissionData, held: Latent, *, seed: int) -> Validation:
    """The mean latent SNR in dB of other latents under conditions of the same range, once every VALIDATE_EVERY steps.

    Every time the same conditions and noise.
    """
    importance = importance_of(codec) if data.importance is None else data.importance
    held = held.float()

    def score(step: int) -> float:
        rng = torch.Generator().manual_seed(seed)
        condition = data.conditions.draw(len(held), rng)
        return (
            -10
            / math.log(10)
            * float(
                transmission_loss(codec, data.channel, held, condition, importance, rng=rng, commitment=0.0)
            )
        )

    return Validation(score=score, every=VALIDATE_EVERY)


def check_data(codec: TrainableCodec, data: TransmissionData) -> None:
    """Raise InputError if a codec does not take the latents, or does not serve all of the conditions."""
    if not len(data.latents) or data.batch < 1:
        raise InputError("training needs at least one latent, and batches of at least one")
    if tuple(data.latents.shape[1:]) != codec.latent_shape:
        expected = f"[images, {', '.join(map(str, codec.latent_shape))}]"
        raise InputError(f"the codec takes latents {expected}, got {list(data.latents.shape)}")
    if data.conditions.max_payload > codec.max_uses:
        raise InputError(
            f"the codec sends at most {codec.max_uses} payload uses an image, and the conditions have up to"
            f" {data.conditions.max_payload}"
        )


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
