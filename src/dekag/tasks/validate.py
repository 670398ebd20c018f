"""What the settings of a generation update are chosen by: the world's judges, or the held-out denoising loss."""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

from dekag.alignment.config import FewStepConfig
from dekag.alignment.generation.adapters import can_scale, scaled
from dekag.alignment.generation.update import GenerationUpdate, apply_update, remove_update
from dekag.bundle.manifest import Quantisation
from dekag.data.bought import EndpointCloud
from dekag.data.images import CloudImages, Images
from dekag.data.pictures import PictureSet
from dekag.evaluation.figures import contact_sheet, save_figure
from dekag.evaluation.generation import EDGE_SEED, draw
from dekag.evaluation.judges import Judge, consistency
from dekag.generation.diffusers import DiffusersGenerator, Sampling
from dekag.generation.families import Conditioning, Family
from dekag.tasks.keys import judges_key
from dekag.tasks.material import Material, cloud_images, kept_by
from dekag.training.diffusion import denoising_loss, noising
from dekag.training.processes import from_main
from dekag.training.run import Run
from dekag.types import Image, Latent
from dekag.wire.rows import rows_on_disk
from dekag.world import World

Choice = TypeVar("Choice")
VALIDATION_SEED = 500
GUIDANCE = (1.4, 1.7, 2.0, 2.5, 3.0)
"""Guidance scales that are tried on the validation prompts."""
STRENGTHS = (1.0, 0.9, 0.8, 0.7)
"""Factors on the low-rank update that are tried there: a weaker one costs little of what was distilled and spoils less
of what was not (Wortsman et al. 2022, WiSE-FT)."""
SHOWN = 16
"""Prompts of a validation whose pictures are shown."""
NOISE_DRAWS = 16
"""Noises of each image for a denoising loss that settings are chosen by."""
LOST_AT_ONCE = 16
"""Images whose denoising loss is computed together."""


@dataclass(frozen=True, kw_only=True)
class Extras:
    """What an update carries beside metaword and low-rank matrices, and how it travels.

    guidance: guidance scales to choose from on the validation prompts; none keeps the world's.
    strengths: factors on the low-rank update to choose from, in the same way; none keeps it as it was trained.
    few_steps: the second update, for drawing in fewer steps, if any.
    """

    guidance: tuple[float, ...] = GUIDANCE
    strengths: tuple[float, ...] = STRENGTHS
    few_steps: FewStepConfig | None = None
    quantisation: Quantisation = "int8"


@runtime_checkable
class Check(Protocol):
    """What chooses a checkpoint, the guidance and the strength of an update."""

    def during_training(self, generator: DiffusersGenerator, stage: str, step: int) -> float:
        """Score of the generator at a step of a stage; higher is better."""
        ...

    def choose(
        self, edge: DiffusersGenerator, update: GenerationUpdate, extras: Extras
    ) -> tuple[Sampling | None, float]:
        """The sampling and the strength that score best, given the update."""
        ...


@dataclass(frozen=True, kw_only=True)
class Validation:
    """Consistency on prompts whose concepts are kept from distillation, to choose settings by.

    pictures: folder for a sheet of what was drawn at each validation, cloud and edge side by side.
    """

    prompts: Sequence[str]
    cloud: Images
    judges: Mapping[str, Judge]
    pictures: Path | None = None

    def score(self, generator: DiffusersGenerator) -> float:
        """Mean over the judges of the consistency of what the generator draws."""
        return self._mean(self._pairs(generator))

    def during_training(self, generator: DiffusersGenerator, stage: str, step: int) -> float:
        """As `score`, with a sheet of pictures named after the stage and its step."""
        drawn = self._pairs(generator)
        if self.pictures is not None:
            first = next(drawn)
            self.pictures.mkdir(parents=True, exist_ok=True)
            pairs = torch.stack(first, dim=1)[:SHOWN].flatten(0, 1)
            names = [name for prompt in self.prompts[:SHOWN] for name in (f"cloud: {prompt}", "edge")]
            save_figure(contact_sheet(pairs, names), self.pictures / f"{stage}-{step:06d}.png")
            drawn = itertools.chain([first], drawn)
        return self._mean(drawn)

    def choose(
        self, edge: DiffusersGenerator, update: GenerationUpdate, extras: Extras
    ) -> tuple[Sampling | None, float]:
        """The best of the extras' guidance scales for an update, and with it the best of their strengths."""
        scales = [replace(edge.sampling, guidance=scale) for scale in extras.guidance]
        samplings: Sequence[Sampling | None] = scales or [None]
        sampling = best(edge, {each: tuned(update, each, 1.0) for each in samplings}, self.score)
        return sampling, best(edge, _strengths(update, sampling, extras), self.score)

    def _pairs(self, generator: DiffusersGenerator) -> Iterator[tuple[Image, Image]]:
        """The cloud's and the generator's images, some at a time."""
        size = max(SHOWN, generator.at_once)
        for at in range(0, len(self.prompts), size):
            part = slice(at, at + size)
            yield self.cloud[part], draw(generator, self.prompts[part], [EDGE_SEED + VALIDATION_SEED])

    def _mean(self, pairs: Iterator[tuple[Image, Image]]) -> float:
        """Mean consistency over images, then over judges."""
        rows = [[consistency(judge, *pair) for judge in self.judges.values()] for pair in pairs]
        return float(torch.stack([torch.cat(own).mean() for own in zip(*rows, strict=True)]).mean())


