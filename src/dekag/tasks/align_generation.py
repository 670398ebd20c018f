"""G-KA as a whole: the cloud's images, a method's training, what is chosen on validation prompts, a bundle."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from dekag.alignment.config import FewStepConfig, MakdConfig
from dekag.alignment.generation.adapters import can_scale, scaled
from dekag.alignment.generation.bundles import save_generation
from dekag.alignment.generation.few_steps import distil_few_steps
from dekag.alignment.generation.method import DistillationData, TrainingRun
from dekag.alignment.generation.methods import find_method
from dekag.alignment.generation.noise_map import fit_noise_map
from dekag.alignment.generation.update import GenerationUpdate, apply_update, remove_update
from dekag.bundle.bundle import Bundle, Quantisation, Setting
from dekag.data.endpoint import EndpointCloud, ImageEndpoint
from dekag.data.folder import CloudImages, read_folder
from dekag.data.pictures import PictureSet
from dekag.data.prompts import read_prompts
from dekag.evaluation.figures import contact_sheet, save_figure
from dekag.evaluation.generation import EDGE_SEED, draw
from dekag.evaluation.judges import Judge, consistency
from dekag.generation.diffusers import DiffusersGenerator, Sampling
from dekag.training.diffusion import denoising_loss, noising
from dekag.training.processes import from_main, process_count
from dekag.training.run import ALONE, Run
from dekag.types import Image, InputError, Latent
from dekag.wire.files import replacing
from dekag.world import Model, World

Choice = TypeVar("Choice")
DISTIL_SEEDS = 100_000
"""Cloud seeds of distillation start here, far from those of any evaluation."""
VALIDATION_SEED = 500
GUIDANCE = (1.4, 1.7, 2.0, 2.5, 3.0)
"""Guidance scales that are tried on the validation prompts."""
STRENGTHS = (1.0, 0.9, 0.8, 0.7)
"""Factors on the low-rank update that are tried there: a weaker one costs little of what was distilled and spoils less
of what was not (Wortsman et al. 2022, WiSE-FT)."""
NOISE_IMAGES = 64
"""Images that the noise map is fitted on."""
VALIDATION_SHARE = 10
"""One in so many prompts of images from elsewhere is kept from training, to choose settings with."""
ENOUGH_PROMPTS = 20
"""Images of fewer prompts are all trained on."""
NOISE_DRAWS = 16
"""Noises of each image for a denoising loss that settings are chosen by."""


@dataclass(frozen=True, kw_only=True)
class ImageSource:
    """Where prompts and the cloud's images come from: the world, unless a folder or an endpoint is named.

    prompts_file: one prompt a line. domain: one of the world's groups of prompts. draws: images of each prompt, from
    seeds of their own. folder: images and their prompts; with an endpoint, where its images are kept.
    """

    prompts_file: Path | None = None
    domain: str | None = None
    draws: int = 1
    folder: Path | None = None
    endpoint: ImageEndpoint | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.prompts_file is not None and self.domain is not None:
            raise InputError("give the prompts as a file or as a domain of the world, not as both")
        if self.endpoint is not None and self.folder is None:
            raise InputError("an endpoint's images need a folder that keeps them")
        if self.endpoint is None and self.folder is not None and (self.prompts_file or self.domain):
            raise InputError("a folder of images brings its own prompts; leave out the file and the domain")

    @property
    def elsewhere(self) -> bool:
        """Whether the images are not the world's own."""
        return self.folder is not None or self.endpoint is not None

    def prompts(self, world: World) -> list[str]:
        """The prompts, each as often as it is drawn."""
        if self.prompts_file is not None:
            return read_prompts(self.prompts_file) * self.draws
        split = "distill" if self.domain is None else f"distill:{self.domain}"
        return world.prompts(split) * self.draws


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


