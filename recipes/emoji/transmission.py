"""The transmission side from nothing: `python recipes/emoji/transmission.py --run RUN`.

Latents of the edge, the codec and two others that stand for "without T-KA", CALA and its rivals at equal data and
steps, and the table of all over 45 conditions. The same command resumes. `--ship` copies codec and CALA into the
package.

```
RUN/aligned, unaligned, FOOD   latents of the edge: with the world's update, without, with a domain's
RUN/prior                      with the world's update, of prompts that it was not distilled on
RUN/codec     C  physics complete, trained at one condition        RUN/linear  the same, nothing trained
RUN/source    B  the same of what the unaligned edge draws         RUN/blind   A  a learned pair that is told nothing
RUN/cala@long, full@long                    CALA of C that ships, and all weights, of more latents, for as long
RUN/cala-0, cala-1, ..., RUN/METHOD-SEED    updates of C at equal steps; full-SEED is a whole codec
RUN/cala@source, full@source                updates of B for what the aligned edge draws
RUN/table                                   `dekag evaluate transmission` over all of them
RUN/table-grid, table-KIND                  the same over 120 conditions, with more judges, of other sources
```
"""

import argparse
import json
import math
import multiprocessing
import resource
import shutil
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from blind import BlindCodec
from progress import progress_bar

from dekag.alignment.config import CalaConfig
from dekag.alignment.transmission.train import ConditionRange, TransmissionData, fit, held_out_quality
from dekag.channel.misjudged import MisjudgedSnr
from dekag.channel.ofdm import OfdmChannel
from dekag.codec import CODECS, load_codec, save_codec
from dekag.evaluation.grid import CHANNELS, HELD_OUT, FlatChannel, Grid
from dekag.tasks import sweep
from dekag.tasks.align_transmission import (
    CALA_RANGE,
    TransmissionTask,
    align_transmission,
    edge_latents,
    transmission_training,
)
from dekag.tasks.config import CodecConfig
from dekag.tasks.material import DISTIL_SEEDS
from dekag.tasks.train_codec import measured_importance, train_codec
from dekag.training.loop import Progress
from dekag.training.run import Run
from dekag.types import Condition, Latent
from dekag.wire.files import staged
from dekag.world import World, load_world, shipped

CODECS["blind"] = BlindCodec

DRAWS = 10
"""Latents of each prompt."""
EQUAL_RANGE = replace(CALA_RANGE, snrs_db=tuple(snr_db for snr_db in CALA_RANGE.snrs_db if snr_db <= 20))
"""Conditions of everything that is trained for as many steps as others; what ships is trained for more."""
DOMAIN = "food"
KINDS = ("aligned", "unaligned", "prior", DOMAIN)
SEEDS = {"cala": 3, "shared_lora": 3, "full": 3}
"""Trainings of a method; of every other, one."""
OTHERS = ("hard_gate", "snr_groups", "snr_attention", "scaling", "appended", "content_gate")
CONDITIONS = {
    "awgn_64_0": ConditionRange(uses=(64,), snrs_db=(0.0,), blocks=(0,)),
    "awgn_512_20": ConditionRange(uses=(512,), snrs_db=(20.0,), blocks=(0,)),
    "rayleigh1_128_10": ConditionRange(uses=(128,), snrs_db=(10.0,), blocks=(1,)),
    "rayleigh8_256_5": ConditionRange(uses=(256,), snrs_db=(5.0,), blocks=(8,)),
}
"""Those of which each has a whole codec of its own."""
ROUNDS = {"codec": 3, "source": 3, "blind": 1, "linear": 1}
"""Rounds of training at most."""
LEAST_GAIN_DB = 0.1
"""Of latent SNR in validation; what a round brings less than is the last one."""
CELLS = Grid(
    uses=(64, 256, 512),
    snrs_db=(-5.0, 3.7, 8.7, 14.3, 20.0),
    channels=tuple(c for c in HELD_OUT.channels if c.name in ("awgn", "rayleigh-4", "rayleigh-1")),
)


@dataclass(frozen=True, kw_only=True)
class OfdmAtSpeed:
    """Implements `evaluation.grid.GridChannel`: TDL-C with pilots, which moves while an image is on the air."""

    kilometres_per_hour: int
    family: str = "ofdm"

    @property
    def name(self) -> str:
        """As `tdl-c 120 km/h`."""
        return f"tdl-c {self.kilometres_per_hour} km/h"

    @property
    def channel(self) -> OfdmChannel:
        """The channel."""
        return OfdmChannel(speed_m_s=self.kilometres_per_hour / 3.6)

    def condition(self, *, uses: int, snr_db: float) -> Condition:
        """Of one image; pilots are paid for out of the uses."""
        return self.channel.condition(uses=uses, snr_db=snr_db)


