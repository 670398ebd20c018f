"""What the commands of the command line do; each takes plain values and returns numbers or a bundle."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from dekag import presets, zoo
from dekag.alignment.bundle import Quantisation
from dekag.alignment.updates import apply_generation
from dekag.channel import ChannelSettings, named_channel
from dekag.data.prompts import read_prompts
from dekag.evaluation.accuracy import score_accuracy
from dekag.evaluation.figures import contact_sheet, save_figure
from dekag.evaluation.generation import EDGE_SEED, draw
from dekag.evaluation.judges import load_clip
from dekag.evaluation.metrics import psnr_db
from dekag.evaluation.statistics import Mean
from dekag.generation.diffusers import DiffusersGenerator, Sampling, load_generator
from dekag.output import staged, write_images, write_json
from dekag.types import Channel, Condition, Delivery, InputError
from dekag.units import cbr_to_uses

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


def generate(
    model: str,
    bundle: str | None,
    prompts_file: Path,
    seeds: Sequence[int],
    out: Path,
    *,
    steps: int | None,
    guidance: float | None,
    device: str | torch.device,
    on_stage: Stage,
) -> dict[str, Any]:
    """Draw every prompt with every seed into a folder; returns what index.json says."""
    prompts = read_prompts(prompts_file)
    on_stage("load")
    generator = _generator(model, steps=steps, guidance=guidance, device=device)
    bundle_id = None
    if bundle is not None:
        generator, loaded = apply_generation(generator, zoo.locate(bundle, "bundle"))
        bundle_id = loaded.id
    names = [f"{line:04d}_seed{seed}.png" for line in range(len(prompts)) for seed in seeds]
    index = {
        "model": model,
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


@dataclass(frozen=True, kw_only=True)
class NamedLink:
    """The channel that a user named and the condition of one image over it."""

    channel: Channel
    condition: Condition


def named_link(
    preset: str, settings: ChannelSettings, *, uses: int | None, cbr: float | None, snr_db: float
) -> NamedLink:
    """Channel and condition from what a user types; the rate is given as uses or as CBR, not both."""
    if uses is not None and cbr is not None:
        raise InputError("give the rate as --uses or as --cbr, not as both")
    if cbr is not None:
        if not math.isfinite(cbr) or cbr <= 0:
            raise InputError(f"the channel bandwidth ratio must be a positive number, got {cbr}")
        side = presets.preset(preset).pixels
        uses = int(cbr_to_uses(torch.tensor(cbr, dtype=torch.float64), side, side))
    elif uses is None:
        uses = int(presets.preset(preset).nominal.uses)
    named = named_channel(settings)
    return NamedLink(channel=named.channel, condition=named.condition(uses, snr_db))


def deliver(
    preset: str, prompts: list[str], chosen: NamedLink, out: Path, *, ka: bool, seed: int, on_stage: Stage
) -> dict[str, Any]:
    """Deliver prompts, write the received images and report.json; returns the report."""
    on_stage("load")
    system = presets.load(preset, align=ka)
    system = replace(system, link=replace(system.link, channel=chosen.channel))
    with staged(out) as folder:
        on_stage("send")
        seeds = [seed + number for number in range(len(prompts))]
        delivery = system.deliver(prompts, chosen.condition, seeds=seeds, channel_seed=seed)
        names = [f"{number:04d}_seed{s}.png" for number, s in enumerate(seeds)]
        write_images(folder, names, delivery.image)
        report = delivery_json(delivery, names)
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


def evaluate_accuracy(
    model: str,
    preset: str,
    *,
    prompts: int,
    sheet: Path | None,
    seed: int,
    device: str | torch.device,
    on_stage: Stage,
) -> Mean:
    """Concept accuracy of a model on training concepts with new seeds; optionally a contact sheet."""
    chosen = presets.preset(preset)
    clip = load_clip(presets.folder(chosen.clip, "judge"), device=device)
    texts = _prompts(chosen, "accuracy")[:prompts]
    if len(texts) < prompts:
        raise InputError(f"{chosen.world} has {len(texts)} prompts for accuracy, {prompts} were asked for")
    on_stage("draw")
    generator = _generator(model, steps=None, guidance=None, device=device)
    images = draw(generator, texts, [EDGE_SEED + seed])
    if sheet is not None:
        save_figure(contact_sheet(images[:64], texts[:64]), sheet)
    return score_accuracy(clip, images, texts, seeds=1, seed=seed)


def _prompts(chosen: presets.Preset, split: str) -> list[str]:
    """The prompts of one split of a preset's world."""
    return zoo.prompts(presets.named(chosen.world, "world"), split)


def _generator(
    model: str, *, steps: int | None, guidance: float | None, device: str | torch.device
) -> DiffusersGenerator:
    """A model by name; the shipped ones come with their preset's sampling."""
    shipped = model in zoo.SHIPPED
    sampling = presets.preset(model.split("/")[0]).sampling if shipped else Sampling()
    if steps is not None:
        sampling = replace(sampling, steps=steps)
    if guidance is not None:
        sampling = replace(sampling, guidance=guidance)
    return load_generator(zoo.locate(model, "pipeline"), sampling=sampling, device=device)
