"""`dekag evaluate`: the experiments, one command each."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from annotated_types import Ge
from typing_extensions import Doc

from dekag.choices import (
    CHANNELS,
    CONSTELLATIONS,
    ENGINES,
    GRID_CHANNELS,
    GRIDS,
    SENDING_METHODS,
    Choice,
    require_package,
)
from dekag.cli import checks
from dekag.cli.checks import check_further, check_there
from dekag.cli.console import print_json, working
from dekag.cli.generated import Options, with_options
from dekag.cli.options import (
    AsEdge,
    BuyingWorldOptions,
    Device,
    EngineOption,
    Json,
    Seed,
    WorldOptions,
    spending,
)

if TYPE_CHECKING:
    from dekag.evaluation.grid import Grid
    from dekag.tasks.sweep import Engine as SweepEngine

app = typer.Typer(no_args_is_help=True, help="Measure consistency, accuracy or PSNR on held-out prompts.")


@dataclass(frozen=True, kw_only=True)
class ComparisonOptions(EngineOption):
    """What is compared."""

    methods: Annotated[str, Doc("makd, rivals by name separated by commas, or all that the world has.")] = (
        "makd"
    )
    prompts: Annotated[int, Ge(2), Doc("Held-out prompts of each split.")] = 100
    seeds: Annotated[int, Ge(1), Doc("Drawings of each prompt.")] = 2


@app.command("generation")
@with_options
def evaluate_generation(
    world: BuyingWorldOptions,
    comparison: ComparisonOptions,
    device: Device = "auto",
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Consistency of the edge's images with the cloud's on the world's reported splits.

    With several methods the edge draws twice: from noise of its own and from the cloud's noise; and the world's
    independent judges are asked as well.
    """
    names = comparison.methods.split(",")
    if names != ["all"]:
        known = world.entry()[1].methods
        Choice(noun="method", usual=("all", "makd", *known)).require(*(n for n in names if n != "no_ka"))
    from dekag.cli.tables import print_tables
    from dekag.tasks import compare
    from dekag.training.processes import device_of

    several = names != ["makd"]
    wanted = compare.GenerationEvaluation(
        methods=names,
        prompts=comparison.prompts,
        drawing=compare.Drawing(seeds=comparison.seeds, seed=seed),
        noises=("own", "shared") if several else ("own",),
        independent=several,
    )
    with working("evaluate generation") as stage, spending(world) as account:
        loaded = comparison.put_on(world.buying(account))
        report = compare.evaluate(loaded, wanted, device=device_of(device), on_stage=stage)
    if as_json:
        print_json(report.to_json())
        return
    print_tables(report)


@dataclass(frozen=True, kw_only=True)
class SweepOptions:
    """What is measured over a grid of rates, SNRs and channels."""

    methods: Annotated[str, Doc("Of no_ka, cala, digital, jpeg, webp, avif, separated by commas.")] = (
        "no_ka,cala"
    )
    further: Annotated[
        tuple[str, ...],
        Doc("NAME=FOLDER: a further codec or bundle; FOLDER alone: the world's codec; repeatable."),
    ] = ()
    grid: Annotated[str, Doc("held-out, full or small.")] = "held-out"
    uses: Annotated[str | None, Doc("Instead of the grid's: channel uses, as 64,128.")] = None
    snrs: Annotated[str | None, Doc("Instead of the grid's: SNRs in dB, as 0,8.7.")] = None
    channels: Annotated[str | None, Doc("Instead of the grid's: awgn, rayleigh-1, tdl-c, ...")] = None
    constellations: Annotated[
        str | None, Doc("For every codec: qpsk, 16qam, 64qam, 256qam, 1024qam, analogue.")
    ] = None
    images: Annotated[int, Ge(2), Doc("Held-out pictures of each split.")] = 48
    draws: Annotated[int, Ge(0), Doc("Latents for the bound and the digital methods; 0: no bound.")] = 4096
    lpips: Annotated[bool, Doc("Measure LPIPS as well.")] = False
    thresholds: Annotated[Path | None, Doc("Block error rates of `python -m dekag.baseline`.")] = None

    def check(self) -> None:
        """Raise InputError for a name that there is nothing of, or a file, folder or package that is not there."""
        methods = self.methods.split(",") if self.methods else []
        SENDING_METHODS.require(*methods)
        if "digital" in methods:
            reason = "the digital baseline needs constriction"
            require_package("constriction", reason=reason, extra="baseline")
        GRIDS.require(self.grid)
        if self.channels is not None:
            GRID_CHANNELS.require(*self.channels.split(","), beside=CHANNELS.known)
        if self.constellations is not None:
            CONSTELLATIONS.require(*self.constellations.split(","))
        for text in self.further:
            check_further(text)
        check_there(self.thresholds, "thresholds", right="give the file that python -m dekag.baseline wrote")
        if self.lpips:
            require_package("lpips", reason="LPIPS comes with one more package", extra="lpips")

    def load(self, world: WorldOptions, *, device: str, seed: int) -> Any:
        """What is measured, a `dekag.tasks.sweep.SweepConfig`; a folder without a name is the world's codec."""
        from dekag.tasks import sweep
        from dekag.training.processes import device_of

        folders = [text for text in self.further if "=" not in text]
        loaded = replace(world, codec=folders[-1] if folders else None).load()
        grid = self._grid()
        return sweep.SweepConfig(
            world=loaded,
            grid=grid if self.uses else grid.scaled(loaded.codec().max_uses),
            methods=tuple(self.methods.split(",")) if self.methods else (),
            codecs=tuple(text for text in self.further if "=" in text),
            images=self.images,
            draws=self.draws,
            seed=seed,
            lpips=self.lpips,
            thresholds=self.thresholds,
            device=str(device_of(device)),
        )

    def _grid(self) -> "Grid":
        """The grid of that name, with what the user gave in place of its own."""
        from dekag.evaluation.grid import read_grid

        return read_grid(
            self.grid,
            uses=self.uses,
            snrs=self.snrs,
            channels=self.channels,
            constellations=self.constellations,
        )


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """Where the cells of a sweep are computed."""

    engine: Annotated[str, Doc("inline, processes, ray or slurm.")] = "processes"
    workers: Annotated[
        int | None, Ge(1), Doc("Processes, tasks or jobs at a time; as many as cores, on a GPU one.")
    ] = None
    ray_address: Annotated[str, Doc("Of a Ray cluster that runs.")] = "auto"
    slurm_partition: Annotated[str | None, Doc("Default: the cluster's.")] = None
    slurm_minutes: Annotated[int, Ge(1), Doc("Limit of a job.")] = 240

    def check(self) -> None:
        """Raise InputError for an engine that is unknown, or whose package is not installed."""
        ENGINES.require(self.engine)
        if package := {"ray": "ray", "slurm": "submitit"}.get(self.engine):
            require_package(package, reason=f"this engine needs {package}", extra="sweep")

    def load(self, folder: Path, *, device: str) -> "SweepEngine":
        """The engine, which keeps its own files in a folder; on a GPU one process at a time unless told otherwise."""
        from dekag.tasks import sweep

        return sweep.engine_named(
            self.engine,
            workers=self.workers or (sweep.usable_cores() if device == "cpu" else 1),
            folder=folder,
            minutes=self.slurm_minutes,
            partition=self.slurm_partition,
            address=self.ray_address,
        )