@dataclass(frozen=True, kw_only=True)
class Material:
    """Images to train on, and those to choose settings with; `held_back` is None where the world has prompts for that.

    drawn_by_cloud: whether the world's own model of a cloud drew them.
    """

    train: CloudImages
    held_back: CloudImages | None = None
    drawn_by_cloud: bool = False


def material(world: World, source: ImageSource, run: Run) -> Material:
    """Prompts of distillation and the cloud's images, kept in `run.resume` if a model had to draw them.

    Of several processes the main one reads or draws them for all. Of images from elsewhere one prompt in
    VALIDATION_SHARE, chosen by a digest of its text, is held back.
    """
    return from_main(partial(_material, world, source, run))


def _material(world: World, source: ImageSource, run: Run) -> Material:
    if source.elsewhere:
        return held_back(_from_elsewhere(world, source, run))
    reference = world.reference(device=run.device)
    if isinstance(reference, PictureSet):
        run.on_stage("read images")
        return Material(train=_from_pictures(reference, source.prompts(world)))
    prompts = source.prompts(world)
    seeds = [DISTIL_SEEDS + 10_000 * source.seed + i for i in range(len(prompts))]
    run.on_stage(f"cloud draws {len(prompts)} images")
    images = kept(run.resume, "cloud", lambda: fitted(reference.images(prompts, seeds=seeds), world.side))
    own = isinstance(world.cloud_model, Model)
    return Material(train=CloudImages(prompts=tuple(prompts), images=images), drawn_by_cloud=own)


def _from_elsewhere(world: World, source: ImageSource, run: Run) -> CloudImages:
    assert source.folder is not None
    if source.endpoint is None:
        run.on_stage("read images")
        return read_folder(source.folder, pixels=world.side)
    prompts = source.prompts(world)
    seeds = [DISTIL_SEEDS + 10_000 * source.seed + i for i in range(len(prompts))]
    run.on_stage(f"the endpoint draws {len(prompts)} images")
    drawn = EndpointCloud(endpoint=source.endpoint, folder=source.folder).images(prompts, seeds=seeds)
    return CloudImages(prompts=tuple(prompts), images=fitted(drawn, world.side))


def _from_pictures(pictures: PictureSet, prompts: Sequence[str]) -> CloudImages:
    """All pictures of the prompts, several of one prompt as well."""
    rows = [
        (text, number)
        for text in dict.fromkeys(prompts)
        for number in range(len(pictures.by_prompt.get(text, "x")))
    ]
    images = pictures.images([text for text, _ in rows], seeds=[number for _, number in rows])
    return CloudImages(prompts=tuple(text for text, _ in rows), images=images)


def held_back(data: CloudImages) -> Material:
    """Images of some prompts apart from the others, by a digest of the text; none if the prompts are few."""
    if len(set(data.prompts)) < ENOUGH_PROMPTS:
        return Material(train=data)
    chosen = torch.tensor([is_held_back(prompt) for prompt in data.prompts])
    if not chosen.any():
        return Material(train=data)
    parts = [
        CloudImages(
            prompts=tuple(p for p, c in zip(data.prompts, mask.tolist(), strict=True) if c),
            images=data.images[mask],
        )
        for mask in (~chosen, chosen)
    ]
    return Material(train=parts[0], held_back=parts[1])


