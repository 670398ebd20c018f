"""`dekag` on the command line: a thin tree over the package. Heavy imports happen inside the commands."""

import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from dekag.version import __version__

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
align_app = typer.Typer(no_args_is_help=True, help="Train an update and write it as a bundle.")
evaluate_app = typer.Typer(
    no_args_is_help=True, help="Measure consistency, accuracy or PSNR on held-out prompts."
)
bundle_app = typer.Typer(no_args_is_help=True, help="Look at bundles.")
app.add_typer(align_app, name="align")
app.add_typer(evaluate_app, name="evaluate")
app.add_typer(bundle_app, name="bundle")

console = Console(stderr=True)

Json = Annotated[bool, typer.Option("--json", help="Print the numbers as JSON on standard output.")]
Seed = Annotated[int, typer.Option("--seed", min=0, max=2**31 - 1, help="Seed of everything random.")]
Out = Annotated[Path, typer.Option("--out", help="Folder to write; it appears whole or not at all.")]
PresetName = Annotated[str, typer.Option("--preset", help="Named configuration.")]
Count = Annotated[int, typer.Option(min=1)]
Device = Annotated[
    str, typer.Option("--device", help="cpu, cuda, cuda:1, ..., or auto: a GPU if there is one.")
]


def main() -> None:
    """Run the command line; bad input is one line on standard error and exit code 2, a full disk or the like 1.

    Of several processes the first one of each node says what is wrong with the input, as all find the same.
    """
    from dekag.types import InputError

    _quiet_libraries()
    try:
        app()
    except InputError as error:
        if os.environ.get("LOCAL_RANK", "0") == "0":
            _complain(error)
        sys.exit(2)
    except OSError as error:
        _complain(error)
        sys.exit(1)


def _complain(error: Exception) -> None:
    print(f"dekag: {' '.join(str(error).split())}", file=sys.stderr)


