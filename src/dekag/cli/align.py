"""`dekag align`: train an update for the edge or for the link."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from annotated_types import Ge
from typing_extensions import Doc

from dekag.alignment.config import CalaConfig, FewStepConfig, MakdConfig
from dekag.choices import GENERATION_METHODS, TRANSMISSION_METHODS, require_package
from dekag.cli import checks
from dekag.cli.checks import check_images
from dekag.cli.console import joined, print_bundle, progress, working
from dekag.cli.generated import Options, with_options
from dekag.cli.options import BundleOut, BuyingTrainingWorld, Out, Resume, TrainingWorld, spending
from dekag.data.prompts import read_prompts
from dekag.training.devices import check_device
from dekag.training.trackers import Tracking, check_tracking
from dekag.wire.places import check_folder

if TYPE_CHECKING:
    from dekag.data.orders import Account
    from dekag.tasks.material import ImageSource
    from dekag.tasks.plan import Plan

app = typer.Typer(no_args_is_help=True, help="Train an update and write it as a bundle.")

Form = Annotated[
    Literal["fp32", "fp16", "int8", "int4"], typer.Option("--quantisation", help="How the update travels.")
]
MAKD_NAMES = {"joint_steps": "steps"}
FEW_STEP_NAMES = {
    "steps": "few_steps",
    "rank": "few_step_rank",
    "targets": "few_step_targets",
    "train_steps": "few_step_training",
    "learning_rate": "few_step_rate",
}
FewSteps = Annotated[FewStepConfig | None, Options(names=FEW_STEP_NAMES, unless="steps")]


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """Where prompts and the cloud's images come from."""

    prompts_file: Annotated[Path | None, Doc("One prompt a line; default: the world's.")] = None
    domain: Annotated[str | None, Doc("One group of the world's prompts, as food.")] = None
    draws: Annotated[int, Ge(1), Doc("Cloud images of each prompt.")] = 2
    images: Annotated[
        Path | None,
        Doc(
            "Cloud images and prompts: a folder (index.json, metadata.jsonl or .csv, or captions beside them), a"
            " dataset on disk, parquet or WebDataset tars."
        ),
    ] = None
    skip_broken: Annotated[bool, Doc("Leave out, and count, what of --images cannot be used.")] = False
    endpoint: Annotated[
        str | None,
        Doc("Address of an OpenAI-compatible image API that is the cloud; --images keeps its images."),
    ] = None
    endpoint_model: Annotated[str, Doc("Model to ask the endpoint for.")] = ""
    endpoint_size: Annotated[str, Doc("Image size to ask for.")] = "512x512"

    def check(self) -> None:
        """Raise InputError for a file or folder that is not there, or an endpoint without its client."""
        if self.prompts_file is not None:
            read_prompts(self.prompts_file)
        if self.endpoint is None:
            check_images(self.images)
            return
        require_package("openai", reason="an endpoint needs the openai client", extra="endpoint")
        if self.images is not None:
            check_folder(self.images)

    def load(self, *, seed: int, account: "Account", ask_refused: bool) -> "ImageSource":
        """Where prompts and images come from; the seed is that of the cloud's drawings, the account pays for them."""
        from dekag.data.endpoint import ImageEndpoint
        from dekag.tasks.material import ImageSource

        cloud = None
        if self.endpoint is not None:
            cloud = ImageEndpoint(
                base_url=self.endpoint,
                model=self.endpoint_model,
                size=self.endpoint_size,
                ask_refused=ask_refused,
                account=account,
            )
        return ImageSource(
            prompts_file=self.prompts_file,
            domain=self.domain,
            draws=self.draws,
            folder=self.images,
            endpoint=cloud,
            seed=seed,
            skip_broken=self.skip_broken,
        )


@dataclass(frozen=True, kw_only=True)
class TrackingOptions:
    """Who is told of a training."""

    tracker: Annotated[
        tuple[str, ...], Doc("tensorboard, wandb or any tracker of accelerate; repeatable.")
    ] = ()
    log: Annotated[Path | None, Doc("Folder for trackers and validation pictures.")] = None

    def check(self) -> None:
        """Raise InputError for a tracker that is unknown or not installed, or a log that is no folder."""
        check_tracking(Tracking(trackers=self.tracker, folder=self.log))


@dataclass(frozen=True, kw_only=True)
class DistillationOptions:
    """Who learns from the images, where, and how the update travels."""

    method: Annotated[str, Doc("makd or one of its rivals: all on the same data.")] = "makd"
    quantisation: Annotated[Literal["fp32", "fp16", "int8", "int4"], Doc("How the update travels.")] = "int8"
    resume: Annotated[Path | None, Doc("Folder that keeps the state of an interrupted run.")] = None
    device: Annotated[str, Doc("cpu, cuda, cuda:1, ..., or auto: a GPU if there is one.")] = "auto"
    plan: Annotated[
        bool, Doc("Say what it would take, parameters, memory, steps and purchases, and stop.")
    ] = False

    def check(self) -> None:
        """Raise InputError for an unknown method or device, or a state's folder that is none."""
        GENERATION_METHODS.require(self.method)
        check_device(self.device)
        if self.resume is not None:
            check_folder(self.resume)