def is_held_back(prompt: str) -> bool:
    """Whether a prompt is kept from training, whatever the others are."""
    return int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:8], "big") % VALIDATION_SHARE == 0


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
    cloud: Image
    judges: Mapping[str, Judge]
    pictures: Path | None = None

    def score(self, generator: DiffusersGenerator) -> float:
        """Mean over the judges of the consistency of what the generator draws."""
        return self._value(draw(generator, self.prompts, [EDGE_SEED + VALIDATION_SEED]))

    def during_training(self, generator: DiffusersGenerator, stage: str, step: int) -> float:
        """As `score`, with a sheet of pictures named after the stage and its step."""
        images = draw(generator, self.prompts, [EDGE_SEED + VALIDATION_SEED])
        if self.pictures is not None:
            self.pictures.mkdir(parents=True, exist_ok=True)
            pairs = torch.stack([self.cloud[:16], images[:16]], dim=1).flatten(0, 1)
            names = [name for prompt in self.prompts[:16] for name in (f"cloud: {prompt}", "edge")]
            save_figure(contact_sheet(pairs, names), self.pictures / f"{stage}-{step:06d}.png")
        return self._value(images)

    def choose(
        self, edge: DiffusersGenerator, update: GenerationUpdate, extras: Extras
    ) -> tuple[Sampling | None, float]:
        """The best of the extras' guidance scales for an update, and with it the best of their strengths."""
        scales = [replace(edge.sampling, guidance=scale) for scale in extras.guidance]
        samplings: Sequence[Sampling | None] = scales or [None]
        sampling = best(edge, {each: tuned(update, each, 1.0) for each in samplings}, self.score)
        return sampling, best(edge, _strengths(update, sampling, extras), self.score)

    def _value(self, images: Image) -> float:
        values = [consistency(judge, self.cloud, images).mean() for judge in self.judges.values()]
        return float(torch.stack(values).mean())


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
        word = generator.metaword
        prompts = [text if word is None else word.word.add_to(text) for text in self.prompts]
        losses = []
        with generator.active(), torch.no_grad():
            conditioning = generator.read(prompts)
            for _ in range(NOISE_DRAWS):
                value = denoising_loss(
                    lambda noised, timesteps: family.predict(pipeline, noised, timesteps, conditioning),
                    noising(pipeline.scheduler),
                    self.latents,
                    rng=rng,
                )
                losses.append(float(value))
        return -sum(losses) / len(losses)

    def during_training(self, generator: DiffusersGenerator, stage: str, step: int) -> float:
        """As `score`."""
        return self.score(generator)

    def choose(
        self, edge: DiffusersGenerator, update: GenerationUpdate, extras: Extras
    ) -> tuple[Sampling | None, float]:
        """No sampling of its own, and the best of the strengths."""
        return None, best(edge, _strengths(update, None, extras), self.score)


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


def fitted(images: Image, pixels: int) -> Image:
    """Images at the side of the edge's pictures, bicubic and antialiased."""
    if images.shape[2:] == (pixels, pixels):
        return images
    return F.interpolate(images, size=(pixels, pixels), mode="bicubic", antialias=True).clamp(0, 1)


def validation(
    world: World, edge: DiffusersGenerator, data: Material, run: Run, *, domain: str | None = None
) -> Check | None:
    """What settings are chosen by: the world's judges on images that were held back or on its validation prompts.

    Without judges it is the denoising loss on the same images, without either nothing.
    """
    images = data.held_back or _validation_images(world, run, domain)
    if images is None:
        run.on_stage("nothing to validate with: the last step counts")
        return None
    if not world.judge_models:
        run.on_stage("the world has no judge: settings are chosen by the held-out denoising loss")
        return DenoisingValidation(prompts=images.prompts, latents=edge.encode(images.images))
    folder = run.tracking.folder
    return Validation(
        prompts=images.prompts,
        cloud=images.images,
        judges=world.judges(device=run.device),
        pictures=None if folder is None else folder / "pictures",
    )


def _validation_images(world: World, run: Run, domain: str | None) -> CloudImages | None:
    """The world's validation prompts, of one domain or all, and what its cloud draws for them."""
    split = "validation" if domain is None else f"validation:{domain}"
    if split not in world.splits or not (world.has_cloud or world.images):
        return None
    prompts = world.prompts(split)
    run.on_stage("cloud draws the validation prompts")
    seeds = [VALIDATION_SEED] * len(prompts)

    def drawn() -> Image:
        return fitted(world.reference(device=run.device).images(prompts, seeds=seeds), world.side)

    return CloudImages(prompts=tuple(prompts), images=from_main(drawn))


