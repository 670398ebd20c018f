"""`dekag demo`, `generate` and `deliver`: the system at work."""

from pathlib import Path
from typing import Annotated

import typer

from dekag.cli.console import print_json, print_tables, working
from dekag.cli.options import Count, Device, Json, Model, Out, PresetName, Seed

app = typer.Typer()


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
    with staged(out) as folder, working("demo") as stage:
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
        print_json(result.report())
        return
    from dekag.tables import demo_tables

    print_tables(*demo_tables(result))
    for line in demonstration.summary(result):
        print(line)
    print(f"wrote {out / 'report.json'} and {out / 'report.png'}")


@app.command()
def generate(
    prompts_file: Annotated[Path, typer.Option(help="One prompt a line.")],
    out: Out,
    model: Model = "emoji/edge",
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
    with working("generate") as stage:
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
    print_json(index) if as_json else print(f"wrote {len(index['images'])} images and index.json to {out}")


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
    with working("deliver") as stage:
        report = commands.deliver(preset, prompts, chosen, out, ka=ka, seed=seed, on_stage=stage)
    if as_json:
        print_json(report)
        return
    for row in report["images"]:
        print(f"{row['psnr_db']:6.2f} dB  {row['prompt']}")
    ledger = report["ledger"]
    print(f"core link {ledger['core_link_bytes']} bytes, air {ledger['channel_uses']} channel uses")
    print(f"as PNG files {ledger['image_bytes']} bytes; wrote {out}")