def misjudged(name: str, overrated_db: float, **fading: Any) -> FlatChannel:
    """A channel whose SNR both ends take for one that is so much higher."""
    channel = MisjudgedSnr(overrated_db=overrated_db)
    return FlatChannel(name=f"{name} taken for {overrated_db:+g} dB", family=name, channel=channel, **fading)


KNOWLEDGE = Grid(
    uses=(256,),
    snrs_db=(0.0, 8.7, 20.0),
    channels=(
        CHANNELS["awgn"],
        *(misjudged("awgn", error_db, rayleigh=False) for error_db in (-3, 3)),
        CHANNELS["rayleigh-4"],
        *(misjudged("rayleigh-4", error_db, blocks=4) for error_db in (-3, 3)),
        CHANNELS["estimated"],
        *(OfdmAtSpeed(kilometres_per_hour=speed) for speed in (0, 30, 120, 500)),
    ),
)
"""Channels of which less is known than all: a wrong SNR, pilots that are paid for, movement within an image."""
SHIPPED = {"codec": "codec", "cala@long": "cala"}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Lengths of everything, in steps of `batch` latents; codec_steps: of a round, whose learning rate falls to 0."""

    run: Path
    codec_steps: int
    long_steps: int
    steps: int
    ceiling_steps: int
    batch: int = 32
    precision: Literal["no", "bf16"] = "bf16"


@dataclass(frozen=True, kw_only=True)
class Update:
    """One training of a method: of which codec, on which latents, over which conditions."""

    method: str
    seed: int = 0
    codec: str = "codec"
    latents: str = "aligned"
    conditions: str | None = None
    long: bool = False

    @property
    def name(self) -> str:
        """The folder of its result."""
        usual = {
            "codec": self.codec,
            "aligned": self.latents,
            None: self.conditions,
            False: self.long and "long",
        }
        where = "".join(str(given) for given in usual.values() if given not in usual)
        return f"{self.method}@{where}" if where else f"{self.method}-{self.seed}"


def updates() -> list[Update]:
    """All trainings, those that the most depends on first."""
    seeds = range(max(SEEDS.values()))
    return [
        *(Update(method=method, long=True) for method in ("cala", "full")),
        *(Update(method=method, seed=0) for method in SEEDS),
        Update(method="cala", codec="source"),
        Update(method="full", codec="source"),
        Update(method="cala", latents=DOMAIN),
        *(Update(method=method) for method in OTHERS),
        *(Update(method="full", conditions=name) for name in CONDITIONS),
        *(Update(method=method, seed=seed) for seed in seeds[1:] for method in SEEDS if seed < SEEDS[method]),
    ]


def world_drawing(kind: str) -> World:
    """The world, whose edge has its own update, none, or that of a domain; `prior`: of other prompts."""
    world = load_world("emoji")
    if kind == "aligned":
        return world
    if kind == "prior":
        return replace(world, prompt_splits={**splits_of(world), "distill": world.prompts("prior")})
    if kind == "unaligned":
        return replace(world, updates={k: v for k, v in world.updates.items() if k != "generation"})
    domain = world.with_bundles([shipped(f"emoji/{kind}")], ["generation"])
    return replace(domain, prompt_splits=splits_of(world, f":{kind}"))


def splits_of(world: World, domain: str = "") -> dict[str, list[str]]:
    """The prompts that are needed here, of all or of a domain."""
    return {split: world.prompts(f"{split}{domain}") for split in ("distill", "validation", *world.reported)}


def latents_of(recipe: Recipe, *kinds: str) -> Latent:
    """What edges draw of their distillation prompts, drawn once each."""
    return torch.cat([_drawn(recipe, kind) for kind in kinds])


def _drawn(recipe: Recipe, kind: str) -> Latent:
    return edge_latents(world_drawing(kind), Run(resume=recipe.run / kind, on_stage=print), draws=DRAWS)


def validation_latents(recipe: Recipe, kind: str) -> Latent:
    """Two drawings of each validation prompt, drawn once."""
    world = world_drawing(kind)
    draw = sweep.drawer(world, recipe.run / kind / "validation")
    prompts = 2 * world.prompts("validation")
    return draw(prompts, [DISTIL_SEEDS // 2 + i for i in range(len(prompts))], on_stage=print)


def base(recipe: Recipe, name: str) -> None:
    """A codec of one condition, in rounds until validation no longer improves; `linear` is not trained at all."""
    out = recipe.run / name
    if out.exists():
        return
    torch.set_num_threads(1)
    best = -math.inf
    for number in range(ROUNDS[name]):
        place = recipe.run / f"{name}.{number}"
        if not place.exists():
            train_round(recipe, name, number, place)
        scores = read(recipe.run / f"{place.name}.json")["scores"]
        if not scores or scores[-1][1] < best + LEAST_GAIN_DB:
            break
        best = scores[-1][1]
    with staged(out) as folder:
        shutil.copytree(place, folder, dirs_exist_ok=True)


def train_round(recipe: Recipe, name: str, number: int, place: Path) -> None:
    """One round, from what the round before left."""
    kind = "unaligned" if name == "source" else "aligned"
    world, latents, held = world_drawing(kind), latents_of(recipe, kind), validation_latents(recipe, kind)
    start: Any = load_codec(recipe.run / f"{name}.{number - 1}") if number else None
    started = time.process_time()
    with told(place.name, recipe) as run:
        if name == "blind":
            scores = blind(recipe, world, latents, held, place, run, start)
        else:
            config = CodecConfig(
                steps=0 if name == "linear" else recipe.codec_steps,
                batch=recipe.batch,
                precision=recipe.precision,
                seed=5 + number,
            )
            scores = train_codec(world, latents, config, place, run, held=held, start=start).scores
    seconds = time.process_time() - started
    write(recipe.run / f"{place.name}.json", {"scores": scores, "core_seconds": seconds})


@contextmanager
def told(name: str, recipe: Recipe) -> Iterator[Run]:
    """A run that shows its steps and is resumed by its name."""
    with progress_bar(name, every=250) as on_step:

        def tell(_: str, progress: Progress) -> None:
            on_step(progress)

        yield Run(resume=recipe.run / f"{name}.resume", on_step=tell)


def blind(
    recipe: Recipe,
    world: World,
    latents: Latent,
    held: Latent,
    out: Path,
    run: Run,
    start: BlindCodec | None,
) -> tuple[tuple[int, float], ...]:
    """The learned pair that is told nothing, at the codec's own condition."""
    torch.manual_seed(5)
    channels, rows, cols = latents.shape[1:]
    uses, snr_db = int(world.nominal.uses), float(world.nominal.snr_db)
    codec = start or BlindCodec((channels, rows, cols), uses)
    data = TransmissionData(
        latents=latents,
        conditions=ConditionRange(uses=(uses,), snrs_db=(snr_db,), blocks=(0,)),
        batch=recipe.batch,
        importance=measured_importance(world.edge(), latents, 5),
    )
    found = fit(
        codec,
        data,
        transmission_training("full", recipe.codec_steps, 5, precision=recipe.precision),
        checkpoint=run.state_file("blind"),
        on_step=partial(run.on_step, "blind"),
        validation=held_out_quality(codec, data, held, seed=5),
    )
    with staged(out) as folder:
        save_codec(codec, folder)
    return found.scores


