"""The demonstration: the system without and with alignment on held-out prompts, as a report and a picture."""

import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from dekag.alignment.transmission.bundles import apply_transmission
from dekag.bundle.bundle import Bundle, load_bundle
from dekag.channel import BlockFading
from dekag.engine.drawing import with_engine
from dekag.evaluation.generation import Drawn, GenerationScores, score_generation
from dekag.evaluation.grid import SMALL, Grid
from dekag.evaluation.judges import Judge
from dekag.evaluation.statistics import Mean, mean_interval
from dekag.evaluation.table import Cell, Table, Tabular
from dekag.evaluation.transmission import TransmissionScores, score_transmission, transmit
from dekag.generation.diffusers import DiffusersGenerator
from dekag.tasks.compare import (
    NO_KA,
    Drawing,
    check_bundles,
    compare,
    draw_references,
    drawing_methods,
    generation_table,
    scores_json,
)
from dekag.types import Codec, Condition, InputError
from dekag.wire.png import png_bytes
from dekag.world import Cloud, World

Pictures = Float[Tensor, "_ 3 _ _"]
Latents = Float[Tensor, "_ _ _ _"]
"""As Image and Latent, of any number: the splits differ in size."""
SHOWN_SNR_DB = 5.0
"""SNR of the transmission that the picture shows, at half the codec's highest rate."""


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """How much the demonstration measures, per split."""

    prompts: int = 48
    seeds: int = 2
    sent: int = 24
    """Images sent under every condition of the grid."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.prompts < 2 or self.seeds < 1 or self.sent < 2:
            raise InputError("a demonstration needs at least 2 prompts, 1 seed and 2 sent images a split")


@dataclass(frozen=True, kw_only=True)
class Demo(Tabular):
    """What the demonstration found; `seconds` by stage is all that differs between two runs."""

    world: str
    generation: dict[str, GenerationScores]
    transmission: TransmissionScores
    grid: Grid
    traffic: dict[str, Any]
    rows: list[tuple[str, Pictures]]
    columns: list[str]
    seconds: dict[str, float]
    config: DemoConfig

    def to_json(self) -> dict[str, Any]:
        """The contents of report.json."""
        return {
            "world": self.world,
            "generation": {split: scores_json(scores) for split, scores in self.generation.items()},
            "transmission": self.transmission.to_json(),
            "traffic": self.traffic,
            "config": asdict(self.config),
            "seed": self.config.seed,
            "versions": versions(),
            "seconds": {stage: round(value, 2) for stage, value in self.seconds.items()},
        }

    def tables(self) -> list[Table]:
        """Both alignments and the traffic."""
        generation = [generation_table(split, scores) for split, scores in self.generation.items()]
        means = {"bytes as PNG": "image_bytes", "bytes as prompt": "prompt_bytes"}
        traffic = {
            **{unit: [Cell(float(self.traffic[name]["mean"]), 0)] for unit, name in means.items()},
            "channel uses to the user": [Cell(self.traffic["channel_uses"])],
            **{
                f"bytes of the {kind} bundle, once": [Cell(size)]
                for kind, size in self.traffic["bundle_bytes"].items()
            },
        }
        amounts = Table(title="Traffic of one image", headings=("", ""), sections=(traffic,))
        return [*generation, *self.transmission.tables(), amounts]


def run_demo(
    world: World,
    config: DemoConfig,
    *,
    device: str | torch.device = "cpu",
    on_stage: Callable[[str], None] = print,
) -> Demo:
    """Measure a world without and with alignment on its reported prompts."""
    clock: dict[str, float] = {}
    with _stage("load", clock, on_stage):
        parts = _load(world, config, device)
    texts, drawing = parts.texts, Drawing(seeds=config.seeds, seed=config.seed)
    with _stage("draw", clock, on_stage):
        methods = drawing_methods(world, ["makd"])
        on_stage("cloud draws")
        references = draw_references(parts.cloud, texts, drawing.at_cloud)
        compared = compare(
            parts.edge, methods, texts, references, drawing, engine=world.engine, on_stage=on_stage
        )
    drawn = {split: of.drawn for split, of in compared.items()}
    latents = {split: of.latents["makd"][:: config.seeds] for split, of in compared.items()}
    with _stage("judge", clock, on_stage):
        generation = {s: score_generation(d, parts.judges, seed=config.seed) for s, d in drawn.items()}
    with _stage("transmit", clock, on_stage):
        sent = torch.cat([of_split[: config.sent] for of_split in latents.values()])
        conditions = {point.name: point.condition for point in parts.grid.points()}
        transmission = score_transmission(
            parts.codecs,
            BlockFading(),
            with_engine(parts.edge, world.engine),
            sent,
            conditions,
            seed=config.seed,
        )
    return Demo(
        world=world.name,
        generation=generation,
        transmission=transmission,
        traffic=_traffic(parts.edge.decode(sent), parts),
        grid=parts.grid,
        rows=_picture(drawn, latents, parts, config),
        columns=[text for prompts in texts.values() for text in prompts[:4]],
        seconds=clock,
        config=config,
    )


@dataclass(frozen=True, kw_only=True)
class _Parts:
    """What a demonstration needs of a world; whatever is missing is found before the first picture."""

    cloud: Cloud
    edge: DiffusersGenerator
    codecs: dict[str, Codec]
    judges: dict[str, Judge]
    texts: dict[str, list[str]]
    bundles: tuple[Bundle, Bundle]
    grid: Grid

    @property
    def shown(self) -> Condition:
        """The transmission that the picture shows."""
        return Condition(uses=shown_uses(self.grid), snr_db=SHOWN_SNR_DB)


def _load(world: World, config: DemoConfig, device: str | torch.device) -> _Parts:
    texts, judges = world.reported_prompts(config.prompts), world.judges(device=device)
    bundle = load_bundle(world.update("generation"))
    codec = world.codec(device=device)
    edge = world.fitting_edge(codec, device=device)
    check_bundles(edge, drawing_methods(world, ["makd"]))
    adapted, t_bundle = apply_transmission(codec, world.update("transmission"))
    return _Parts(
        cloud=world.reference(device=device),
        edge=edge,
        codecs={NO_KA: codec, "cala": adapted},
        judges=judges,
        texts=texts,
        bundles=(bundle, t_bundle),
        grid=SMALL.scaled(codec.max_uses),
    )


def shown_uses(grid: Grid) -> int:
    """The rate that pictures and curves show: the second highest of a grid."""
    return sorted(grid.uses)[-2:][0]


def summary(demo: Demo) -> list[str]:
    """The result in a few lines."""
    lines = []
    for split, scores in demo.generation.items():
        gain, closed = scores.gain_percent["makd"], scores.gap_closed.get("makd")
        gap = "" if closed is None else f", {100 * closed.mean:.0f} % of the gap closed"
        lines.append(
            f"G-KA on {split}: {gain.mean:+.1f} % consistency [{gain.low:+.1f}, {gain.high:+.1f}]{gap}"
        )
    gain = demo.transmission.gain_db["cala"]
    lines.append(f"T-KA over the grid: {gain.mean:+.2f} dB PSNR [{gain.low:+.2f}, {gain.high:+.2f}]")
    return lines


def curves(scores: TransmissionScores, grid: Grid) -> dict[str, tuple[list[float], list[Mean]]]:
    """PSNR against SNR for each codec at the picture's rate, over AWGN and fading."""
    names = {"no_ka": "without T-KA", "cala": "with T-KA"}
    lines: dict[str, tuple[list[float], list[Mean]]] = {}
    for channel, label in (("awgn", "AWGN"), ("rayleigh-4", "Rayleigh")):
        points = [p for p in grid.points() if p.channel == channel and p.uses == shown_uses(grid)]
        snrs = [point.snr_db for point in points]
        for codec, text in names.items():
            means = [scores.by_condition[point.name][codec] for point in points]
            lines[f"{label}, {text}"] = (snrs, means)
    return lines


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    packages = ("dekag", "torch", "diffusers", "transformers", "peft")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}


