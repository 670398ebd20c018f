"""What the commands of the command line do; each takes plain values and returns numbers or a bundle."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from dekag import presets, zoo
from dekag.alignment.bundle import Bundle, Setting
from dekag.alignment.cala import CalaConfig, adapt
from dekag.alignment.makd import MakdConfig, distil, remove_update
from dekag.alignment.updates import apply_generation, apply_transmission, save_generation, save_transmission
from dekag.channel import FAMILIES, BlockFading
from dekag.codec import load_codec
from dekag.demo import SPLITS, generation_json, transmission_json
from dekag.evaluation.accuracy import score_accuracy
from dekag.evaluation.figures import contact_sheet, save_figure
from dekag.evaluation.generation import (
    CEILING_SEED,
    EDGE_SEED,
    Drawn,
    GenerationScores,
    draw,
    score_generation,
)
from dekag.evaluation.judges import load_clip, load_dino
from dekag.evaluation.metrics import psnr_db
from dekag.evaluation.statistics import Mean
from dekag.evaluation.transmission import TransmissionScores, grid, score_transmission
from dekag.generation.diffusers import DiffusersGenerator, Sampling, load_generator
from dekag.images import read_image
from dekag.output import staged, write_images, write_json
from dekag.training.loop import Progress, TrainConfig
from dekag.training.transmission import ConditionRange
from dekag.types import Condition, Delivery, Image, InputError, Latent
from dekag.units import cbr_to_uses

__all__ = ["generation_json", "transmission_json"]

Stage = Callable[[str], None]

CALA_RANGE = ConditionRange(
    uses=(128, 192, 256, 384, 512), snr_db=(-1.0, 16.0), rayleigh_share=0.5, blocks=(1, 4, 16)
)
DISTIL_SEEDS = 100_000
"""Cloud seeds of distillation start here, far from those of any evaluation."""


@dataclass(frozen=True, kw_only=True)
class CloudData:
    """Prompts and the images [prompts, 3, height, width] that the cloud drew for them."""

    prompts: list[str]
    images: Image


def parse_seeds(text: str) -> list[int]:
    """Seeds of a comma-separated list."""
    try:
        seeds = [int(part) for part in text.split(",")]
    except ValueError as error:
        raise InputError(f"seeds must be whole numbers separated by commas, as 0,1, got {text!r}") from error
    if min(seeds) < 0 or len(set(seeds)) != len(seeds):
        raise InputError(f"seeds must be distinct and not negative, got {text!r}")
    return seeds


def read_prompts(path: Path) -> list[str]:
    """One prompt a line of a UTF-8 text file."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is no UTF-8 text; give a text file with one prompt a line") from error
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist; give a text file with one prompt a line") from error
    empty = [number for number, line in enumerate(lines, 1) if not line.strip()]
    if empty or not lines:
        where = f"line {empty[0]} is empty" if empty else "it has no line"
        raise InputError(f"{path}: {where}; give one prompt a line")
    return lines


def generate(
    model: str,
    bundle: str | None,
    prompts_file: Path,
    seeds: Sequence[int],
    out: Path,
    *,
    steps: int | None,
    guidance: float | None,
    on_stage: Stage,
) -> dict[str, Any]:
    """Draw every prompt with every seed into a folder; returns what index.json says."""
    prompts = read_prompts(prompts_file)
    on_stage("load")
    generator = _generator(model, steps=steps, guidance=guidance)
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


def link_condition(
    preset: str,
    *,
    uses: int | None,
    cbr: float | None,
    snr_db: float,
    channel: str,
    blocks: int,
    correlation: float,
    pilots: int,
) -> Condition:
    """The condition of one image from what a user types; the rate is given as uses or as CBR, not both."""
    if channel not in FAMILIES:
        raise InputError(f"unknown channel {channel!r}; known are {', '.join(FAMILIES)}")
    if uses is not None and cbr is not None:
        raise InputError("give the rate as --uses or as --cbr, not as both")
    if cbr is not None:
        if not math.isfinite(cbr) or cbr <= 0:
            raise InputError(f"the channel bandwidth ratio must be a positive number, got {cbr}")
        side = presets.preset(preset).pixels
        uses = int(cbr_to_uses(torch.tensor(cbr, dtype=torch.float64), side, side))
    return Condition(
        uses=int(presets.preset(preset).nominal.uses) if uses is None else uses,
        snr_db=snr_db,
        rayleigh=FAMILIES[channel],
        blocks=blocks,
        correlation=correlation,
        pilots=pilots,
    )