def update(recipe: Recipe, wanted: Update) -> None:
    """One update, or whole codec, of a method."""
    out = recipe.run / wanted.name
    if out.exists():
        return
    torch.set_num_threads(1)
    steps = recipe.ceiling_steps if wanted.conditions else recipe.steps
    steps = recipe.long_steps if wanted.long else steps
    conditions = CALA_RANGE if wanted.long else EQUAL_RANGE
    task = TransmissionTask(
        method=wanted.method,
        size=CalaConfig(),
        conditions=CONDITIONS[wanted.conditions] if wanted.conditions else conditions,
        training=transmission_training(wanted.method, steps, wanted.seed, precision=recipe.precision),
        batch=recipe.batch,
    )
    world = replace(world_drawing(wanted.latents), codec_model=recipe.run / wanted.codec)
    latents = latents_of(recipe, wanted.latents, *(["prior"] if wanted.long else []))
    with timed(recipe.run / f"{wanted.name}.json"), told(wanted.name, recipe) as run:
        align_transmission(world, latents, task, out, run)


def draw(recipe: Recipe, kind: str) -> None:
    """The latents of one edge, for training and for validation."""
    torch.set_num_threads(1)
    with timed(recipe.run / f"{kind}.json"):
        latents_of(recipe, kind)
        validation_latents(recipe, kind)


