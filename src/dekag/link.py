"""The whole path of one image on one screen: prompts -> latent -> symbols -> received -> latent -> image."""

import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from jaxtyping import Int64
from torch import Tensor

from dekag.channel import BlockFading, recover
from dekag.codec import TrainableCodec, TrainedRange, check_payload
from dekag.types import (
    Channel,
    Codec,
    Condition,
    ConditionWarning,
    Delivery,
    Generator,
    Image,
    Latent,
    Ledger,
    Received,
    Symbols,
)
from dekag.wire.png import png_bytes

SEED_BYTES = 8
BUNDLE_ID_BYTES = 32
Clock = dict[str, float]
"""Milliseconds by stage."""


@dataclass(frozen=True, kw_only=True)
class Link:
    """An edge that draws, a codec, and the channel to the user.

    bundles: ids of the updates that generator and codec carry, by kind.
    trained: the conditions that the codec's update was trained for, if its bundle says so.
    """

    generator: Generator
    codec: Codec
    channel: Channel = field(default_factory=BlockFading)
    bundles: dict[str, str] = field(default_factory=dict)
    trained: TrainedRange | None = None


@dataclass(frozen=True, kw_only=True)
class Sent:
    """What the edge draws and what it puts on the air, with the time that each took."""

    latent: Latent
    symbols: Symbols
    milliseconds: Clock


@dataclass(frozen=True, kw_only=True)
class Arrived:
    """What the user makes of received symbols, and how many uses of each image were erased."""

    latent: Latent
    image: Image
    erased_uses: Int64[Tensor, " batch"]
    milliseconds: Clock


def deliver(
    link: Link,
    prompts: Sequence[str],
    condition: Condition,
    *,
    seeds: Sequence[int],
    rng: torch.Generator,
) -> Delivery:
    """Draw each prompt at the edge and send it to the user.

    `condition` is that of each image, or one for all; `rng` drives the channel.
    Warns with ConditionWarning if the condition is none that the codec's update was trained for.
    Raises InputError for unusable prompts, seeds or conditions.
    """
    condition = condition.expand(len(prompts))
    clock: Clock = {}
    sent = send(link, prompts, condition, seeds=seeds)
    warn_outside(link, condition)  # of what can be sent at all
    with _timed(clock, "channel"), torch.no_grad():
        received = link.channel(sent.symbols, condition, rng=rng)
    arrived = receive(link, received, condition)
    drawn = picture(link, sent.latent)
    return Delivery(
        image=arrived.image,
        drawn=drawn,
        latent_sent=sent.latent,
        latent_received=arrived.latent,
        condition=condition,
        erased_uses=arrived.erased_uses,
        prompts=tuple(prompts),
        seeds=tuple(seeds),
        bundles=dict(link.bundles),
        ledger=_ledger(link, prompts, condition, drawn, sent.milliseconds | clock | arrived.milliseconds),
    )


@torch.no_grad()
def send(link: Link, prompts: Sequence[str], condition: Condition, *, seeds: Sequence[int]) -> Sent:
    """The half of a delivery at the edge: prompts to latents and symbols.

    Raises InputError for unusable prompts, seeds or conditions.
    """
    clock: Clock = {}
    if isinstance(link.codec, TrainableCodec):  # it says how much it sends, before anything is drawn
        check_payload(link.codec, condition)
    with _timed(clock, "generate"):
        latent = link.generator(prompts, seeds=seeds)
    with _timed(clock, "encode"):
        symbols = link.codec.encode(latent, condition.expand(len(prompts)))
    return Sent(latent=latent, symbols=symbols, milliseconds=clock)


@torch.no_grad()
def receive(link: Link, received: Received, condition: Condition) -> Arrived:
    """The half of a delivery at the user: unequalised symbols to latents and images.

    What is NaN, infinite or absurd counts as not received (`channel.recover`), so that images are always finite; one
    of which nothing was received is what the decoder makes of no information.
    """
    condition = condition.expand(len(received.symbols))
    clock: Clock = {}
    with _timed(clock, "decode"):
        recovered = recover(link.codec, received, condition)
    with _timed(clock, "image"):
        image = link.generator.decode(recovered.latent)
    return Arrived(
        latent=recovered.latent, image=image, erased_uses=recovered.erased_uses, milliseconds=clock
    )


@torch.no_grad()
def picture(link: Link, latent: Latent) -> Image:
    """The images that a perfect channel would deliver."""
    return link.generator.decode(latent)


def warn_outside(link: Link, condition: Condition) -> None:
    """One ConditionWarning if the condition is none that the codec's update was trained for."""
    found = [] if link.trained is None else link.trained.outside(condition)
    if found:
        warnings.warn(
            f"the update of the codec was not trained for this condition: {'; '.join(found)}",
            ConditionWarning,
            stacklevel=2,
        )


def _ledger(link: Link, prompts: Sequence[str], condition: Condition, drawn: Image, clock: Clock) -> Ledger:
    return Ledger(
        prompt_bytes=sum(len(prompt.encode()) for prompt in prompts),
        seed_bytes=SEED_BYTES * len(prompts),
        id_bytes=BUNDLE_ID_BYTES * len(link.bundles),
        **uses_of(link.codec, condition),
        image_bytes=sum(len(file) for file in png_bytes(drawn)),
        milliseconds=clock,
    )


def uses_of(codec: Codec, condition: Condition) -> dict[str, int]:
    """Where the channel uses of images went, as `Ledger` has them.

    Rate and channel statistics are the condition, which both ends know; `side_uses` are what a codec says that it
    spends of the payload on how to read the rest.
    """
    payload, pilots = int(condition.payload.sum()), int((condition.uses - condition.payload).sum())
    side = len(condition) * int(getattr(codec, "side_uses", 0))
    return {"payload_uses": payload - side, "pilot_uses": pilots, "side_uses": side}


@contextmanager
def _timed(clock: Clock, stage: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    clock[stage] = 1000 * (time.perf_counter() - started)
