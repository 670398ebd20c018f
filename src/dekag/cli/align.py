"""`dekag align`: train an update for the edge or for the link."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer
from annotated_types import Ge
from typing_extensions import Doc

from dekag.alignment.config import CalaConfig, FewStepConfig, MakdConfig
from dekag.cli.console import joined, print_bundle, training, working
from dekag.cli.generated import Options, with_options
from dekag.cli.options import Device, Out, Resume, WorldOptions

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
        Path | None, Doc("Folder of cloud images and prompts (index.json, metadata.jsonl or .txt files).")
    ] = None
    endpoint: Annotated[
        str | None,
        Doc("Address of an OpenAI-compatible image API that is the cloud; --images keeps its images."),
    ] = None
    endpoint_model: Annotated[str, Doc("Model to ask the endpoint for.")] = ""
    endpoint_size: Annotated[str, Doc("Image size to ask for.")] = "512x512"


@dataclass(frozen=True, kw_only=True)
class TrackingOptions:
    """Who is told of a training."""

    tracker: Annotated[
        tuple[str, ...], Doc("tensorboard, wandb or any tracker of accelerate; repeatable.")
    ] = ()
    log: Annotated[Path | None, Doc("Folder for trackers and validation pictures.")] = None


@dataclass(frozen=True, kw_only=True)
class TransmissionOptions:
    """The training of a codec's update."""

    draws: Annotated[int, Ge(1), Doc("Edge drawings of each prompt to learn from.")] = 2
    steps: Annotated[int, Ge(1), Doc("Optimiser steps.")] = 2000
    batch: Annotated[int, Ge(1), Doc("Latents of a step.")] = 32
    precision: Annotated[Literal["no", "bf16"], Doc("Of the computation; no is fp32.")] = "no"
    seed: Annotated[int, Ge(0), Doc("Seed of everything random.")] = 0


@app.command("generation")
@with_options
def align_generation(
    out: Out,
    world: WorldOptions,
    data: DataOptions,
    config: Annotated[MakdConfig, Options(names=MAKD_NAMES)],
    few_steps: FewSteps,
    tracking: TrackingOptions,
    method: Annotated[str, typer.Option(help="makd or one of its rivals: all on the same data.")] = "makd",
    quantisation: Form = "int8",
    resume: Resume = None,
    device: Device = "auto",
) -> None:
    """Distil the cloud's images into an update for the edge, by MAKD or a rival; write a bundle."""
    from dekag.data.endpoint import ImageEndpoint
    from dekag.tasks.align_generation import Extras, GenerationTask, ImageSource, material
    from dekag.tasks.align_generation import align_generation as align
    from dekag.training.run import Run, Tracking

    cloud = None
    if data.endpoint is not None:
        cloud = ImageEndpoint(base_url=data.endpoint, model=data.endpoint_model, size=data.endpoint_size)
    source = ImageSource(
        prompts_file=data.prompts_file,
        domain=data.domain,
        draws=data.draws,
        folder=data.images,
        endpoint=cloud,
        seed=config.seed,
    )
    task = GenerationTask(
        method=method,
        config=config,
        extras=Extras(few_steps=few_steps, quantisation=quantisation),
        domain=data.domain,
    )
    chosen = world.load()
    tracked = Tracking(trackers=tracking.tracker, folder=tracking.log)
    with joined(device) as own:
        with working("align generation") as stage:
            run = Run(device=own, resume=resume, tracking=tracked, on_stage=stage)
            images = material(chosen, source, run)
        with training("align generation") as on_step:
            run = Run(device=own, resume=resume, tracking=tracked, on_step=on_step)
            bundle = align(chosen, images, task, out, run)
        print_bundle(bundle, out)


@app.command("transmission")
@with_options
def align_transmission(
    out: Out,
    world: WorldOptions,
    config: TransmissionOptions,
    size: Annotated[CalaConfig, Options(only=("rank", "norm_rank", "gain_rank"))],
    method: Annotated[
        str,
        typer.Option(
            help="cala, shared_lora, hard_gate, snr_groups, snr_attention or full (writes a codec)."
        ),
    ] = "cala",
    quantisation: Form = "int8",
    resume: Resume = None,
) -> None:
    """Adapt the codec to a range of rates, SNRs and fading, by CALA or a rival; write a bundle."""
    from dekag.tasks.align_transmission import TransmissionTask, edge_latents, transmission_training
    from dekag.tasks.align_transmission import align_transmission as align
    from dekag.training.run import Run

    training_config = transmission_training(method, config.steps, config.seed, precision=config.precision)
    task = TransmissionTask(
        method=method, size=size, training=training_config, batch=config.batch, quantisation=quantisation
    )
    chosen = world.load()
    with joined("cpu"):
        with working("align transmission") as stage:
            run = Run(resume=resume, on_stage=stage)
            latents = edge_latents(chosen, run, draws=config.draws, seed=config.seed, codec=chosen.codec())
        with training("align transmission") as on_step:
            run = Run(resume=resume, on_step=on_step)
            bundle = align(chosen, latents, task, out, run)
        if bundle is not None:
            print_bundle(bundle, out)