def tables(recipe: Recipe, *, lanes: int) -> None:
    """Updates of C over CELLS in `table`, those of B in `table-source`, a domain's in its own; KNOWLEDGE."""

    def of(
        out: str,
        world: World,
        codecs: Sequence[str],
        *,
        methods: Sequence[str] = ("no_ka",),
        draws: int = 0,
        grid: Grid = CELLS,
    ) -> None:
        config = sweep.SweepConfig(
            world=world,
            grid=grid,
            methods=tuple(methods),
            codecs=tuple(f"{name}={recipe.run / name}" for name in codecs),
            draws=draws,
        )
        with timed(recipe.run / f"{out}.json"):
            found = sweep.sweep(config, recipe.run / out, sweep.Processes(workers=lanes), on_stage=print)
        sweep.write(found, recipe.run / out)

    def with_codec(kind: str, codec: str) -> World:
        return replace(world_drawing(kind), codec_model=recipe.run / codec)

    all_ = [each for each in updates() if (recipe.run / each.name).exists()]
    own = [each.name for each in all_ if each.codec == "codec" and each.latents == "aligned"]
    bases = ("blind", "source", "linear")
    judged = with_codec("aligned", "codec")
    world = replace(judged, judge_models={})
    digital = ("digital", "jpeg", "webp", "avif")
    of("table", world, (*bases, *own), methods=("no_ka", *digital), draws=4096)
    other = replace(with_codec("aligned", "source"), judge_models={})
    of("table-source", other, [each.name for each in all_ if each.codec == "source"])
    domain = replace(with_codec(DOMAIN, "codec"), judge_models={})
    domains = ["cala-0", "cala@long", *(each.name for each in all_ if each.latents == DOMAIN)]
    of(f"table-{DOMAIN}", domain, domains)
    of("table-knowledge", world, ("linear", "cala@long"), grid=KNOWLEDGE)
    for out in ("table-content", "table-grid"):  # nothing is drawn or fitted again
        shutil.copytree(recipe.run / "table" / "latents", recipe.run / out / "latents", dirs_exist_ok=True)
    main = (*bases, "cala@long")
    judged = replace(judged, judge_models={**judged.judge_models, **judged.independent_judges})
    of("table-content", judged, main, methods=("no_ka", "digital"), draws=4096)
    of("table-grid", world, main, methods=("no_ka", "digital"), draws=4096, grid=HELD_OUT)


def ship(recipe: Recipe) -> None:
    """Put codec and CALA in the place of those that ship."""
    for name, target in SHIPPED.items():
        place = shipped(f"emoji/{target}")
        with staged(place) as folder:
            shutil.copytree(recipe.run / name, folder, dirs_exist_ok=True)


@contextmanager
def timed(path: Path) -> Iterator[None]:
    """Add the processor's time to what a file counts: an interrupted stage has the sum of its parts."""
    before = json.loads(path.read_text())["core_seconds"] if path.exists() else 0.0
    started = core_seconds()
    try:
        yield
    finally:
        write(path, {"core_seconds": before + core_seconds() - started})


def core_seconds() -> float:
    """Of this process and of those that it waited for."""
    both = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(used.ru_utime + used.ru_stime for used in both)


def write(path: Path, content: dict[str, object]) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n")


def read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def in_lanes(lanes: int, jobs: Sequence[partial[None]]) -> None:
    """Every job in a process of its own kind, so many at a time, the first ones first."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(lanes, mp_context=context) as pool:
        for done in [pool.submit(job) for job in jobs]:
            done.result()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--codec-steps", type=int, default=6000)
    parser.add_argument(
        "--long-steps", type=int, default=8000, help="of the CALA that ships and of one whole codec"
    )
    parser.add_argument("--steps", type=int, default=800, help="of everything that is compared")
    parser.add_argument("--ceiling-steps", type=int, default=400)
    parser.add_argument("--lanes", type=int, default=2, help="processes of one thread")
    parser.add_argument("--only", help="names of trainings, separated by commas, and no table")
    parser.add_argument("--ship", action="store_true", help="copy codec and CALA into the package")
    options = parser.parse_args()
    recipe = Recipe(
        run=options.run.absolute(),
        codec_steps=options.codec_steps,
        long_steps=options.long_steps,
        steps=options.steps,
        ceiling_steps=options.ceiling_steps,
    )
    only = options.only.split(",") if options.only else None
    in_lanes(options.lanes, [partial(draw, recipe, kind) for kind in KINDS])
    bases = [name for name in ("codec", "source", "blind", "linear") if only is None or name in only]
    in_lanes(options.lanes, [partial(base, recipe, name) for name in bases])
    chosen = [each for each in updates() if only is None or each.name in only]
    in_lanes(options.lanes, [partial(update, recipe, each) for each in chosen])
    if only is None:
        tables(recipe, lanes=options.lanes)
    if options.ship:
        ship(recipe)


if __name__ == "__main__":
    main()