@app.command("transmission")
@with_options
def evaluate_transmission(
    config: Annotated[SweepOptions, Options(names={"further": "codec"})],
    world: Annotated[
        WorldOptions,
        Options(only=("world", "edge", "judge", "bundle", "variant", "pipeline_config", "preset")),
    ],
    engine: EngineOptions,
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            callback=checks.folder,
            help="Folder of the results; an interrupted run goes on from what it holds.",
        ),
    ] = Path("transmission"),
    device: Device = "cpu",
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Every method over a grid of rates, SNRs and channels: tables, figures, and the values of every image."""
    from dekag.tasks import sweep

    measured = config.load(world, device=device, seed=seed)
    computed_by = engine.load(out.absolute() / "jobs", device=measured.device)
    with working("evaluate transmission") as stage:
        outcome = sweep.sweep(measured, out, computed_by, on_stage=stage)
        stage("write")
        summary, written = sweep.write(outcome, out)
    if as_json:
        print_json(summary.to_json())
        return
    from dekag.cli.tables import print_tables, sweep_lines

    print_tables(summary)
    for line in sweep_lines(summary):
        print(line)
    print("wrote " + ", ".join(str(path) for path in written))


@app.command("accuracy")
@with_options
def evaluate_accuracy(
    world: Annotated[
        WorldOptions, Options(only=("world", "edge", "judge", "variant", "pipeline_config", "preset"))
    ],
    model: AsEdge = None,
    prompts: Annotated[int, typer.Option(min=100, help="Prompts, each with a concept of its own.")] = 113,
    sheet: Annotated[
        Path | None,
        typer.Option(
            callback=checks.picture, help="Also write a contact sheet of 64 samples here, a PNG file."
        ),
    ] = None,
    device: Device = "auto",
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Concept accuracy: how often the prompt is the nearest of 100 to the image, under the world's CLIP judge."""
    from dekag.tasks.evaluate_accuracy import AccuracyTask
    from dekag.tasks.evaluate_accuracy import evaluate_accuracy as evaluate
    from dekag.tasks.generate import model_name
    from dekag.training.processes import device_of

    loaded = replace(world, edge=world.edge or model).load()
    task = AccuracyTask(prompts=prompts, sheet=sheet, seed=seed)
    with working("evaluate accuracy") as stage:
        mean = evaluate(loaded, task, device=device_of(device), on_stage=stage)
    name = model_name(loaded)
    if as_json:
        print_json({"model": name, "accuracy": mean.to_json()})
        return
    print(f"{name}: {100 * mean.mean:.1f} % [{100 * mean.low:.1f}, {100 * mean.high:.1f}], n {mean.n}")
