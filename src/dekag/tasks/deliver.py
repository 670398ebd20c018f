"""What the commands of the command line do; each takes a world and plain values and returns numbers or a bundle."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from dekag.bundle.bundle import Quantisation
from dekag.channel import ChannelSettings, named_channel
from dekag.data.prompts import read_prompts
from dekag.evaluation.accuracy import score_accuracy
from dekag.evaluation.figures import contact_sheet, save_figure
from dekag.evaluation.generation import EDGE_SEED, draw
from dekag.evaluation.judges import ClipJudge
from dekag.evaluation.metrics import psnr_db
from dekag.evaluation.statistics import Mean
from dekag.generation.diffusers import DiffusersGenerator
from dekag.types import Channel, Condition, Delivery, InputError
from dekag.units import cbr_to_uses
from dekag.wire.files import staged, write_images, write_json
from dekag.world import World
from dekag.world.shipped import shown

Stage = Callable[[str], None]


def parse_seeds(text: str) -> list[int]:
    """Seeds of a comma-separated list."""
    try:
        seeds = [int(part) for part in text.split(",")]
    except ValueError as error:
        raise InputError(f"seeds must be whole numbers separated by commas, as 0,1, got {text!r}") from error
    if min(seeds) < 0 or len(set(seeds)) != len(seeds):
        raise InputError(f"seeds must be distinct and not negative, got {text!r}")
    return seeds


def parse_quantisation(text: str) -> Quantisation:
    """How an update travels, by name."""
    names: dict[str, Quantisation] = {"fp32": "fp32", "fp16": "fp16", "int8": "int8", "int4": "int4"}
    if text not in names:
        raise InputError(f"quantisation must be {', '.join(names)}, got {text!r}")
    return names[text]


@dataclass(frozen=True, kw_only=True)
class GenerateTask:
    """Every prompt of a file with every seed, with the world's update or without."""

    prompts_file: Path
    seeds: Sequence[int]
    align: bool


def generate(
    world: World, task: GenerateTask, out: Path, *, device: str | torch.device, on_stage: Stage
) -> dict[str, Any]:
    """Draw prompts at the world's edge into a folder; returns what index.json says."""
    prompts, seeds = read_prompts(task.prompts_file), task.seeds
    on_stage("load")
    bundle_id = None
    if task.align:
        generator, bundle = world.aligned_edge(device=device)
        bundle_id = bundle.id
    else:
        generator = world.edge(device=device)
    names = [f"{line:04d}_seed{seed}.png" for line in range(len(prompts)) for seed in seeds]
    index = {
        "world": world.name,
        "model": model_name(world),
        "bundle": bundle_id,
        "sampling": {k: v for k, v in asdict(generator.sampling).items() if k != "batch"},
        "images": [
            {"file": name, "prompt": prompts[i // len(seeds)], "seed": seeds[i % len(seeds)]}
            for i, name in enumerate(names)
        ],
    }
    with staged(out) as folder:
        on_stage("draw")
        write_images(folder, names, draw(generator, prompts, seeds))
        write_json(folder / "index.json", index)
    return index


def model_name(world: World) -> str:
    """The world's edge as an index tells it."""
    source = world.edge_model.source
    return "a pipeline in memory" if isinstance(source, DiffusersGenerator) else shown(source)


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
    world: World, task: DeliverTask, out: Path, *, device: str | torch.device = "cpu", on_stage: Stage
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


@dataclass(frozen=True, kw_only=True)
class AccuracyTask:
    """So many prompts of the world's split `accuracy`, and a contact sheet to write, if any."""

    prompts: int = 113
    sheet: Path | None = None
    seed: int = 0


def evaluate_accuracy(
    world: World, task: AccuracyTask, *, device: str | torch.device, on_stage: Stage
) -> Mean:
    """Concept accuracy of a world's edge on training concepts with new seeds, under its judge that reads."""
    texts = world.prompts("accuracy")[: task.prompts]
    if len(texts) < task.prompts:
        raise InputError(
            f"the world {world.name} has {len(texts)} prompts for accuracy, {task.prompts} were asked for"
        )
    readers = [judge for judge in world.judges(device=device).values() if isinstance(judge, ClipJudge)]
    if not readers:
        raise InputError(f"accuracy needs a judge that reads, as CLIP; the world {world.name} has none")
    on_stage("draw")
    images = draw(world.edge(device=device), texts, [EDGE_SEED + task.seed])
    if task.sheet is not None:
        save_figure(contact_sheet(images[:64], texts[:64]), task.sheet)
    return score_accuracy(readers[0], images, texts, seeds=1, seed=task.seed)