def deliver(
    preset: str, prompts: list[str], condition: Condition, out: Path, *, ka: bool, seed: int, on_stage: Stage
) -> dict[str, Any]:
    """Deliver prompts, write the received images and report.json; returns the report."""
    on_stage("load")
    system = presets.load(preset, align=ka)
    with staged(out) as folder:
        on_stage("send")
        seeds = [seed + number for number in range(len(prompts))]
        delivery = system.deliver(prompts, condition, seeds=seeds, channel_seed=seed)
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
            {"file": name, "prompt": prompt, "seed": seed, "psnr_db": round(value, 3)}
            for name, prompt, seed, value in zip(
                names, delivery.prompts, delivery.seeds, quality, strict=True
            )
        ],
        "bundles": delivery.bundles,
        "ledger": {
            **asdict(ledger),
            "core_link_bytes": ledger.prompt_bytes + ledger.seed_bytes + ledger.id_bytes,
            "channel_uses": ledger.payload_uses + ledger.pilot_uses + ledger.side_uses,
        },
    }


def cloud_data(
    preset: str,
    prompts_file: Path | None,
    images: Path | None,
    *,
    seed: int,
    resume: Path | None,
    on_stage: Stage,
) -> CloudData:
    """Prompts of distillation and the cloud's images: drawn now, kept from an earlier run, or from a folder."""
    if images is not None:
        on_stage("read images")
        return _folder_data(images)
    chosen = presets.preset(preset)
    prompts = zoo.prompts(chosen.world, "distill") if prompts_file is None else read_prompts(prompts_file)

    def draw_all() -> Image:
        cloud = presets.cloud(chosen)
        return cloud.decode(cloud(prompts, seeds=[DISTIL_SEEDS + seed + i for i in range(len(prompts))]))

    on_stage(f"cloud draws {len(prompts)} images")
    return CloudData(prompts=prompts, images=_kept(resume, "cloud", draw_all))


def align_generation(
    preset: str,
    data: CloudData,
    config: MakdConfig,
    out: Path,
    *,
    resume: Path | None,
    on_step: Callable[[str, Progress], None],
) -> Bundle:
    """MAKD on the preset's edge; writes a bundle."""
    edge = presets.edge(presets.preset(preset))
    prior = zoo.prompts(presets.preset(preset).world, "prior")
    update = distil(edge, data.prompts, data.images, config, prior=prior, checkpoint=resume, on_step=on_step)
    numbers = {k: v for k, v in asdict(config).items() if k != "metaword"}
    return save_generation(out, edge, update, settings={**numbers, "prompts": len(data.prompts)})


def edge_latents(preset: str, *, seed: int, resume: Path | None, on_stage: Stage) -> Latent:
    """What the aligned edge draws for the distillation prompts: the codec's training data."""
    chosen = presets.preset(preset)
    prompts = zoo.prompts(chosen.world, "distill")

    def draw_all() -> Latent:
        edge, _ = apply_generation(presets.edge(chosen), presets.folder(chosen.makd, "bundle"))
        return edge(prompts, seeds=[DISTIL_SEEDS + seed + i for i in range(len(prompts))])

    on_stage(f"edge draws {len(prompts)} latents")
    return _kept(resume, "edge", draw_all)


def align_transmission(
    preset: str,
    latents: Latent,
    size: CalaConfig,
    out: Path,
    *,
    steps: int,
    batch: int,
    seed: int,
    resume: Path | None,
    on_step: Callable[[str, Progress], None],
) -> Bundle:
    """CALA on the preset's codec; writes a bundle."""
    codec = load_codec(presets.folder(presets.preset(preset).codec, "codec"))
    training = TrainConfig(steps=steps, learning_rate=2e-3, ema_decay=0.995, seed=seed, checkpoint_every=100)
    adapted = adapt(
        codec,
        latents,
        CALA_RANGE,
        size,
        training,
        batch=batch,
        checkpoint=None if resume is None else resume / "cala.pt",
        on_step=lambda progress: on_step("CALA", progress),
    )
    settings: dict[str, Setting] = {
        "steps": steps,
        "batch": batch,
        "seed": seed,
        "learning_rate": training.learning_rate,
    }
    return save_transmission(out, adapted, codec, settings=settings)


