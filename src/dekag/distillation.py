"""G-KA as a whole: the cloud's images, a method's training, what is chosen on validation prompts, a bundle."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from dekag import presets, zoo
from dekag.alignment.adapters import can_scale, scaled
from dekag.alignment.bundle import Bundle, Quantisation, Setting
from dekag.alignment.few_steps import FewStepConfig, distil_few_steps
from dekag.alignment.makd import MakdConfig, Tracking, distil
from dekag.alignment.method import DistillationData, TrainingRun
from dekag.alignment.noise import fit_noise_map
from dekag.alignment.rivals import method_config
from dekag.alignment.update import GenerationUpdate, apply_update, remove_update
from dekag.alignment.updates import save_generation
from dekag.comparison import judges
from dekag.data.endpoint import ImageEndpoint, draw_to_folder
from dekag.data.folder import CloudImages, read_folder
from dekag.data.prompts import read_prompts
from dekag.evaluation.figures import contact_sheet, save_figure
from dekag.evaluation.generation import EDGE_SEED, draw
from dekag.evaluation.judges import Judge, consistency
from dekag.generation.diffusers import DiffusersGenerator, Sampling
from dekag.presets import Preset
from dekag.training.loop import Progress
from dekag.training.processes import from_main, process_count
from dekag.types import Image, InputError, Latent

Choice = TypeVar("Choice")
Stage = Callable[[str], None]
Device = str | torch.device
OnStep = Callable[[str, Progress], None]
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


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where prompts and cloud images come from: the preset's cloud unless a folder or an endpoint is named.

    prompts_file: one prompt a line. domain: one of the preset's groups of prompts. draws: images of each prompt, from
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
            raise InputError("give the prompts as a file or as a domain of the preset, not as both")
        if self.endpoint is not None and self.folder is None:
            raise InputError("an endpoint's images need a folder that keeps them: give --images")
        if self.endpoint is None and self.folder is not None and (self.prompts_file or self.domain):
            raise InputError("a folder of images brings its own prompts; leave out the file and the domain")

    def prompts(self, chosen: Preset) -> list[str]:
        """The prompts, each as often as it is drawn."""
        if self.prompts_file is not None:
            return read_prompts(self.prompts_file) * self.draws
        split = "distill" if self.domain is None else f"distill:{self.domain}"
        return zoo.prompts(presets.named(chosen.world, "prompts"), split) * self.draws


@dataclass(frozen=True, kw_only=True)
class Extras:
    """What an update carries beside metaword and low-rank matrices, and how it travels.

    guidance: guidance scales to choose from on the validation prompts; none keeps the preset's.
    strengths: factors on the low-rank update to choose from, in the same way; none keeps it as it was trained.
    few_steps: the second update, for drawing in fewer steps, if any.
    """

    guidance: tuple[float, ...] = GUIDANCE
    strengths: tuple[float, ...] = STRENGTHS
    few_steps: FewStepConfig | None = None
    quantisation: Quantisation = "int8"


def cloud_images(
    chosen: Preset,
    source: Source,
    *,
    resume: Path | None = None,
    device: Device = "cpu",
    on_stage: Stage = lambda _: None,
) -> CloudImages:
    """Prompts of distillation and the cloud's images, kept in `resume` if they had to be drawn.

    Of several processes the main one reads or draws them for all.
    """
    return from_main(partial(_cloud_images, chosen, source, resume, device, on_stage))


def _cloud_images(
    chosen: Preset, source: Source, resume: Path | None, device: Device, on_stage: Stage
) -> CloudImages:
    if source.folder is not None and source.endpoint is None:
        on_stage("read images")
        return read_folder(source.folder, pixels=chosen.pixels)
    prompts = source.prompts(chosen)
    seeds = [DISTIL_SEEDS + 10_000 * source.seed + i for i in range(len(prompts))]
    on_stage(f"cloud draws {len(prompts)} images")
    if source.endpoint is not None and source.folder is not None:
        draw_to_folder(source.endpoint, prompts, seeds, source.folder)
        return read_folder(source.folder, pixels=chosen.pixels)
    images = kept(resume, "cloud", lambda: _from_cloud(chosen, prompts, seeds, device))
    return CloudImages(prompts=tuple(prompts), images=images)


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
        sampling = self._best(edge, {each: tuned(update, each, 1.0) for each in samplings})
        strengths = extras.strengths if update.adapter and can_scale(update.adapter) else ()
        return sampling, self._best(
            edge, {each: tuned(update, sampling, each) for each in strengths or (1.0,)}
        )

    def _best(self, edge: DiffusersGenerator, updates: Mapping[Choice, GenerationUpdate]) -> Choice:
        """The choice whose update has the highest score, the first of equals."""
        scores = {}
        for choice, update in updates.items():
            aligned = apply_update(edge, update)
            scores[choice] = self.score(aligned)
            remove_update(aligned)
        return max(scores, key=lambda choice: scores[choice])

    def _value(self, images: Image) -> float:
        values = [consistency(judge, self.cloud, images).mean() for judge in self.judges.values()]
        return float(torch.stack(values).mean())


def tuned(update: GenerationUpdate, sampling: Sampling | None, strength: float) -> GenerationUpdate:
    """An update to be drawn with some sampling, its low-rank matrices at a strength."""
    return replace(update, sampling=sampling, adapter=scaled(update.adapter, strength))


def _from_cloud(chosen: Preset, prompts: Sequence[str], seeds: Sequence[int], device: Device) -> Image:
    """What the preset's cloud draws, at the side of the edge's pictures."""
    images = presets.cloud(chosen, device=device).images(prompts, seeds=seeds)
    if images.shape[-1] == chosen.pixels:
        return images
    size = (chosen.pixels, chosen.pixels)
    return F.interpolate(images, size=size, mode="bicubic", antialias=True).clamp(0, 1)


def validation(
    chosen: Preset, *, domain: str | None = None, pictures: Path | None = None, device: Device = "cpu"
) -> Validation:
    """The preset's validation prompts, of one domain or all, and what its cloud draws for them."""
    world = presets.named(chosen.world, "validation prompts")
    prompts = zoo.prompts(world, "validation" if domain is None else f"validation:{domain}")
    images = from_main(lambda: _from_cloud(chosen, prompts, [VALIDATION_SEED] * len(prompts), device))
    known = judges(chosen, device=device)
    return Validation(prompts=prompts, cloud=images, judges=known, pictures=pictures)