@dataclass(frozen=True, kw_only=True)
class TransmissionOptions:
    """The training of a codec's update."""

    draws: Annotated[int, Ge(1), Doc("Edge drawings of each prompt to learn from.")] = 2
    steps: Annotated[int, Ge(1), Doc("Optimiser steps.")] = 2000
    batch: Annotated[int, Ge(1), Doc("Latents of a step.")] = 32
    precision: Annotated[
        Literal["no", "bf16", "auto"],
        Doc("Of the computation; no is fp32, auto is bf16 if that is faster here."),
    ] = "no"
    seed: Annotated[int, Ge(0), Doc("Seed of everything random.")] = 0


def plan_lines(plan: "Plan") -> list[str]:
    """A plan for a reader, one line each."""

    def mega(size: int | None) -> str:
        return "unknown" if size is None else f"{size / 1e6:,.1f} MB"

    trained = "unknown" if plan.trained_parameters is None else f"{plan.trained_parameters:,}"
    stages = ", ".join(f"{steps:,} {name}" for name, steps in plan.steps.items()) or "unknown"
    images = "" if plan.images_a_step is None else f", of {plan.images_a_step} images each"
    draws = "" if plan.draws is None else f"; each pair is met at most {plan.draws:.1f} times"
    return [
        f"method      {plan.method}",
        f"trained     {trained} of {plan.edge_parameters:,} parameters of the edge",
        f"data        {plan.pairs:,} pairs of {plan.prompts:,} prompts, those held back included",
        f"steps       {stages}{images}{draws}",
        f"memory      weights {mega(plan.weights_bytes)}, training {mega(plan.training_bytes)}; activations on top",
        f"disk        latents {mega(plan.latents_bytes)}, text states {mega(plan.text_bytes)}",
        f"to buy      {plan.to_buy:,} pictures",
    ]


@app.command("generation")
@with_options
def align_generation(
    out: BundleOut,
    world: BuyingTrainingWorld,
    data: DataOptions,
    config: Annotated[MakdConfig, Options(names=MAKD_NAMES)],
    few_steps: FewSteps,
    tracking: TrackingOptions,
    training: DistillationOptions,
) -> None:
    """Distil the cloud's images into an update for the edge, by MAKD or a rival; write a bundle."""
    if data.domain is not None:
        world.check_split(f"distill:{data.domain}")
    from dekag.tasks.align_generation import GenerationTask, check_generation
    from dekag.tasks.align_generation import align_generation as align
    from dekag.tasks.material import material
    from dekag.tasks.purchases import check_budget
    from dekag.tasks.validate import Extras
    from dekag.training.run import Run

    task = GenerationTask(
        method=training.method,
        config=config,
        extras=Extras(few_steps=few_steps, quantisation=training.quantisation),
        domain=data.domain,
    )
    tracked = Tracking(trackers=tracking.tracker, folder=tracking.log)
    with joined(training.device) as device, spending(world) as account:
        source = data.load(seed=config.seed, account=account, ask_refused=world.ask_refused)
        loaded = world.buying(account)
        # whatever can be refused is refused before anything is bought
        check_generation(loaded, task)
        if training.plan:
            from dekag.tasks.plan import plan_generation

            print("\n".join(plan_lines(plan_generation(loaded, source, task))))
            return
        check_budget(loaded, source)
        run = Run(device=device, resume=training.resume, tracking=tracked)
        with working("align generation") as on_stage:
            images = material(loaded, source, replace(run, on_stage=on_stage))
        with progress("align generation") as on_step:
            bundle = align(loaded, images, task, out, replace(run, on_step=on_step))
        print_bundle(bundle, out)


@app.command("transmission")
@with_options
def align_transmission(
    out: Out,
    world: TrainingWorld,
    config: TransmissionOptions,
    size: Annotated[CalaConfig, Options(only=("rank", "norm_rank", "gain_rank"))],
    method: Annotated[
        str,
        typer.Option(
            callback=checks.one_of(TRANSMISSION_METHODS),
            help="cala, shared_lora, hard_gate, snr_groups, snr_attention, scaling, appended, content_gate"
            " or full (writes a codec).",
        ),
    ] = "cala",
    quantisation: Form = "int8",
    resume: Resume = None,
) -> None:
    """Adapt the codec to a range of rates, SNRs and fading, by CALA or a rival; write a bundle."""
    (checks.codec_folder if method == "full" else checks.bundle_folder)(out)
    from dekag.tasks.align_transmission import (
        TransmissionTask,
        check_transmission,
        edge_latents,
        transmission_training,
    )
    from dekag.tasks.align_transmission import align_transmission as align
    from dekag.training.run import Run

    training_config = transmission_training(method, config.steps, config.seed, precision=config.precision)
    task = TransmissionTask(
        method=method, size=size, training=training_config, batch=config.batch, quantisation=quantisation
    )
    loaded = world.load()
    check_transmission(loaded, task)
    with joined("cpu"):
        with working("align transmission") as stage:
            run = Run(resume=resume, on_stage=stage)
            latents = edge_latents(loaded, run, draws=config.draws, seed=config.seed, codec=loaded.codec())
        with progress("align transmission") as on_step:
            run = Run(resume=resume, on_step=on_step)
            bundle = align(loaded, latents, task, out, run)
        if bundle is not None:
            print_bundle(bundle, out)
