"""G-KA as a whole: the cloud's images, a method's training, what is chosen on validation prompts, a bundle."""

from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from dekag.alignment.config import MakdConfig
from dekag.alignment.generation.bundles import save_generation
from dekag.alignment.generation.checks import check_targets
from dekag.alignment.generation.few_steps import distil_few_steps, plan_few_steps
from dekag.alignment.generation.method import DistillationData, GenerationMethod, TrainingRun
from dekag.alignment.generation.methods import find_method
from dekag.alignment.generation.noise_map import shared_noise_map
from dekag.alignment.generation.update import GenerationUpdate, apply_update, remove_update
from dekag.bundle.bundle import Bundle
from dekag.bundle.container import is_bundle
from dekag.bundle.manifest import Setting
from dekag.generation.diffusers import DiffusersGenerator
from dekag.tasks.material import Material
from dekag.tasks.validate import Check, Extras, tuned, validation, validation_inputs
from dekag.training.keys import key_of
from dekag.training.processes import from_main, process_count
from dekag.training.run import ALONE, Run
from dekag.training.schedulers import check_scheduler
from dekag.training.trackers import check_tracking
from dekag.types import InputError
from dekag.wire.places import check_own_folder
from dekag.world import World


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
        inputs={"method": task.method, **run.inputs},
        on_step=run.on_step,
        validate=None if check is None else check.during_training,
        tracking=run.tracking,
    )
    # for the states of methods that say nothing of it themselves
    training = training.depending_on(
        edge, task.config, prompts=data.prompts, images=data.images, weights=data.weights, prior=data.prior
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


def bundled_method(name: str) -> GenerationMethod[Any]:
    """A method by its name. Raises InputError for an unknown one, or one whose result no bundle carries."""
    method = find_method(name)
    if not method.bundled:
        raise InputError(f"{name} leaves a whole denoiser, which no bundle carries")
    return method


def check_generation(world: World, task: GenerationTask) -> None:
    """Whether a world's edge can be trained so; takes a moment, and nothing is drawn or bought for it.

    Raises InputError for a method that no bundle carries, numbers that it cannot train with, a sampler that an edge
    cannot be trained for, fewer steps that its sampler does not let it learn, and judges that cannot be loaded.
    """
    bundled_method(task.method)
    _check_edge(world.edge(), task)
    if task.validate and world.judge_models:
        world.judges()


def _check_edge(edge: DiffusersGenerator, task: GenerationTask) -> None:
    check_scheduler(edge.pipeline.scheduler)
    find_method(task.method).check(edge, task.config)
    if task.extras.few_steps is not None:
        plan_few_steps(edge, task.extras.few_steps.steps)
        check_targets(edge, task.extras.few_steps.targets)


def align_generation(
    world: World, data: Material, task: GenerationTask, out: Path, run: Run = ALONE
) -> Bundle:
    """Align the world's edge with images by a method; writes a bundle.

    Several processes train together, each on its own device; they draw what the edge itself draws alike, and the main
    one validates, chooses and writes. The cloud's model is loaded only for images that it drew itself.
    Raises InputError as `check_generation` does, before anything is drawn or trained.
    """
    method = bundled_method(task.method)
    check_own_folder(out, is_own=is_bundle, noun="a bundle")
    check_tracking(run.tracking)
    edge = world.edge(device=run.device)
    _check_edge(edge, task)
    check: Check | None = None
    prior: tuple[str, ...] = ()
    if task.validate:
        check = validation(world, edge, data, run, domain=task.domain)
        prior = tuple(world.splits.get("prior", ()))
    train = data.train
    pairs = DistillationData(prompts=train.prompts, images=train.images, prior=prior, weights=train.weights)
    if run.resume is not None:
        run = replace(run, inputs={**run.inputs, **key_of(validation_inputs(world, check))})
    update = train_update(edge, pairs, task, check, run)
    settings: dict[str, Setting] = {**method.settings(task.config)}
    # a process more is a share of every step more
    settings["accumulation"] = int(settings.get("accumulation", 1)) * process_count()
    settings |= {"method": task.method, "images": len(train.images)}

    def write() -> Bundle:
        cloud = _cloud_with_latents(world, run) if data.drawn_by_cloud else None
        if not data.drawn_by_cloud:
            run.on_stage("no model of a cloud drew the images: the update has no map of shared noise")
        whole = replace(update, noise_map=shared_noise_map(cloud, edge, train.images))
        return save_generation(out, edge, whole, settings=settings, quantisation=task.extras.quantisation)

    run.on_stage("write")
    return from_main(write)


def _cloud_with_latents(world: World, run: Run) -> DiffusersGenerator | None:
    """The world's cloud, if its latents are known, so that its noise can be the edge's as well."""
    cloud = world.cloud(device=run.device)
    if isinstance(cloud, DiffusersGenerator) and not cloud.has_family:
        run.on_stage(f"the latents of {type(cloud.pipeline).__name__} are not known: no noise is shared")
        return None
    return cloud