@dataclass(frozen=True, kw_only=True, eq=False)
class DenoisingValidation:
    """The denoising loss on held-out images: chooses checkpoint and strength where there are no judges.

    It says nothing of the guidance scale, which stays as it is.
    """

    prompts: Sequence[str]
    latents: Latent

    def score(self, generator: DiffusersGenerator) -> float:
        """Minus the mean loss over NOISE_DRAWS noises of each image, the same at every call."""
        rng = torch.Generator().manual_seed(VALIDATION_SEED)
        family, pipeline = generator.family, generator.pipeline
        word, noise_process = generator.metaword, noising(pipeline.scheduler)
        prompts = list(self.prompts) if word is None else word.add_to(self.prompts)
        total, device = 0.0, generator.denoiser.device
        with generator.active(), torch.no_grad():
            for at in range(0, len(prompts), LOST_AT_ONCE):
                part = slice(at, at + LOST_AT_ONCE)
                conditioning = generator.read(prompts[part])
                latents = self.latents[part].to(device)
                for _ in range(NOISE_DRAWS):
                    value = denoising_loss(
                        partial(_predict, family, pipeline, conditioning), noise_process, latents, rng=rng
                    )
                    total += float(value) * len(latents)
        return -total / (NOISE_DRAWS * len(prompts))

    def during_training(self, generator: DiffusersGenerator, stage: str, step: int) -> float:
        """As `score`."""
        return self.score(generator)

    def choose(
        self, edge: DiffusersGenerator, update: GenerationUpdate, extras: Extras
    ) -> tuple[Sampling | None, float]:
        """No sampling of its own, and the best of the strengths."""
        return None, best(edge, _strengths(update, None, extras), self.score)


def _predict(
    family: Family, pipeline: Any, conditioning: Conditioning, noised: Latent, timesteps: Tensor
) -> Tensor:
    return family.predict(pipeline, noised, timesteps, conditioning)


def _strengths(
    update: GenerationUpdate, sampling: Sampling | None, extras: Extras
) -> dict[float, GenerationUpdate]:
    scalable = update.adapter and can_scale(update.adapter)
    strengths = (extras.strengths if scalable else ()) or (1.0,)
    return {each: tuned(update, sampling, each) for each in strengths}


def best(
    edge: DiffusersGenerator,
    updates: Mapping[Choice, GenerationUpdate],
    score: Callable[[DiffusersGenerator], float],
) -> Choice:
    """The choice whose update has the highest score, the first of equals."""
    scores = {}
    for choice, update in updates.items():
        aligned = apply_update(edge, update)
        scores[choice] = score(aligned)
        remove_update(aligned)
    return max(scores, key=lambda choice: scores[choice])


def tuned(update: GenerationUpdate, sampling: Sampling | None, strength: float) -> GenerationUpdate:
    """An update to be drawn with some sampling, its low-rank matrices at a strength."""
    return replace(update, sampling=sampling, adapter=scaled(update.adapter, strength))


def validation(
    world: World, edge: DiffusersGenerator, data: Material, run: Run, *, domain: str | None = None
) -> Check | None:
    """What settings are chosen by: the world's judges on images that were held back or on its validation prompts.

    Where the images came from elsewhere, no cloud of the world is asked: it is not the one that is distilled.
    Without judges it is the denoising loss on the same images, without either nothing.
    """
    images = data.held_back or (None if data.elsewhere else _validation_images(world, run, domain))
    if images is None:
        run.on_stage("nothing to validate with: the last step counts")
        return None
    if not world.judge_models:
        run.on_stage("the world has no judge: settings are chosen by the held-out denoising loss")
        latents = rows_on_disk(len(images.prompts), edge.encode_parts(images.images))
        return DenoisingValidation(prompts=images.prompts, latents=latents)
    folder = run.tracking.folder
    return Validation(
        prompts=images.prompts,
        cloud=images.images,
        judges=world.judges(device=run.device),
        pictures=None if folder is None else folder / "pictures",
    )


def validation_inputs(world: World, check: Check | None) -> dict[str, object]:
    """What a training depends on by what it is validated with."""
    match check:
        case Validation():
            judges = judges_key(world, check.cloud[:LOST_AT_ONCE])
            return {"validation_prompts": check.prompts, "validation_images": check.cloud, "judges": judges}
        case DenoisingValidation():
            return {"validation_prompts": check.prompts, "validation_images": check.latents, "judges": None}
        case _:
            return {"validation": check}


def _validation_images(world: World, run: Run, domain: str | None) -> CloudImages | None:
    """The world's validation prompts, of one domain or all, and what its cloud draws for them."""
    split = "validation" if domain is None else f"validation:{domain}"
    if split not in world.splits or not (world.has_cloud or world.images):
        return None
    prompts = world.prompts(split)
    run.on_stage("cloud draws the validation prompts")
    seeds = [VALIDATION_SEED] * len(prompts)

    def drawn() -> CloudImages:
        cloud = world.reference(device=run.device)
        if isinstance(cloud, EndpointCloud):  # which may refuse some, and keeps its own
            return kept_by(cloud, run).pictures(prompts, seeds=seeds, pixels=world.side)
        folder = None if isinstance(cloud, PictureSet) else run.resume
        return cloud_images(world, cloud, prompts, seeds, cache=(folder, "validation"))

    return from_main(drawn)