def train_update(
    edge: DiffusersGenerator,
    data: CloudImages,
    config: MakdConfig,
    check: Validation | None,
    extras: Extras,
    *,
    prior: Sequence[str] = (),
    few_step_prompts: Sequence[str] = (),
    resume: Path | None = None,
    on_step: OnStep | None = None,
    on_stage: Stage = lambda _: None,
    tracking: Tracking | None = None,
) -> GenerationUpdate:
    """Train an update; with validation prompts, they choose its checkpoint, its guidance and its strength."""
    run = TrainingRun(
        checkpoint=resume,
        on_step=on_step,
        validate=None if check is None else check.during_training,
        tracking=tracking or Tracking(),
    )
    pairs = DistillationData(prompts=data.prompts, images=data.images, prior=prior)
    update = distil(edge, pairs, config, run)
    if check is not None:
        on_stage("choose guidance and strength")
        update = tuned(update, *from_main(partial(check.choose, edge, update, extras)))
    if extras.few_steps is not None:
        on_stage("learn to draw in fewer steps")
        aligned = apply_update(edge, update)
        few, sampling = distil_few_steps(aligned, few_step_prompts, extras.few_steps, run)
        remove_update(aligned)
        update = replace(update, few_step=few, few_step_sampling=sampling)
    return update


def align_generation(
    chosen: Preset,
    data: CloudImages,
    config: MakdConfig,
    extras: Extras,
    out: Path,
    *,
    method: str = "makd",
    domain: str | None = None,
    resume: Path | None = None,
    device: Device = "cpu",
    tracking: Tracking | None = None,
    on_step: OnStep | None = None,
    on_stage: Stage = lambda _: None,
) -> Bundle:
    """Align the preset's edge with the cloud's images by a method; writes a bundle.

    Several processes train together, each on its own `device`; they draw what the edge itself draws alike, and the
    main one validates, chooses and writes.
    """
    if method == "full":
        raise InputError("full fine-tuning leaves a whole denoiser, which no bundle carries")
    edge = presets.edge(chosen, device=device)
    check: Validation | None = None
    prior: tuple[str, ...] = ()
    if chosen.world is not None:
        on_stage("cloud draws the validation prompts")
        pictures = None if tracking is None or tracking.folder is None else tracking.folder / "pictures"
        check = validation(chosen, domain=domain, pictures=pictures, device=device)
        prior = tuple(zoo.prompts(chosen.world, "prior"))
    chosen_config = method_config(method, config)
    update = train_update(
        edge,
        data,
        chosen_config,
        check,
        extras,
        prior=prior,
        few_step_prompts=sorted(set(data.prompts)),
        resume=resume,
        on_step=on_step,
        on_stage=on_stage,
        tracking=tracking,
    )
    settings: dict[str, Setting] = {
        **chosen_config.settings(),
        # a process more is a share of every step more
        "accumulation": config.accumulation * process_count(),
        "method": method,
        "images": len(data.images),
    }

    def write() -> Bundle:
        some = data.images[:: max(1, len(data.images) // NOISE_IMAGES)]
        noise_map = _noise_map(presets.cloud(chosen, device=device), edge, some)
        whole = replace(update, noise_map=noise_map)
        return save_generation(out, edge, whole, settings=settings, quantisation=extras.quantisation)

    on_stage("write")
    return from_main(write)


def _noise_map(cloud: DiffusersGenerator, edge: DiffusersGenerator, images: Image) -> torch.Tensor | None:
    """The map of shared noise, where the latents have one shape."""
    theirs: Latent = cloud.encode(images)
    ours: Latent = edge.encode(images)
    return fit_noise_map(theirs, ours) if theirs.shape == ours.shape else None


def kept(folder: Path | None, name: str, make: Callable[[], torch.Tensor]) -> torch.Tensor:
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
