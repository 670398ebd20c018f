"""The whole path of one image on one screen: prompts -> latent -> symbols -> received -> latent -> image."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from dekag.channel import BlockFading, mmse_equalise
from dekag.images import png_bytes
from dekag.types import Channel, Codec, Condition, Delivery, Generator, Image, Ledger

SEED_BYTES = 8
BUNDLE_ID_BYTES = 32


@dataclass(frozen=True, kw_only=True)
class Link:
    """An edge that draws, a codec, and the channel to the user.

    bundles: ids of the updates that generator and codec carry, by kind.
    """

    generator: Generator
    codec: Codec
    channel: Channel = field(default_factory=BlockFading)
    bundles: dict[str, str] = field(default_factory=dict)


@torch.no_grad()
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
    Raises InputError for unusable prompts, seeds or conditions.
    """
    condition = condition.expand(len(prompts))
    clock: dict[str, float] = {}
    with _timed(clock, "generate"):
        sent = link.generator(prompts, seeds=seeds)
    with _timed(clock, "encode"):
        symbols = link.codec.encode(sent, condition)
    with _timed(clock, "channel"):
        received = mmse_equalise(link.channel(symbols, condition, rng=rng))
    with _timed(clock, "decode"):
        arrived = link.codec.decode(received, condition)
    with _timed(clock, "image"):
        image = link.generator.decode(arrived)
    drawn = link.generator.decode(sent)
    return Delivery(
        image=image,
        drawn=drawn,
        latent_sent=sent,
        latent_received=arrived,
        condition=condition,
        prompts=tuple(prompts),
        seeds=tuple(seeds),
        bundles=dict(link.bundles),
        ledger=_ledger(link, prompts, condition, drawn, clock),
    )


def _ledger(
    link: Link, prompts: Sequence[str], condition: Condition, drawn: Image, clock: dict[str, float]
) -> Ledger:
    payload = int(condition.payload.sum())
    return Ledger(
        prompt_bytes=sum(len(prompt.encode()) for prompt in prompts),
        seed_bytes=SEED_BYTES * len(prompts),
        id_bytes=BUNDLE_ID_BYTES * len(link.bundles),
        payload_uses=payload,
        pilot_uses=int(condition.uses.sum()) - payload,
        # rate and channel statistics are the condition, which both ends know; nothing else is sent
        side_uses=0,
        image_bytes=sum(len(file) for file in png_bytes(drawn)),
        milliseconds=clock,
    )


@contextmanager
def _timed(clock: dict[str, float], stage: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    clock[stage] = 1000 * (time.perf_counter() - started)