def _quiet_libraries() -> None:
    def one_line(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
        if not console.quiet:
            print(f"dekag: warning: {message}", file=sys.stderr)

    warnings.simplefilter("ignore")
    warnings.filterwarnings("default", module="dekag")
    warnings.filterwarnings("always", category=UserWarning, message=r"prompt \d+ has")
    warnings.showwarning = one_line


@contextmanager
def _joined(device: str) -> Iterator[Any]:
    """Join the processes that were launched together; yields this one's device. Only the main one reports."""
    from dekag.training.processes import is_main, joined

    with joined(device) as own:
        console.quiet = not is_main()
        yield own


@contextmanager
def _working(text: str) -> Iterator[Callable[[str], None]]:
    """A spinner with the current stage on a terminal; a line each stage elsewhere."""
    import diffusers
    import transformers

    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()
    with console.status(text) as status:

        def stage(name: str) -> None:
            status.update(f"{text}: {name}")
            if not console.is_terminal:
                console.print(f"{text}: {name}")

        yield stage


@contextmanager
def _training(text: str) -> Iterator[Callable[[str, Any], None]]:
    """A progress bar with the remaining time; `on_step(stage, progress)` moves it."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[loss]}"),
    )
    with Progress(*columns, TimeRemainingColumn(), console=console) as bar:
        task = bar.add_task(text, loss="")

        def on_step(stage: str, step: Any) -> None:
            description = f"{text}: {stage}"
            bar.update(
                task,
                description=description,
                total=step.steps,
                completed=step.step,
                loss=f"loss {step.loss:.4f}",
            )
            if not console.is_terminal and step.step % 100 == 0:
                console.print(f"{description} {step.step}/{step.steps} loss {step.loss:.4f}")

        yield on_step


def _print_bundle(bundle: Any, out: Path) -> None:
    if not console.quiet:
        print(f"wrote bundle {bundle.id[:12]} ({bundle.size_bytes} bytes) to {out}")


def _print_json(value: object) -> None:
    print(json.dumps(value, indent=2, allow_nan=False))


def _version(show: bool) -> bool:
    if show:
        print(f"dekag {__version__}")
        raise typer.Exit
    return show


@app.callback()
def root(
    _: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Knowledge alignment for generative semantic communication."""


@app.command()
def demo(
    out: Out = Path("demo"),
    preset: PresetName = "emoji",
    prompts: Count = 48,
    seeds: Count = 2,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Run the system without and with alignment on held-out prompts; write report.json and report.png."""
    from dekag import demo as demonstration
    from dekag import presets
    from dekag.evaluation.figures import report_figure, save_figure
    from dekag.output import staged, write_json

    config = demonstration.DemoConfig(prompts=prompts, seeds=seeds, sent=min(24, prompts), seed=seed)
    with staged(out) as folder, _working("demo") as stage:
        result = demonstration.run_demo(presets.preset(preset), config, on_stage=stage)
        stage("write")
        write_json(folder / "report.json", result.report())
        figure = report_figure(
            result.rows,
            result.columns,
            demonstration.curves(result.transmission),
            demonstration.summary(result),
        )
        save_figure(figure, folder / "report.png")
    if as_json:
        _print_json(result.report())
        return
    from dekag.tables import demo_tables

    for table in demo_tables(result):
        Console().print(table)
    for line in demonstration.summary(result):
        print(line)
    print(f"wrote {out / 'report.json'} and {out / 'report.png'}")


@app.command()
def generate(
    prompts_file: Annotated[Path, typer.Option(help="One prompt a line.")],
    out: Out,
    model: Annotated[
        str, typer.Option(help="A shipped model, a diffusers directory or a hub id.")
    ] = "emoji/edge",
    bundle: Annotated[
        str | None, typer.Option(help="G-KA bundle: a shipped one, a directory or a tar.")
    ] = None,
    seeds: Annotated[str, typer.Option(help="Seeds of each prompt, separated by commas.")] = "0",
    steps: Annotated[int | None, typer.Option(min=1, help="Denoising steps; default: the model's.")] = None,
    guidance: Annotated[float | None, typer.Option(help="Guidance scale; default: the model's.")] = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Draw every prompt of a file with every seed: OUT/0000_seed0.png (line number, seed) and OUT/index.json."""
    from dekag import commands
    from dekag.training.processes import device_of

    numbers = commands.parse_seeds(seeds)
    with _working("generate") as stage:
        index = commands.generate(
            model,
            bundle,
            prompts_file,
            numbers,
            out,
            steps=steps,
            guidance=guidance,
            device=device_of(device),
            on_stage=stage,
        )
    _print_json(index) if as_json else print(f"wrote {len(index['images'])} images and index.json to {out}")


@app.command()
def deliver(
    prompts: Annotated[list[str], typer.Argument(help="What to draw and send.")],
    out: Out,
    snr_db: Annotated[float, typer.Option(help="SNR per complex channel use.")] = 10.0,
    uses: Annotated[int | None, typer.Option(help="Channel uses an image.")] = None,
    cbr: Annotated[
        float | None, typer.Option(help="Instead of --uses: channel uses per pixel value.")
    ] = None,
    channel: Annotated[str, typer.Option(help="awgn or rayleigh.")] = "awgn",
    blocks: Annotated[int, typer.Option(help="Fading blocks of an image.")] = 1,
    correlation: Annotated[float, typer.Option(help="Correlation of neighbouring blocks, 0 to 1.")] = 0.0,
    pilots: Annotated[int, typer.Option(help="Pilots a block; 0: the receiver knows the gain.")] = 0,
    ka: Annotated[bool, typer.Option("--ka/--no-ka", help="With or without both alignments.")] = True,
    preset: PresetName = "emoji",
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Draw prompts at the edge, send them over the air, and write what the user sees and what it cost."""
    from dekag import commands

    chosen = commands.link_condition(
        preset,
        uses=uses,
        cbr=cbr,
        snr_db=snr_db,
        channel=channel,
        blocks=blocks,
        correlation=correlation,
        pilots=pilots,
    )
    with _working("deliver") as stage:
        report = commands.deliver(preset, prompts, chosen, out, ka=ka, seed=seed, on_stage=stage)
    if as_json:
        _print_json(report)
        return
    for row in report["images"]:
        print(f"{row['psnr_db']:6.2f} dB  {row['prompt']}")
    ledger = report["ledger"]
    print(f"core link {ledger['core_link_bytes']} bytes, air {ledger['channel_uses']} channel uses")
    print(f"as PNG files {ledger['image_bytes']} bytes; wrote {out}")


@align_app.command("generation")
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
    rank: Annotated[int, typer.Option(min=1)] = 8,
    batch: Annotated[int, typer.Option(min=1, help="Images that a process takes at a time.")] = 64,
    accumulation: Annotated[int, typer.Option(min=1, help="Batches that a process adds up in a step.")] = 1,
    precision: Annotated[str, typer.Option(help="no or bf16.")] = "no",
    gradient_checkpointing: Annotated[bool, typer.Option(help="Less memory, more time.")] = False,
    quantisation: Annotated[str, typer.Option(help="fp32, fp16, int8 or int4 on the wire.")] = "int8",
    few_steps: Annotated[
        int, typer.Option(min=0, help="Also learn to draw in this many steps; 0: do not.")
    ] = 0,
    few_step_rank: Annotated[int, typer.Option(min=1)] = 4,
    tracker: Annotated[
        list[str] | None, typer.Option(help="tensorboard, wandb or any tracker of accelerate.")
    ] = None,
    log: Annotated[Path | None, typer.Option(help="Folder for trackers and validation pictures.")] = None,
    resume: Annotated[
        Path | None, typer.Option(help="Folder that keeps the state of an interrupted run.")
    ] = None,
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
    with _joined(device) as own:
        with _working("align generation") as stage:
            data = distillation.cloud_images(chosen, source, resume=resume, device=own, on_stage=stage)
        with _training("align generation") as on_step:
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
        _print_bundle(bundle, out)


@align_app.command("transmission")
def align_transmission(
    out: Out,
    preset: PresetName = "emoji",
    steps: Count = 1500,
    rank: Annotated[int, typer.Option(min=1)] = 16,
    groups: Annotated[int, typer.Option(min=1)] = 8,
    batch: Count = 32,
    resume: Annotated[
        Path | None, typer.Option(help="Folder that keeps the state of an interrupted run.")
    ] = None,
    seed: Seed = 0,
) -> None:
    """CALA: adapt the codec to a range of rates, SNRs and fading; write a bundle."""
    from dekag import commands
    from dekag.alignment.cala import CalaConfig

    size = CalaConfig(rank=rank, groups=groups)
    with _joined("cpu"):
        with _working("align transmission") as stage:
            latents = commands.edge_latents(preset, seed=seed, resume=resume, on_stage=stage)
        with _training("align transmission") as on_step:
            bundle = commands.align_transmission(
                preset,
                latents,
                size,
                out,
                steps=steps,
                batch=batch,
                seed=seed,
                resume=resume,
                on_step=on_step,
            )
        _print_bundle(bundle, out)


@evaluate_app.command("generation")
def evaluate_generation(
    preset: PresetName = "emoji",
    methods: Annotated[
        str, typer.Option(help="makd, rivals by name separated by commas, or all that the preset ships.")
    ] = "makd",
    bundle: Annotated[str | None, typer.Option(help="G-KA bundle; default: the preset's.")] = None,
    prompts: Annotated[int, typer.Option(min=2, help="Held-out prompts of each split.")] = 100,
    seeds: Count = 2,
    device: Device = "auto",
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Consistency of the edge's images with the cloud's on held-out compositions and concepts.

    With several methods the edge draws twice: from noise of its own and from the cloud's noise; and an ImageNet
    network judges as well.
    """
    from dekag import comparison, presets
    from dekag.tables import comparison_tables
    from dekag.training.processes import device_of

    names = methods.split(",")
    several = names != ["makd"]
    with _working("evaluate generation") as stage:
        report = comparison.evaluate(
            presets.preset(preset),
            names,
            bundle=bundle,
            prompts=prompts,
            seeds=seeds,
            seed=seed,
            noises=("own", "shared") if several else ("own",),
            third=several,
            device=device_of(device),
            on_stage=stage,
        )
    if as_json:
        _print_json(report.to_json())
        return
    for table in comparison_tables(report):
        Console().print(table)


@evaluate_app.command("transmission")
def evaluate_transmission(
    preset: PresetName = "emoji",
    bundle: Annotated[str | None, typer.Option(help="T-KA bundle; default: the preset's.")] = None,
    images: Annotated[int, typer.Option(min=2, help="Held-out pictures of each split.")] = 48,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """PSNR of received images over the grid of rates, SNRs and fading."""
    from dekag import commands
    from dekag.tables import transmission_table

    with _working("evaluate transmission") as stage:
        scores = commands.evaluate_transmission(preset, bundle, images=images, seed=seed, on_stage=stage)
    if as_json:
        _print_json(commands.transmission_json(scores))
        return
    Console().print(transmission_table(scores))


@evaluate_app.command("accuracy")
def evaluate_accuracy(
    model: Annotated[
        str, typer.Option(help="A shipped model, a diffusers directory or a hub id.")
    ] = "emoji/edge",
    preset: PresetName = "emoji",
    prompts: Annotated[int, typer.Option(min=100, help="Prompts, each with a concept of its own.")] = 113,
    sheet: Annotated[Path | None, typer.Option(help="Also write a contact sheet of 64 samples here.")] = None,
    device: Device = "auto",
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Concept accuracy: how often the prompt is the nearest of 100 to the image, under the preset's CLIP judge."""
    from dekag import commands
    from dekag.training.processes import device_of

    with _working("evaluate accuracy") as stage:
        mean = commands.evaluate_accuracy(
            model,
            preset,
            prompts=prompts,
            sheet=sheet,
            seed=seed,
            device=device_of(device),
            on_stage=stage,
        )
    if as_json:
        _print_json({"model": model, "accuracy": mean.to_json()})
        return
    print(f"{model}: {100 * mean.mean:.1f} % [{100 * mean.low:.1f}, {100 * mean.high:.1f}], n {mean.n}")


@bundle_app.command("inspect")
def bundle_inspect(
    path: Annotated[str, typer.Argument(help="A shipped bundle's name, a directory or a tar.")],
    as_json: Json = False,
) -> None:
    """Check a bundle and say what is in it."""
    from dekag.alignment.updates import describe
    from dekag.tables import bundle_table
    from dekag.zoo import locate

    description = describe(locate(path, "bundle"))
    _print_json(description) if as_json else Console().print(bundle_table(description))


@bundle_app.command("pack")
def bundle_pack(
    path: Annotated[str, typer.Argument(help="A shipped bundle's name or a directory.")],
    out: Annotated[Path, typer.Option("--out", help="File to write: .tar, .tar.gz or .tgz.")],
) -> None:
    """Pack a bundle as one file, as it travels."""
    from dekag.alignment.bundle import pack
    from dekag.zoo import locate

    pack(locate(path, "bundle"), out)
    print(f"wrote {out} ({out.stat().st_size} bytes)")


@bundle_app.command("export")
def bundle_export(
    path: Annotated[str, typer.Argument(help="A shipped bundle's name, a directory or a tar.")],
    out: Out,
    to: Annotated[str, typer.Option(help="diffusers, comfyui or a1111.")] = "diffusers",
) -> None:
    """Write a bundle in the layout of another program."""
    from dekag.alignment.bundle import load_bundle
    from dekag.alignment.export import export
    from dekag.zoo import locate

    for file in export(load_bundle(locate(path, "bundle")), out, layout=to):
        print(f"wrote {file}")


if __name__ == "__main__":
    main()