def evaluate_generation(
    preset: str, bundle: str | None, *, prompts: int, seeds: int, seed: int, on_stage: Stage
) -> dict[str, GenerationScores]:
    """Consistency on both held-out splits, without and with a bundle."""
    chosen = presets.preset(preset)
    cloud, edge = presets.cloud(chosen), presets.edge(chosen)
    judges = {
        "dino": load_dino(zoo.locate(chosen.dino, "judge")),
        "clip": load_clip(zoo.locate(chosen.clip, "judge")),
    }
    first = list(range(seed, seed + seeds))
    own, other = [EDGE_SEED + i for i in first], [CEILING_SEED + i for i in first]
    scores = {}
    for split in SPLITS:
        on_stage(split)
        texts = zoo.prompts(chosen.world, split)[:prompts]
        plain = draw(edge, texts, own)
        aligned, _ = apply_generation(edge, zoo.locate(bundle or chosen.makd, "bundle"))
        drawn = Drawn(
            prompts=torch.arange(len(texts)).repeat_interleave(seeds),
            cloud=draw(cloud, texts, first),
            ceiling=draw(cloud, texts, other),
            arms={"no_ka": plain, "makd": draw(aligned, texts, own)},
        )
        remove_update(aligned)
        scores[split] = score_generation(drawn, judges, seed=seed)
    return scores


def evaluate_transmission(
    preset: str, bundle: str | None, *, images: int, seed: int, on_stage: Stage
) -> TransmissionScores:
    """PSNR over the grid, without and with a bundle, of what the aligned edge draws for held-out prompts."""
    chosen = presets.preset(preset)
    on_stage("draw")
    edge, _ = apply_generation(presets.edge(chosen), presets.folder(chosen.makd, "bundle"))
    texts = [text for split in SPLITS for text in zoo.prompts(chosen.world, split)[:images]]
    latents = edge(texts, seeds=[EDGE_SEED + seed + i for i in range(len(texts))])
    codec = load_codec(presets.folder(chosen.codec, "codec"))
    adapted, _ = apply_transmission(codec, zoo.locate(bundle or chosen.cala, "bundle"))
    on_stage("send")
    return score_transmission(
        {"no_ka": codec, "cala": adapted}, BlockFading(), edge, latents, grid(), seed=seed
    )


def evaluate_accuracy(
    model: str, preset: str, *, prompts: int, sheet: Path | None, seed: int, on_stage: Stage
) -> Mean:
    """Concept accuracy of a model on training concepts with new seeds; optionally a contact sheet."""
    chosen = presets.preset(preset)
    clip = load_clip(zoo.locate(chosen.clip, "judge"))
    texts = zoo.prompts(chosen.world, "accuracy")[:prompts]
    if len(texts) < prompts:
        raise InputError(f"{chosen.world} has {len(texts)} prompts for accuracy, {prompts} were asked for")
    on_stage("draw")
    images = draw(_generator(model, steps=None, guidance=None), texts, [EDGE_SEED + seed])
    if sheet is not None:
        save_figure(contact_sheet(images[:64], texts[:64]), sheet)
    return score_accuracy(clip, images, texts, seeds=1, seed=seed)


def _generator(model: str, *, steps: int | None, guidance: float | None) -> DiffusersGenerator:
    """A model by name; the shipped ones come with their preset's sampling."""
    shipped = model in zoo.SHIPPED
    sampling = presets.preset(model.split("/")[0]).sampling if shipped else Sampling()
    if steps is not None:
        sampling = replace(sampling, steps=steps)
    if guidance is not None:
        sampling = replace(sampling, guidance=guidance)
    return load_generator(zoo.locate(model, "pipeline"), sampling=sampling)


def _folder_data(folder: Path) -> CloudData:
    """Prompts and images of a folder that `dekag generate` wrote."""
    try:
        rows = json.loads((folder / "index.json").read_text())["images"]
        names, prompts = [row["file"] for row in rows], [row["prompt"] for row in rows]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{folder} has no readable index.json; write the folder with dekag generate"
        ) from error
    return CloudData(prompts=prompts, images=torch.cat([read_image(folder / name) for name in names]))


def _kept(folder: Path | None, name: str, make: Callable[[], torch.Tensor]) -> torch.Tensor:
    """What `make` gives, kept in a folder so that an interrupted run need not make it again."""
    if folder is None:
        return make()
    path = folder / f"{name}.safetensors"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        save_file({name: make().contiguous()}, part)
        part.replace(path)
    return load_file(path)[name]
