"""`dekag align`: train an update for the edge or for the link."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from dekag.cli.console import joined, print_bundle, training, working
from dekag.cli.options import Count, Device, Out, PresetName, Resume, Seed

app = typer.Typer(no_args_is_help=True, help="Train an update and write it as a bundle.")


@app.command("generation")
def align_generation(
    out: Out,
    preset: PresetName = "emoji",
    method: Annotated[
        str, typer.Option(help="makd, textual_inversion, lora, dreambooth or lokr: all on the same data.")
    ] = "makd",
    prompts_file: Annotated[
        Path | None, typer.Option(help="One prompt a line; default: the preset's.")
    ] = None,
    domain: Annotated[
        str | None, typer.Option(help="One group of the preset's prompts: food, animals or faces.")
    ] = None,
    draws: Annotated[int, typer.Option(min=1, help="Cloud images of each prompt.")] = 2,
    images: Annotated[
        Path | None,
        typer.Option(help="Folder of cloud images and prompts (index.json, metadata.jsonl or .txt files)."),
    ] = None,
    endpoint: Annotated[
        str | None,
        typer.Option(
            help="Address of an OpenAI-compatible image API that is the cloud; --images keeps its images."
        ),
    ] = None,
    endpoint_model: Annotated[str, typer.Option(help="Model to ask the endpoint for.")] = "",
    endpoint_size: Annotated[str, typer.Option(help="Image size to ask for.")] = "512x512",
    steps: Annotated[int, typer.Option(min=1, help="Joint steps of metaword and LoRA.")] = 200,
    frozen_steps: Annotated[int, typer.Option(min=0, help="Further steps with the metaword frozen.")] = 600,
    metaword_steps: Annotated[int, typer.Option(min=0, help="Steps of the metaword alone.")] = 100,
    vectors: Annotated[int, typer.Option(min=0, help="Vectors of the metaword.")] = 4,
    words: Annotated[str, typer.Option(help="Words that the metaword starts from.")] = "glossy 3d",
    token: Annotated[str, typer.Option(help="How the metaword is written.")] = "<dekag>",
    rank: Count = 8,
    batch: Annotated[int, typer.Option(min=1, help="Images that a process takes at a time.")] = 64,
    accumulation: Annotated[int, typer.Option(min=1, help="Batches that a process adds up in a step.")] = 1,
    precision: Annotated[Literal["no", "bf16"], typer.Option(help="no or bf16.")] = "no",
    gradient_checkpointing: Annotated[bool, typer.Option(help="Less memory, more time.")] = False,
    quantisation: Annotated[str, typer.Option(help="fp32, fp16, int8 or int4 on the wire.")] = "int8",
    few_steps: Annotated[
        int, typer.Option(min=0, help="Also learn to draw in this many steps; 0: do not.")
    ] = 0,
    few_step_rank: Count = 4,
    tracker: Annotated[
        list[str] | None, typer.Option(help="tensorboard, wandb or any tracker of accelerate.")
    ] = None,
    log: Annotated[Path | None, typer.Option(help="Folder for trackers and validation pictures.")] = None,
    resume: Resume = None,
    device: Device = "auto",
    seed: Seed = 0,
) -> None:
    """Distil the cloud's images into an update for the edge, by MAKD or a rival; write a bundle."""
    from dekag import distillation, presets
    from dekag.alignment.few_steps import FewStepConfig
    from dekag.alignment.makd import MakdConfig, Tracking
    from dekag.commands import parse_quantisation
    from dekag.data.endpoint import ImageEndpoint

    config = MakdConfig(
        token=token,
        vectors=vectors,
        words=words,
        rank=rank,
        metaword_steps=metaword_steps,
        joint_steps=steps,
        frozen_steps=frozen_steps,
        batch=batch,
        accumulation=accumulation,
        precision=precision,
        gradient_checkpointing=gradient_checkpointing,
        seed=seed,
    )
    few = None
    if few_steps:
        few = FewStepConfig(
            steps=few_steps,
            rank=few_step_rank,
            batch=batch,
            accumulation=accumulation,
            precision=precision,
            gradient_checkpointing=gradient_checkpointing,
            seed=seed,
        )
    extras = distillation.Extras(few_steps=few, quantisation=parse_quantisation(quantisation))
    cloud = None
    if endpoint is not None:
        cloud = ImageEndpoint(base_url=endpoint, model=endpoint_model, size=endpoint_size)
    source = distillation.Source(
        prompts_file=prompts_file, domain=domain, draws=draws, folder=images, endpoint=cloud, seed=seed
    )
    chosen = presets.preset(preset)
    with joined(device) as own:
        with working("align generation") as stage:
            data = distillation.cloud_images(chosen, source, resume=resume, device=own, on_stage=stage)
        with training("align generation") as on_step:
            bundle = distillation.align_generation(
                chosen,
                data,
                config,
                extras,
                out,
                method=method,
                domain=domain,
                resume=resume,
                device=own,
                tracking=Tracking(trackers=tuple(tracker or ()), folder=log),
                on_step=on_step,
            )
        print_bundle(bundle, out)


@app.command("transmission")
def align_transmission(
    out: Out,
    preset: PresetName = "emoji",
    method: Annotated[
        str,
        typer.Option(
            help="cala, shared_lora, hard_gate, snr_groups, snr_attention or full (writes a codec)."
        ),
    ] = "cala",
    draws: Annotated[int, typer.Option(min=1, help="Edge drawings of each prompt to learn from.")] = 2,
    steps: Count = 2000,
    rank: Annotated[int, typer.Option(min=1, help="Rank of the update of each linear layer.")] = 4,
    norm_rank: Annotated[int, typer.Option(min=0, help="Gated directions of each norm; 0: none.")] = 1,
    gain_rank: Annotated[int, typer.Option(min=0, help="Gated directions of the symbols' gains.")] = 4,
    batch: Count = 32,
    precision: Annotated[str, typer.Option(help="no or bf16.")] = "no",
    quantisation: Annotated[str, typer.Option(help="fp32, fp16, int8 or int4 on the wire.")] = "int8",
    resume: Resume = None,
    seed: Seed = 0,
) -> None:
    """Adapt the codec to a range of rates, SNRs and fading, by CALA or a rival; write a bundle."""
    from dekag import adaptation
    from dekag.alignment.cala import CalaConfig
    from dekag.commands import parse_quantisation

    size = CalaConfig(rank=rank, norm_rank=norm_rank, gain_rank=gain_rank)
    form = parse_quantisation(quantisation)
    with joined("cpu"):
        with working("align transmission") as stage:
            latents = adaptation.edge_latents(preset, draws=draws, seed=seed, resume=resume, on_stage=stage)
        with training("align transmission") as on_step:
            bundle = adaptation.align_transmission(
                preset,
                latents,
                size,
                out,
                method=method,
                training=adaptation.transmission_training(method, steps, seed, precision=precision),
                batch=batch,
                quantisation=form,
                resume=resume,
                on_step=on_step,
            )
        if bundle is not None:
            print_bundle(bundle, out)
