"""`dekag evaluate`: the experiments, one command each."""

from pathlib import Path
from typing import Annotated

import typer

from dekag.cli.console import print_json, print_tables, working
from dekag.cli.options import Count, Device, Json, Model, PresetName, Seed

app = typer.Typer(no_args_is_help=True, help="Measure consistency, accuracy or PSNR on held-out prompts.")


@app.command("generation")
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
    with working("evaluate generation") as stage:
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
        print_json(report.to_json())
        return
    print_tables(*comparison_tables(report))


@app.command("transmission")
def evaluate_transmission(
    out: Annotated[
        Path, typer.Option(help="Folder of the results; an interrupted run goes on from what it holds.")
    ] = Path("transmission"),
    preset: PresetName = "emoji",
    methods: Annotated[
        str, typer.Option(help="Of no_ka, cala, digital, jpeg, webp, avif, separated by commas.")
    ] = "no_ka,cala",
    codec: Annotated[
        list[str] | None, typer.Option(help="NAME=DIRECTORY: a further codec or T-KA bundle; repeatable.")
    ] = None,
    bundle: Annotated[str | None, typer.Option(help="T-KA bundle of cala; default: the preset's.")] = None,
    grid: Annotated[str, typer.Option(help="held-out, full or small.")] = "held-out",
    uses: Annotated[str | None, typer.Option(help="Instead of the grid's: channel uses, as 64,128.")] = None,
    snrs: Annotated[str | None, typer.Option(help="Instead of the grid's: SNRs in dB, as 0,8.7.")] = None,
    channels: Annotated[
        str | None, typer.Option(help="Instead of the grid's: awgn, rayleigh-1, tdl-c, ...")
    ] = None,
    constellations: Annotated[
        str | None, typer.Option(help="For every codec: qpsk, 16qam, 64qam, 256qam, analogue.")
    ] = None,
    images: Annotated[int, typer.Option(min=2, help="Held-out pictures of each split.")] = 48,
    draws: Annotated[
        int, typer.Option(min=0, help="Latents for the bound and the digital methods; 0: no bound.")
    ] = 4096,
    lpips: Annotated[bool, typer.Option("--lpips", help="Measure LPIPS as well.")] = False,
    thresholds: Annotated[
        Path | None, typer.Option(help="Block error rates of `python -m dekag.baseline`.")
    ] = None,
    engine: Annotated[str, typer.Option(help="inline, processes, ray or slurm.")] = "inline",
    workers: Annotated[int, typer.Option(min=1, help="Processes, tasks or jobs at a time.")] = 1,
    ray_address: Annotated[str, typer.Option(help="Of a Ray cluster that runs.")] = "auto",
    slurm_partition: Annotated[str | None, typer.Option(help="Default: the cluster's.")] = None,
    slurm_minutes: Annotated[int, typer.Option(min=1, help="Limit of a job.")] = 240,
    device: Device = "cpu",
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Every method over a grid of rates, SNRs and channels: tables, figures, and the values of every image."""
    from dekag import sweep
    from dekag.evaluation.grid import read_grid
    from dekag.training.processes import device_of

    config = sweep.SweepConfig(
        grid=read_grid(grid, uses=uses, snrs=snrs, channels=channels, constellations=constellations),
        preset=preset,
        methods=tuple(methods.split(",")) if methods else (),
        codecs=tuple(codec or ()),
        bundle=bundle,
        images=images,
        draws=draws,
        seed=seed,
        lpips=lpips,
        thresholds=thresholds,
        device=str(device_of(device)),
    )
    chosen = sweep.engine_named(
        engine,
        workers=workers,
        folder=out.absolute() / "jobs",
        minutes=slurm_minutes,
        partition=slurm_partition,
        address=ray_address,
    )
    with working("evaluate transmission") as stage:
        outcome = sweep.sweep(config, out, chosen, on_stage=stage)
        stage("write")
        summary, written = sweep.write(outcome, out)
    if as_json:
        print_json(summary.to_json())
        return
    from dekag.tables import sweep_lines, sweep_tables

    print_tables(*sweep_tables(summary))
    for line in sweep_lines(summary):
        print(line)
    print("wrote " + ", ".join(str(path) for path in written))


@app.command("accuracy")
def evaluate_accuracy(
    model: Model = "emoji/edge",
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

    with working("evaluate accuracy") as stage:
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
        print_json({"model": model, "accuracy": mean.to_json()})
        return
    print(f"{model}: {100 * mean.mean:.1f} % [{100 * mean.low:.1f}, {100 * mean.high:.1f}], n {mean.n}")
