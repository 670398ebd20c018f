"""Methods compared on held-out prompts: who draws, and what each of them drew."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from dekag import presets, zoo
from dekag.alignment.bundle import load_bundle
from dekag.alignment.update import remove_update
from dekag.alignment.updates import apply_generation
from dekag.evaluation.generation import (
    CEILING_SEED,
    EDGE_SEED,
    Drawn,
    GenerationScores,
    score_generation,
)
from dekag.evaluation.judges import Judge, load_clip, load_dino, load_imagenet
from dekag.generation.diffusers import DiffusersGenerator
from dekag.presets import Arm, Preset
from dekag.types import Image, InputError

SPLITS = ("compositions", "concepts")
Noise = Literal["own", "shared"]
"""Whether the edge draws from noise of its own or from the cloud's, mapped to its latents."""


def arms(chosen: Preset, methods: Sequence[str], bundle: str | None = None) -> dict[str, Arm]:
    """The arms of some methods of a preset, `all` for all that it ships; `bundle` takes the place of its MAKD.

    Raises InputError for an unknown method.
    """
    known = {"makd": Arm(bundles=(bundle or presets.named(chosen.makd, "bundle"),)), **chosen.rivals}
    if tuple(methods) == ("all",):
        return {"no_ka": Arm(), **known}
    if unknown := [name for name in methods if name not in known]:
        raise InputError(f"unknown method {unknown[0]!r}; known are all, {', '.join(known)}")
    return {"no_ka": Arm(), **{name: known[name] for name in methods}}


@dataclass(frozen=True, kw_only=True)
class Reference:
    """What the cloud drew for the prompts of a split, and drew again with other seeds."""

    cloud: Image
    ceiling: Image


def draw_references(
    cloud: DiffusersGenerator, texts: Mapping[str, Sequence[str]], seeds: Sequence[int]
) -> dict[str, Reference]:
    """The cloud's drawings of every split."""
    other = [CEILING_SEED + seed for seed in seeds]
    return {
        split: Reference(cloud=_images(cloud, prompts, seeds), ceiling=_images(cloud, prompts, other))
        for split, prompts in texts.items()
    }


@dataclass(frozen=True, kw_only=True)
class Compared:
    """What was drawn for some prompts; latents are those of each arm's first bundle."""

    drawn: Drawn
    latents: Mapping[str, Tensor]


def compare(
    cloud: DiffusersGenerator,
    edge: DiffusersGenerator,
    arms_of: Mapping[str, Arm],
    texts: Mapping[str, Sequence[str]],
    *,
    seeds: int,
    seed: int = 0,
    noise: Noise = "own",
    noise_from: str | None = None,
    references: Mapping[str, Reference] | None = None,
    on_stage: Callable[[str], None] = lambda _: None,
) -> dict[str, Compared]:
    """Draw every split's prompts, each with several seeds, at the cloud and with every arm at the edge.

    With shared noise every arm, that without KA too, starts from the cloud's noise by the map of `noise_from`.
    `references` are the cloud's drawings, if they were made before.
    """
    first = [seed + i for i in range(seeds)]
    at_edge = [EDGE_SEED + i for i in first] if noise == "own" else first
    if references is None:
        on_stage("cloud draws")
        references = draw_references(cloud, texts, first)
    noise_map = None
    if noise == "shared":
        noise_map = load_bundle(zoo.locate(noise_from or "", "bundle")).noise_map()
        if noise_map is None:
            raise InputError(f"bundle {noise_from} has no noise map; make one with dekag align generation")
    pictures: dict[str, dict[str, list[Image]]] = {s: {} for s in texts}
    latents: dict[str, dict[str, Tensor]] = {s: {} for s in texts}
    for name, arm in arms_of.items():
        for bundle in arm.bundles or (None,):
            on_stage(f"edge draws, {name}")
            generator = edge if bundle is None else _aligned(edge, bundle, arm)
            own = replace(generator, noise_map=noise_map)
            for split, prompts in texts.items():
                said = [text + arm.words for text in prompts for _ in at_edge]
                drawn = own(said, seeds=at_edge * len(prompts))
                latents[split].setdefault(name, drawn)
                pictures[split].setdefault(name, []).append(own.decode(drawn).cpu())
            if bundle is not None:
                remove_update(generator)
    return {
        split: Compared(
            drawn=Drawn(
                prompts=torch.arange(len(prompts)).repeat_interleave(seeds),
                cloud=references[split].cloud,
                ceiling=references[split].ceiling,
                arms=pictures[split],
            ),
            latents=latents[split],
        )
        for split, prompts in texts.items()
    }


