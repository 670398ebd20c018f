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
    preset: PresetName = "emoji",
    bundle: Annotated[str | None, typer.Option(help="T-KA bundle; default: the preset's.")] = None,
    images: Annotated[int, typer.Option(min=2, help="Held-out pictures of each split.")] = 48,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """PSNR of received images over the grid of rates, SNRs and fading."""
    from dekag import commands
    from dekag.tables import transmission_table

    with working("evaluate transmission") as stage:
        scores = commands.evaluate_transmission(preset, bundle, images=images, seed=seed, on_stage=stage)
    if as_json:
        print_json(commands.transmission_json(scores))
        return
    print_tables(transmission_table(scores))


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
