"""A sweep: latents drawn once, every method under every condition, and files that an interrupted run goes on from.

```
OUT/latents/   what the edge drew, and what was fitted to it       OUT/cells/  one file for each finished cell
OUT/results.jsonl, results.parquet, transmission*.png, summary.json            written once all cells are there
```
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from dekag.alignment.generation.bundles import apply_generation, pipeline_digest
from dekag.baseline import Thresholds, read_thresholds, shipped_thresholds
from dekag.baseline.choice import waterfalls_at
from dekag.baseline.pictures import FORMATS
from dekag.channel import BlockFading
from dekag.choices import SENDING_METHODS
from dekag.codec.constellation import Constellation
from dekag.evaluation.bounds import Bounds, Spectrum, bound
from dekag.evaluation.generation import EDGE_SEED
from dekag.evaluation.grid import Grid, Point
from dekag.generation.diffusers import DiffusersGenerator
from dekag.tasks.material import DISTIL_SEEDS
from dekag.tasks.sweep.bench import (
    BenchSpec,
    bench_digest,
    importance,
    load_bench,
    load_lpips,
    weighted_power,
)
from dekag.tasks.sweep.cells import Cell, Result, channel_seed, path_of, read_result, write_result
from dekag.tasks.sweep.draws import (
    Draw,
    Drawer,
    Spectra,
    fitted_pictures,
    fitted_source,
    keep_latents,
    spectra,
)
from dekag.tasks.sweep.engines import Engine, one_thread
from dekag.tasks.sweep.methods import (
    CodecMethod,
    LatentDigital,
    Method,
    PictureDigital,
    check_codec,
    codec_method,
    further_codec,
)
from dekag.tasks.sweep.results import BoundRow, Outcome, PointBounds, bound_row
from dekag.training.run import OnStage
from dekag.types import InputError, Latent
from dekag.world import World, locate

SHIPPED = ("no_ka", "cala")
DIGITAL = ("digital", *FORMATS)


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """What is measured.

    methods: of no_ka, cala, digital, jpeg, webp and avif. codecs: further ones, each as NAME=DIRECTORY.
    images: held-out pictures of each reported split.
    draws: latents of the distillation prompts, for the bound and the digital methods; 0 leaves the bound out.
    thresholds: file of measured block error rates, the shipped one if None.
    Raises InputError for an unknown method, or digital methods without draws.
    """

    world: World
    grid: Grid
    methods: tuple[str, ...] = SHIPPED
    codecs: tuple[str, ...] = ()
    images: int = 48
    draws: int = 4096
    seed: int = 0
    lpips: bool = False
    thresholds: Path | None = None
    device: str = "cpu"

    def __post_init__(self) -> None:
        names = self.names
        SENDING_METHODS.require(*self.methods)
        if not names or len(set(names)) != len(names):
            raise InputError(f"methods need distinct names, at least one, got {', '.join(names)}")
        if "bound" in names:
            raise InputError("no method can be called bound")
        if self.images < 2 or self.draws < 0:
            raise InputError("a sweep needs at least 2 images of each split and no negative draws")
        if self.draws < 8 and self.digital:
            raise InputError("digital methods are fitted to at least 8 draws of the distillation prompts")

    @property
    def names(self) -> list[str]:
        """Names of all methods, further codecs last."""
        return [*self.methods, *(text.partition("=")[0] for text in self.codecs)]

    @property
    def digital(self) -> tuple[str, ...]:
        """The digital methods among them."""
        return tuple(name for name in self.methods if name in DIGITAL)


@dataclass(frozen=True, kw_only=True)
class Work:
    """Computes one cell; this travels to the process that does it."""

    spec: BenchSpec
    methods: tuple[Method, ...]
    folder: Path

    def __call__(self, cell: Cell) -> str:
        """Send, measure, write the result, and return the cell's key."""
        with one_thread(), torch.no_grad():
            bench = load_bench(self.spec)
            (method,) = (method for method in self.methods if method.name == cell.method)
            rng = torch.Generator().manual_seed(cell.channel_seed)
            arrival = method.send(bench, cell.point, cell.constellation, rng=rng)
            values = {**bench.measure(arrival.latents, arrival.images), **arrival.further}
        write_result(self.folder, cell, {name: value.tolist() for name, value in values.items()})
        return cell.key