def judges(chosen: Preset, *, third: bool = False, device: str | torch.device = "cpu") -> dict[str, Judge]:
    """The preset's judges by name; `third` adds the ImageNet network, which nobody here trained."""
    pair: dict[str, Judge] = {
        "dino": load_dino(presets.folder(chosen.dino, "judge"), device=device),
        "clip": load_clip(presets.folder(chosen.clip, "judge"), device=device),
    }
    return {**pair, "imagenet": load_imagenet(device=device)} if third else pair


def bundle_bytes(arms_of: Mapping[str, Arm]) -> dict[str, int]:
    """Bytes of the low-rank and metaword files of each arm's first bundle that it draws with."""

    def size(arm: Arm) -> int:
        if not arm.bundles:
            return len(arm.words)
        return load_bundle(zoo.locate(arm.bundles[0], "bundle")).drawn_bytes(few_steps=arm.few_steps)

    return {name: size(arm) for name, arm in arms_of.items()}


@dataclass(frozen=True, kw_only=True)
class Report:
    """Scores by noise and split, and what every method sends: bytes of its bundle as a packed file."""

    scores: Mapping[Noise, Mapping[str, GenerationScores]]
    update_bytes: Mapping[str, int]
    edge_bytes: int

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            **{
                noise: {split: scores_json(s) for split, s in by_split.items()}
                for noise, by_split in self.scores.items()
            },
            "update_bytes": dict(self.update_bytes),
            "edge_bytes": self.edge_bytes,
        }


def scores_json(scores: GenerationScores) -> dict[str, Any]:
    """Scores of one split as JSON values, arm by arm."""
    rows: dict[str, Any] = {}
    for arm, by_judge in scores.consistency.items():
        rows[arm] = {"consistency": {judge: mean.to_json() for judge, mean in by_judge.items()}}
        if arm in scores.gain_percent:
            rows[arm]["gain_percent"] = scores.gain_percent[arm].to_json()
        if arm in scores.gap_closed:
            rows[arm] |= {
                "way_to_ceiling": scores.gap_closed[arm].to_json(),
                "way_by_judge": {judge: mean.to_json() for judge, mean in scores.by_judge[arm].items()},
                "way_by_training_seed": scores.by_training_seed[arm],
            }
        if arm in scores.lead:
            rows[arm]["makd_is_ahead_by"] = scores.lead[arm].to_json()
    return rows


def evaluate(
    chosen: Preset,
    methods: Sequence[str] = ("makd",),
    *,
    bundle: str | None = None,
    prompts: int = 100,
    seeds: int = 2,
    seed: int = 0,
    noises: Sequence[Noise] = ("own",),
    third: bool = False,
    device: str | torch.device = "cpu",
    on_stage: Callable[[str], None] = lambda _: None,
) -> Report:
    """Consistency of some methods on both held-out splits.

    `bundle` takes the place of the preset's MAKD; `third` asks the ImageNet judge as well. With shared noise only the
    first training seed of each method draws.
    """
    cloud, edge = presets.cloud(chosen, device=device), presets.edge(chosen, device=device)
    known, compared = judges(chosen, third=third, device=device), arms(chosen, methods, bundle)
    # a bundle that is missing is found before anything is drawn
    for arm in compared.values():
        for name in arm.bundles:
            load_bundle(zoo.locate(name, "bundle"))
    world = presets.named(chosen.world, "world")
    texts = {split: zoo.prompts(world, split)[:prompts] for split in SPLITS}
    on_stage("cloud draws")
    references = draw_references(cloud, texts, [seed + i for i in range(seeds)])
    scores: dict[Noise, dict[str, GenerationScores]] = {}
    for noise in noises:
        found = compare(
            cloud,
            edge,
            compared if noise == "own" else _first_seeds(compared),
            texts,
            seeds=seeds,
            seed=seed,
            noise=noise,
            noise_from=bundle or chosen.makd,
            references=references,
            on_stage=on_stage,
        )
        on_stage("judge")
        scores[noise] = {s: score_generation(c.drawn, known, seed=seed) for s, c in found.items()}
    return Report(
        scores=scores, update_bytes=bundle_bytes(compared), edge_bytes=zoo.weight_bytes(chosen.edge)
    )


def _first_seeds(arms_of: Mapping[str, Arm]) -> dict[str, Arm]:
    """The arms with one training seed each."""
    return {name: replace(arm, bundles=arm.bundles[:1]) for name, arm in arms_of.items()}


def _images(cloud: DiffusersGenerator, prompts: Sequence[str], seeds: Sequence[int]) -> Image:
    texts = [prompt for prompt in prompts for _ in seeds]
    return cloud.images(texts, seeds=list(seeds) * len(prompts))


def _aligned(edge: DiffusersGenerator, bundle: str, arm: Arm) -> DiffusersGenerator:
    generator, _ = apply_generation(edge, zoo.locate(bundle, "bundle"), few_steps=arm.few_steps)
    return generator