@dataclass(frozen=True, kw_only=True)
class GenerationTask:
    """What is to be learned: a method by name, its numbers, and the extras.

    config: of the method's `config_type`. domain: one of the world's groups of prompts, to validate with.
    validate: whether the world's own prompts take part: to choose among what was trained, and to keep what the edge
    drew for others before.
    """

    method: str = "makd"
    config: Any = field(default_factory=MakdConfig)
    extras: Extras = field(default_factory=Extras)
    domain: str | None = None
    validate: bool = True


def train_update(
    edge: DiffusersGenerator,
    data: DistillationData,
    task: GenerationTask,
    check: Check | None,
    run: Run,
) -> GenerationUpdate:
    """Train an update; what is held out chooses its checkpoint, its guidance and its strength."""
    training = TrainingRun(
        checkpoint=run.resume,
        on_step=run.on_step,
        validate=None if check is None else check.during_training,
        tracking=run.tracking,
    )
    extras = task.extras
    update = find_method(task.method).train(edge, data, task.config, training)
    if check is not None:
        run.on_stage("choose guidance and strength")
        update = tuned(update, *from_main(partial(check.choose, edge, update, extras)))
    if extras.few_steps is not None:
        run.on_stage("learn to draw in fewer steps")
        aligned = apply_update(edge, update)
        prompts = sorted(set(data.prompts))
        few, sampling = distil_few_steps(aligned, prompts, extras.few_steps, training)
        remove_update(aligned)
        update = replace(update, few_step=few, few_step_sampling=sampling)
    return update


def align_generation(
    world: World, data: Material, task: GenerationTask, out: Path, run: Run = ALONE
) -> Bundle:
    """Align the world's edge with images by a method; writes a bundle.

    Several processes train together, each on its own device; they draw what the edge itself draws alike, and the main
    one validates, chooses and writes. The cloud's model is loaded only for images that it drew itself.
    Raises InputError for a method that no bundle carries, before anything is loaded.
    """
    method = find_method(task.method)
    if not method.bundled:
        raise InputError(f"{task.method} leaves a whole denoiser, which no bundle carries")
    edge = world.edge(device=run.device)
    check: Check | None = None
    prior: tuple[str, ...] = ()
    if task.validate:
        check = validation(world, edge, data, run, domain=task.domain)
        prior = tuple(world.splits.get("prior", ()))
    train = data.train
    pairs = DistillationData(prompts=train.prompts, images=train.images, prior=prior)
    update = train_update(edge, pairs, task, check, run)
    settings: dict[str, Setting] = {**method.settings(task.config)}
    # a process more is a share of every step more
    settings["accumulation"] = int(settings.get("accumulation", 1)) * process_count()
    settings |= {"method": task.method, "images": len(train.images)}

    def write() -> Bundle:
        whole = replace(update, noise_map=_noise_map(world, edge, data, run))
        return save_generation(out, edge, whole, settings=settings, quantisation=task.extras.quantisation)

    run.on_stage("write")
    return from_main(write)


def _noise_map(world: World, edge: DiffusersGenerator, data: Material, run: Run) -> torch.Tensor | None:
    """The map of shared noise, where the world's cloud drew the images and the latents have one shape."""
    if not data.drawn_by_cloud:
        return None
    images = data.train.images[:: max(1, len(data.train.images) // NOISE_IMAGES)]
    theirs: Latent = world.cloud(device=run.device).encode(images)
    ours: Latent = edge.encode(images)
    return fit_noise_map(theirs, ours) if theirs.shape == ours.shape else None


def kept(folder: Path | None, name: str, make: Callable[[], torch.Tensor]) -> torch.Tensor:
    """What `make` gives, kept in a folder so that an interrupted run need not make it again."""
    if folder is None:
        return make()
    path = folder / f"{name}.safetensors"
    if not path.exists():
        made = make().contiguous()
        with replacing(path) as part:
            save_file({name: made}, part)
    return load_file(path)[name]
