"""`dekag demo`, `generate`, `deliver`, `receive` and `up`: the system at work."""

from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import typer
from annotated_types import Ge, Le
from typing_extensions import Doc

from dekag.cli import checks
from dekag.cli.console import needing, print_json, uses_text, working
from dekag.cli.generated import Options, with_options
from dekag.cli.options import (
    AsEdge,
    BuyingWorldOptions,
    ChannelOptions,
    DeliveryOptions,
    Device,
    EngineOption,
    FromRadio,
    Json,
    Out,
    Prompts,
    ReceiverOptions,
    SamplingOptions,
    WorldOptions,
    chosen_name,
    parse_seeds,
    read_world,
    spending,
)
from dekag.data.prompts import read_prompts
from dekag.serving.supported import check_service
from dekag.world.shipped import DEFAULT_WORLD

app = typer.Typer()


@dataclass(frozen=True, kw_only=True)
class DemoOptions(EngineOption):
    """How much the demonstration measures."""

    prompts: Annotated[int, Ge(1), Doc("Prompts of each reported split.")] = 48
    seeds: Annotated[int, Ge(1), Doc("Drawings of each prompt.")] = 2
    seed: Annotated[int, Ge(0), Le(2**31 - 1), Doc("Seed of everything random.")] = 0


@app.command()
@with_options
def demo(
    config: DemoOptions,
    world: BuyingWorldOptions,
    out: Out = Path("demo"),
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Run the system without and with alignment on held-out prompts; write report.json and report.png."""
    from dekag.evaluation.figures import report_figure, save_figure
    from dekag.tasks import demo as demonstration
    from dekag.training.processes import device_of
    from dekag.wire.files import staged, write_json

    numbers = demonstration.DemoConfig(
        prompts=config.prompts, seeds=config.seeds, sent=min(24, config.prompts), seed=config.seed
    )
    with staged(out) as folder, working("demo") as stage, spending(world) as account:
        loaded = config.put_on(world.buying(account))
        result = demonstration.run_demo(loaded, numbers, device=device_of(device), on_stage=stage)
        stage("write")
        write_json(folder / "report.json", result.to_json())
        figure = report_figure(
            result.rows,
            result.columns,
            demonstration.curves(result.transmission, result.grid),
            demonstration.summary(result),
        )
        save_figure(figure, folder / "report.png")
    if as_json:
        print_json(result.to_json())
        return
    from dekag.cli.tables import print_tables

    print_tables(result)
    for line in demonstration.summary(result):
        print(line)
    print(f"wrote {out / 'report.json'} and {out / 'report.png'}")


@dataclass(frozen=True, kw_only=True)
class DrawingOptions(EngineOption):
    """What is drawn."""

    prompts_file: Annotated[Path, Doc("One prompt a line.")]
    seeds: Annotated[str, Doc("Seeds of each prompt, separated by commas.")] = "0"

    def check(self) -> None:
        """Raise InputError for prompts that are not there, or seeds that are none."""
        super().check()
        read_prompts(self.prompts_file)
        parse_seeds(self.seeds)


@app.command()
@with_options
def generate(
    drawings: DrawingOptions,
    out: Out,
    world: Annotated[
        WorldOptions, Options(only=("world", "edge", "bundle", "variant", "pipeline_config", "preset"))
    ],
    sampling: SamplingOptions,
    model: AsEdge = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Draw every prompt of a file with every seed: OUT/0000_seed0.png (line number, seed) and OUT/index.json.

    The edge draws without an update unless --bundle names one.
    """
    from dekag.tasks.generate import GenerateTask
    from dekag.tasks.generate import generate as draw
    from dekag.training.processes import device_of

    loaded = sampling.put_on(replace(world, edge=world.edge or model).load(("generation",)))
    loaded = drawings.put_on(loaded)
    seeds = parse_seeds(drawings.seeds)
    task = GenerateTask(prompts_file=drawings.prompts_file, seeds=seeds, align=bool(world.bundle))
    with working("generate") as stage:
        index = draw(loaded, task, out, device=device_of(device), on_stage=stage)
    print_json(index) if as_json else print(f"wrote {len(index['images'])} images and index.json to {out}")


@app.command()
@with_options
def deliver(
    prompts: Prompts,
    out: Out,
    link: ChannelOptions,
    world: WorldOptions,
    drawing: DeliveryOptions,
    as_json: Json = False,
) -> None:
    """Draw prompts at the edge, send them over the air, and write what the user sees and what it cost."""
    from dekag.tasks.deliver import DeliverTask
    from dekag.tasks.deliver import deliver as carry_out
    from dekag.training.processes import device_of

    with working("deliver") as stage:
        settings, loaded = link.load(), drawing.put_on(world.load())
        transmission = settings.for_world(loaded)
        task = DeliverTask(prompts=prompts, transmission=transmission, align=drawing.ka, seed=drawing.seed)
        report = carry_out(loaded, task, out, device=device_of(drawing.device), on_stage=stage)
    if as_json:
        print_json(report)
        return
    for row in report["images"]:
        erased = f"  ({row['erased_uses']} uses erased)" if row["erased_uses"] else ""
        print(f"{row['psnr_db']:6.2f} dB  {row['prompt']}{erased}")
    ledger = report["ledger"]
    print(f"core link {ledger['core_link_bytes']} bytes, air {uses_text(ledger)}")
    print(f"as PNG files {ledger['image_bytes']} bytes; wrote {out}")


@app.command()
def up(
    folder: Annotated[
        Path,
        typer.Option(
            callback=checks.folder, help="What the services keep; it is made, and used again the next time."
        ),
    ] = Path("dekag-up"),
    port: Annotated[int, typer.Option(min=1, max=65535, help="Of the page and the edge.")] = 8000,
    cloud_port: Annotated[int, typer.Option(min=1, max=65535, help="Of the cloud.")] = 8001,
    world: Annotated[str, typer.Option(help="A shipped world or the folder of one.")] = DEFAULT_WORLD,
    preset: Annotated[str | None, typer.Option("--preset", hidden=True)] = None,
) -> None:
    """Start a cloud, an edge and the page on this machine, with the shipped updates published; Ctrl-C stops them."""
    read_world(chosen_name(world, preset) or world)
    check_service()
    with needing("serve"):
        from dekag.serving.up import Site, alignment_lines, prepare, running, until_stopped, wait

    named = chosen_name(world, preset) or world
    site = Site(folder=folder, port=port, cloud_port=cloud_port, world=named)
    with until_stopped(), ExitStack() as stack:
        with working("up") as stage:
            prepare(site, on_stage=stage)
            processes = stack.enter_context(running(site, on_stage=stage))
        print(f"page and edge  {site.edge_url}")
        print(f"cloud          {site.cloud_url}")
        for line in alignment_lines(site):
            print(line)
        print("Ctrl-C stops them", flush=True)
        wait(site, processes)


@app.command()
@with_options
def receive(
    files: Annotated[
        list[Path],
        typer.Argument(
            callback=checks.recordings,
            help="Frames (.frame) and SigMF recordings, the latter with or without suffix.",
        ),
    ],
    out: Out,
    world: ReceiverOptions,
    channel_seed: Annotated[
        int | None,
        typer.Option(min=0, max=2**31 - 1, help="Simulate the channel of symbols as sent, with this seed."),
    ] = None,
    received: FromRadio = False,
    as_json: Json = False,
) -> None:
    """Decode deliveries, as a user does: OUT/0000.png, ... for all images of all files, and OUT/index.json.

    Symbols as received are decoded with the gain and noise power that came with them; symbols as sent as they
    are, at unit gain and the SNR of their condition, or after a simulated channel. A recording that holds no picture
    is refused.
    """
    from dekag.tasks.receive import ReceiveTask, receive_files

    task = ReceiveTask(bundles=world.bundle, channel_seed=channel_seed, received=received)
    with working("receive") as stage:
        index = receive_files(files, out, world=world.load(), task=task, on_stage=stage)
    if as_json:
        print_json(index)
        return
    images = [row for file in index["files"] for row in file["images"]]
    erased = sum(row["erased_uses"] for row in images)
    print(f"wrote {len(images)} images and index.json to {out}; {erased} uses erased")