@dataclass(frozen=True, kw_only=True, eq=False)
class _Plan:
    """Everything that is known before the first cell is computed."""

    cells: list[Cell]
    work: Work
    prompts: list[tuple[str, str]]
    bounds: list[BoundRow]


def sweep(config: SweepConfig, out: Path, engine: Engine, *, on_stage: OnStage) -> Outcome:
    """Compute what `out` lacks of the sweep's cells; returns all of them with the bounds.

    Raises InputError for wrong input, before anything is computed as far as that can be told, and for a
    damaged file of an earlier run.
    """
    points = config.grid.points()
    thresholds = _thresholds(config, points)
    if config.lpips:
        load_lpips(config.device)
    plan = _plan(config, points, thresholds, out.absolute(), engine, on_stage)
    folder, images = plan.work.folder, len(plan.prompts)
    missing = [cell for cell in plan.cells if not path_of(folder, cell).exists()]
    known = {cell.key for cell in missing}
    cached = [read_result(folder, cell, images=images) for cell in plan.cells if cell.key not in known]
    on_stage(f"{len(missing)} cells to compute, {len(cached)} are there")
    step = max(1, len(missing) // 20)
    for number, _ in enumerate(engine(plan.work, missing), start=1):
        if number % step == 0 or number == len(missing):
            on_stage(f"{number} of {len(missing)} cells")
    fresh = {cell.key: read_result(folder, cell, images=images) for cell in missing}
    whole: dict[str, Result] = {**{result.cell.key: result for result in cached}, **fresh}
    return Outcome(
        world=config.world.name,
        results=[whole[cell.key] for cell in plan.cells],
        bounds=plan.bounds,
        prompts=plan.prompts,
        draws=config.draws,
        computed=len(missing),
    )


def _plan(
    config: SweepConfig,
    points: list[Point],
    thresholds: Thresholds,
    out: Path,
    engine: Engine,
    on_stage: OnStage,
) -> _Plan:
    world = config.world
    weight = importance(world)
    codecs = _codecs(config)
    on_stage("load")
    draw = drawer(config.world, out / "latents", device=config.device)
    edge, folder = draw.edge, draw.folder
    # before anything is drawn
    noise = torch.randn(1, *edge.latent_shape, generator=torch.Generator().manual_seed(config.seed))
    for method in codecs:
        check_codec(method, noise, points, config.grid.constellations)
    if world.judge_models:
        world.judges(device=config.device)
    drawn = partial(draw, on_stage=on_stage, engine=engine)
    prompts, sent = _held_out(config, drawn)
    distilled = _distilled(config, drawn) if config.draws else None
    with one_thread():
        methods = _methods(config, codecs, distilled, weight, edge, folder)
    path, digest = keep_latents(sent, folder)
    spec = BenchSpec(world=world, latents=path, device=config.device, lpips=config.lpips)
    bench = bench_digest(spec, edge.pipeline.vae)
    cells = _cells(config, points, methods, thresholds, latents=digest, bench=bench)
    bounds: list[BoundRow] = []
    if distilled is not None and len(distilled) > 8:
        on_stage(f"bound from {len(distilled)} latents")
        power = float(weighted_power(sent, weight))
        with one_thread():
            known = spectra(distilled, weight)
            constellation = codecs[0].constellation if codecs else None
            bounds = [
                _bound_row(point, known, power, config.seed, constellation)
                for point in points
                if isinstance(point.medium, BlockFading)  # whose bound it is
            ]
    work = Work(spec=spec, methods=tuple(methods), folder=out / "cells")
    return _Plan(cells=cells, work=work, prompts=prompts, bounds=bounds)


def drawer(world: World, folder: Path, *, device: str = "cpu") -> Drawer:
    """What draws with the world's update, where there is one, and keeps the latents in a folder."""
    edge, bundle_id = world.edge(device=device), ""
    sampling = edge.sampling
    if "generation" in world.updates:
        aligned, bundle = apply_generation(edge, world.update("generation"), merge=True)
        sampling, bundle_id = aligned.sampling, bundle.id
    return Drawer(
        edge=edge,
        sampling=sampling,
        model=pipeline_digest(edge),
        bundle=bundle_id,
        folder=folder,
        draw=Draw(world=world, device=device),
    )


def _methods(
    config: SweepConfig,
    codecs: list[CodecMethod],
    distilled: Latent | None,
    weight: Tensor,
    edge: DiffusersGenerator,
    folder: Path,
) -> list[Method]:
    """All methods in the order that they were asked for; digital ones are fitted to the distilled latents."""
    made: dict[str, Method] = {method.name: method for method in codecs}
    for name in config.digital:
        assert distilled is not None
        if name == "digital":
            made[name] = LatentDigital(name=name, source=fitted_source(distilled, weight, folder))
        else:
            made[name] = PictureDigital(
                name=name, source=fitted_pictures(name, distilled, edge.decode, folder)
            )
    return [made[name] for name in config.names]


def _codecs(config: SweepConfig) -> list[CodecMethod]:
    world = config.world
    if world.codec_model is None or not isinstance(world.codec_model, str | Path):
        raise InputError(
            f"a sweep needs the codec of the world {world.name} in a folder: its workers load it from there"
        )
    base = Path(locate(world.codec_model, "codec")).absolute()
    shipped = {
        "no_ka": lambda: codec_method("no_ka", base),
        "cala": lambda: codec_method("cala", base, world.update("transmission").absolute()),
    }
    named = [shipped[name]() for name in config.methods if name in shipped]
    return [*named, *(further_codec(text, base) for text in config.codecs)]


def _held_out(config: SweepConfig, draw: Callable[..., Latent]) -> tuple[list[tuple[str, str]], Latent]:
    """Split and prompt of each image, and its latent."""
    texts = config.world.reported_prompts(config.images)
    prompts = [(split, text) for split, own in texts.items() for text in own]
    seeds = [EDGE_SEED + config.seed + number for number in range(len(prompts))]
    return prompts, draw([text for _, text in prompts], seeds)


def _distilled(config: SweepConfig, draw: Callable[..., Latent]) -> Latent:
    known = config.world.prompts("distill")
    prompts = [known[number % len(known)] for number in range(config.draws)]
    return draw(prompts, [DISTIL_SEEDS + config.seed + n for n in range(config.draws)])


def _thresholds(config: SweepConfig, points: list[Point]) -> Thresholds:
    """Measured block error rates; InputError if a digital method needs some that were not measured."""
    table = shipped_thresholds() if config.thresholds is None else read_thresholds(config.thresholds)
    if config.digital:
        try:
            waterfalls_at(table, min(int(point.condition.payload) for point in points))
        except InputError as error:
            raise InputError(f"{error}; or leave the digital methods out") from error
    return table


def _cells(
    config: SweepConfig,
    points: list[Point],
    methods: list[Method],
    thresholds: Thresholds,
    *,
    latents: str,
    bench: str,
) -> list[Cell]:
    """Method by method, so that a process meets what it has in memory."""
    wanted = config.grid.constellations
    digests = {method.name: method.digest for method in methods}
    return [
        Cell(
            point=point,
            method=method.name,
            label=f"{method.name} {scheme}" if len(schemes) > 1 else method.name,
            method_digest=digests[method.name],
            constellation=scheme,
            latents=latents,
            bench=bench,
            channel_seed=channel_seed(config.seed, point),
        )
        for method in methods
        for point in points
        for schemes in [method.schemes(point, wanted, thresholds)]
        for scheme in schemes
    ]


def _bound_row(
    point: Point, known: Spectra, power: float, seed: int, constellation: Constellation | None
) -> BoundRow:
    def of(spectrum: Spectrum, points: Constellation | None = None) -> Bounds:
        rng = torch.Generator().manual_seed(seed)
        return bound(spectrum, point.condition, rng=rng, constellation=points)

    found = PointBounds(
        measured=of(known.measured),
        held_out=of(known.held_out),
        halves=(of(known.halves[0]), of(known.halves[1])),
        finite=of(known.held_out, constellation),
    )
    return bound_row(point, found, power=power, draws=known.draws)
