"""Deliveries: what the edge draws, as symbols for the air, and what a user at some channel would see of it."""

import io
import tarfile
import tempfile
import time
from collections import OrderedDict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch

from dekag.evaluation.metrics import psnr_db
from dekag.link import BUNDLE_ID_BYTES, SEED_BYTES, Link, receive, uses_of
from dekag.serving.edge.bundles import Coder
from dekag.serving.edge.recipes import Recipe
from dekag.serving.images.engine import Drawn, Model
from dekag.types import Channel, Condition, Image, Ledger, Received, Symbols
from dekag.wire.frame import Frame, write_frame
from dekag.wire.sigmf import Recording, recording_files, write_recording

Kept = TypeVar("Kept")


class Recent(Generic[Kept]):
    """What was used last, at most so much of it."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._kept: OrderedDict[Any, Kept] = OrderedDict()

    def get(self, key: Any) -> Kept | None:
        """What is kept under a key, if it still is."""
        if key in self._kept:
            self._kept.move_to_end(key)
        return self._kept.get(key)

    def keep(self, key: Any, value: Kept) -> None:
        """Keep a value; what was not used for longest goes."""
        self._kept[key] = value
        self._kept.move_to_end(key)
        if len(self._kept) > self._size:
            self._kept.popitem(last=False)


@dataclass(frozen=True, kw_only=True, eq=False)
class Picture:
    """What was drawn, and as a PNG file."""

    drawn: Drawn
    png: bytes


@dataclass(frozen=True, kw_only=True, eq=False)
class Delivery:
    """One image on its way: drawn, encoded for a condition, and sent over a simulated channel, `air`."""

    recipe: Recipe
    picture: Picture
    model: Model
    coder: Coder
    condition: Condition
    symbols: Symbols
    encode_ms: float
    air: Channel

    @property
    def id(self) -> str:
        """Its name, from which any edge with the same world and updates can make it again."""
        return self.recipe.to_id()

    @property
    def prompt(self) -> str:
        """What was drawn."""
        assert self.recipe.prompt is not None
        return self.recipe.prompt

    @property
    def bundles(self) -> dict[str, str]:
        """Ids of the updates that took part, by kind."""
        both = {"generation": self.model.bundle, "transmission": self.coder.bundle}
        return {kind: bundle for kind, bundle in both.items() if bundle is not None}

    @property
    def warnings(self) -> list[str]:
        """What is outside of the conditions that the codec's update was trained for."""
        return [] if self.coder.trained is None else self.coder.trained.outside(self.condition)


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What a user at one channel sees of a delivery, [1, 3, height, width], and how near that is."""

    image: Image
    psnr_db: float
    erased_uses: int
    ledger: Ledger


@torch.no_grad()
def encode(recipe: Recipe, picture: Picture, model: Model, coder: Coder, air: Channel) -> Delivery:
    """Put a drawn latent on the air. Raises InputError for a condition that the codec does not serve."""
    condition = recipe.condition.condition()
    started = time.perf_counter()
    latent = picture.drawn.latent
    assert latent is not None
    symbols = coder.codec.encode(latent, condition)
    return Delivery(
        recipe=recipe,
        picture=picture,
        model=model,
        coder=coder,
        condition=condition,
        symbols=symbols,
        encode_ms=1000 * (time.perf_counter() - started),
        air=air,
    )


def frame_bytes(delivery: Delivery, channel_seed: int | None) -> bytes:
    """The frame of a delivery: symbols as sent, or with a seed as received over the simulated channel."""
    received = None if channel_seed is None else _over_the_air(delivery, channel_seed)
    return write_frame(
        Frame(
            symbols=delivery.symbols if received is None else received.symbols,
            condition=delivery.condition,
            seed=delivery.picture.drawn.seed,
            world=delivery.recipe.world,
            bundles=delivery.bundles,
            delivery=delivery.id,
            gain=None if received is None else received.state.gain,
            noise_power=None if received is None else received.state.noise_power,
            channel_seed=channel_seed,
        )
    )


def sigmf_bytes(delivery: Delivery) -> bytes:
    """A tar of the SigMF recording of a delivery's symbols as sent."""
    recording = Recording(
        symbols=delivery.symbols,
        condition=delivery.condition,
        seed=delivery.picture.drawn.seed,
        world=delivery.recipe.world,
        bundles=delivery.bundles,
    )
    buffer = io.BytesIO()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "delivery"
        write_recording(path, recording)
        with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
            for file in recording_files(path):
                archive.add(file, arcname=f"delivery/{file.name}")
    return buffer.getvalue()


@torch.no_grad()
def see(delivery: Delivery, channel_seed: int) -> Seen:
    """What a user at this channel sees, in the model's thread."""
    started = time.perf_counter()
    received = _over_the_air(delivery, channel_seed)
    channel_ms = 1000 * (time.perf_counter() - started)
    link = Link(generator=delivery.model.generator, codec=delivery.coder.codec)
    arrived = receive(link, received, delivery.condition)
    drawn = delivery.picture.drawn.image.clamp(0, 1).cpu()
    image = arrived.image.clamp(0, 1).cpu()
    clock = {
        "generate": delivery.picture.drawn.draw_ms,
        "encode": delivery.encode_ms,
        "channel": channel_ms,
        **arrived.milliseconds,
    }
    return Seen(
        image=image,
        psnr_db=float(psnr_db(drawn, image)[0]),
        erased_uses=int(arrived.erased_uses[0]),
        ledger=Ledger(
            prompt_bytes=len(delivery.prompt.encode()),
            seed_bytes=SEED_BYTES,
            id_bytes=BUNDLE_ID_BYTES * len(delivery.bundles),
            **uses_of(link.codec, delivery.condition),
            image_bytes=len(delivery.picture.png),
            milliseconds={stage: round(value, 2) for stage, value in clock.items()},
        ),
    )


def ledger_json(ledger: Ledger) -> dict[str, Any]:
    """A ledger with its two sums."""
    return {
        **asdict(ledger),
        "core_link_bytes": ledger.prompt_bytes + ledger.seed_bytes + ledger.id_bytes,
        "channel_uses": ledger.payload_uses + ledger.pilot_uses + ledger.side_uses,
    }


def _over_the_air(delivery: Delivery, channel_seed: int) -> Received:
    rng = torch.Generator().manual_seed(channel_seed)
    return delivery.air(delivery.symbols, delivery.condition, rng=rng)