def _picture(
    drawn: dict[str, Drawn], latents: dict[str, Latents], parts: _Parts, config: DemoConfig
) -> list[tuple[str, Pictures]]:
    """Rows of the report's picture: the first four prompts of each split."""

    def pick(images: dict[str, Tensor]) -> Tensor:
        return torch.cat([part[: 4 * config.seeds : config.seeds] for part in images.values()])

    sent = torch.cat([part[:4] for part in latents.values()])

    def received(codec: Codec) -> Tensor:
        rng = torch.Generator().manual_seed(config.seed)
        return parts.edge.decode(transmit(codec, BlockFading(), sent, parts.shown, rng=rng))

    return [
        ("cloud image", pick({s: d.cloud for s, d in drawn.items()})),
        ("edge without KA", pick({s: d.by_method["no_ka"][0] for s, d in drawn.items()})),
        ("edge with KA", pick({s: d.by_method["makd"][0] for s, d in drawn.items()})),
        ("received without T-KA", received(parts.codecs["no_ka"])),
        ("received with T-KA", received(parts.codecs["cala"])),
    ]


def _traffic(images: Pictures, parts: _Parts) -> dict[str, Any]:
    sizes = torch.tensor([float(len(data)) for data in png_bytes(images)])
    lengths = torch.tensor([float(len(t.encode())) for split in parts.texts.values() for t in split])
    return {
        "image_bytes": mean_interval(sizes).to_json(),
        "prompt_bytes": mean_interval(lengths).to_json(),
        "bundle_bytes": {bundle.manifest.kind: bundle.size_bytes for bundle in parts.bundles},
        "channel_uses": int(parts.shown.uses),
    }


@contextmanager
def _stage(name: str, clock: dict[str, float], on_stage: Callable[[str], None]) -> Iterator[None]:
    on_stage(name)
    started = time.perf_counter()
    yield
    clock[name] = time.perf_counter() - started
