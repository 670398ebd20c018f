"""A delivery from prompts to the pictures that a user sees, with a report of what it cost."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from dekag.channel import ChannelSettings, named_channel
from dekag.evaluation.metrics import psnr_db
from dekag.training.run import OnStage
from dekag.types import Channel, Condition, Delivery, InputError
from dekag.units import cbr_to_uses
from dekag.wire.files import staged, write_json
from dekag.wire.png import write_images
from dekag.world import World


@dataclass(frozen=True, kw_only=True)
class Transmission:
    """A channel and the condition of one image over it."""

    channel: Channel
    condition: Condition


@dataclass(frozen=True, kw_only=True)
class TransmissionSettings:
    """A channel as a user names it, an SNR, and a rate: as channel uses, as channel bandwidth ratio, or the world's."""

    channel: ChannelSettings
    snr_db: float = 10.0
    uses: int | None = None
    cbr: float | None = None

    def __post_init__(self) -> None:
        if self.uses is not None and self.cbr is not None:
            raise InputError("give the rate as uses or as cbr, not as both")
        if self.cbr is not None and not (math.isfinite(self.cbr) and self.cbr > 0):
            raise InputError(f"the channel bandwidth ratio must be a positive number, got {self.cbr}")

    def for_world(self, world: World) -> Transmission:
        """Channel and condition for the pictures of a world."""
        named = named_channel(self.channel)
        return Transmission(channel=named.channel, condition=named.condition(self._uses(world), self.snr_db))

    def _uses(self, world: World) -> int:
        if self.cbr is not None:
            side = world.side
            return int(cbr_to_uses(torch.tensor(self.cbr, dtype=torch.float64), side, side))
        return int(world.nominal.uses) if self.uses is None else self.uses


@dataclass(frozen=True, kw_only=True)
class DeliverTask:
    """Prompts to draw with seeds counted from `seed`, over a transmission, with the world's updates or without."""

    prompts: Sequence[str]
    transmission: Transmission
    align: bool = True
    seed: int = 0


def deliver(
    world: World, task: DeliverTask, out: Path, *, device: str | torch.device = "cpu", on_stage: OnStage
) -> dict[str, Any]:
    """Deliver prompts, write the received images and report.json; returns the report."""
    on_stage("load")
    system = world.system(align=task.align, device=device)
    system = replace(system, link=replace(system.link, channel=task.transmission.channel))
    with staged(out) as folder:
        on_stage("send")
        seeds = [task.seed + number for number in range(len(task.prompts))]
        delivery = system.deliver(
            task.prompts, task.transmission.condition, seeds=seeds, channel_seed=task.seed
        )
        names = [f"{number:04d}_seed{s}.png" for number, s in enumerate(seeds)]
        write_images(folder, names, delivery.image)
        report = {"world": world.name, **delivery_json(delivery, names)}
        write_json(folder / "report.json", report)
    return report


def delivery_json(delivery: Delivery, names: Sequence[str]) -> dict[str, Any]:
    """A delivery's numbers: PSNR of what arrived against what was drawn, and the ledger."""
    quality = psnr_db(delivery.drawn, delivery.image).tolist()
    ledger = delivery.ledger
    return {
        "images": [
            {"file": name, "prompt": prompt, "seed": seed, "psnr_db": round(value, 3), "erased_uses": erased}
            for name, prompt, seed, value, erased in zip(
                names, delivery.prompts, delivery.seeds, quality, delivery.erased_uses.tolist(), strict=True
            )
        ],
        "bundles": delivery.bundles,
        "ledger": {
            **asdict(ledger),
            "core_link_bytes": ledger.prompt_bytes + ledger.seed_bytes + ledger.id_bytes,
            "channel_uses": ledger.payload_uses + ledger.pilot_uses + ledger.side_uses,
        },
    }
