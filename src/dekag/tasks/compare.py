"""Methods compared on held-out prompts: who draws, and what each of them drew."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from dekag.alignment.generation.bundles import apply_generation, pipeline_digest, tokenizer_digest
from dekag.bundle.bundle import load_bundle
from dekag.data.bought import EndpointCloud
from dekag.data.pictures import PictureSet
from dekag.engine.drawing import TORCH, EngineChoice, with_engine
from dekag.evaluation.generation import (
    CEILING_SEED,
    EDGE_SEED,
    Drawn,
    GenerationScores,
    score_generation,
)
from dekag.evaluation.table import Cell, Table, Tabular
from dekag.generation.diffusers import DiffusersGenerator
from dekag.training.run import OnStage
from dekag.types import Image, InputError
from dekag.world import Cloud, DrawingMethod, World, locate

Noise = Literal["own", "shared"]
"""Whether the edge draws from noise of its own or from the cloud's, mapped to its latents."""
NO_KA = "no_ka"
"""The edge as it is."""
METHOD_NAMES = {
    "floor": "floor (other prompts)",
    "no_ka": "edge without KA",
    "words": "words by hand",
    "textual_inversion": "textual inversion",
    "lora": "LoRA alone",
    "dreambooth": "DreamBooth",
    "lokr": "LoKr",
    "makd_short": "MAKD, as short as rivals",
    "makd": "MAKD as shipped",
    "makd_few_steps": "MAKD as shipped, few steps",
    "ceiling": "ceiling (cloud, other seed)",
}
"""What the methods are called in a table, in its order; others follow under their own names."""
_PARTS = ("unet", "transformer", "text_encoder", "text_encoder_2", "text_encoder_3")


def drawing_methods(world: World, names: Sequence[str]) -> dict[str, DrawingMethod]:
    """Ways to draw at a world's edge by name, `all` for all that it has; `makd` is the world's own update.

    Raises InputError for an unknown method.
    """
    if NO_KA in names:
        raise InputError(f"{NO_KA} is always compared; name the methods beside it")
    known = {"makd": DrawingMethod(bundles=(world.update("generation"),)), **world.methods}
    if tuple(names) == ("all",):
        return {NO_KA: DrawingMethod(), **known}
    if unknown := [name for name in names if name not in known]:
        raise InputError(f"unknown method {unknown[0]!r}; known are all, {', '.join(known)}")
    return {NO_KA: DrawingMethod(), **{name: known[name] for name in names}}


def check_bundles(edge: DiffusersGenerator, methods: Mapping[str, DrawingMethod]) -> None:
    """Raise InputError, before anything is drawn, if an edge cannot draw with a bundle of some methods."""
    base = pipeline_digest(edge), tokenizer_digest(edge)
    for name, method in methods.items():
        for source in method.bundles:
            bundle = load_bundle(locate(source, "bundle"))
            bundle.require_kind("generation")
            bundle.require_base(*base)
            if method.few_steps and not bundle.few_step():
                raise InputError(
                    f"{name} draws in few steps, and bundle {bundle.id[:12]} has no update for them"
                )


@dataclass(frozen=True, kw_only=True)
class Reference:
    """What the cloud drew for the prompts of a split, and drew again with other seeds, where it can draw."""

    cloud: Image
    ceiling: Image | None


def draw_references(
    cloud: Cloud, texts: Mapping[str, Sequence[str]], seeds: Sequence[int]
) -> dict[str, Reference]:
    """The cloud's drawings of every split; of a cloud that is a set of pictures, there is no second drawing."""
    other = [CEILING_SEED + seed for seed in seeds]
    again = not isinstance(cloud, PictureSet)
    if isinstance(cloud, EndpointCloud):
        to_buy = [_to_buy(cloud, prompts, part) for prompts in texts.values() for part in (seeds, other)]
        cloud.endpoint.account.require(sum(to_buy))
    return {
        split: Reference(
            cloud=_images(cloud, prompts, seeds), ceiling=_images(cloud, prompts, other) if again else None
        )
        for split, prompts in texts.items()
    }


@dataclass(frozen=True, kw_only=True)
class Compared:
    """What was drawn for some prompts; latents are those of each method's first bundle."""

    drawn: Drawn
    latents: Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """How every method draws: `seeds` pictures of each prompt, counted from `seed`.

    noise_map: of the cloud's initial noise; with it every method, that without KA too, starts from the cloud's noise.
    """

    seeds: int = 2
    seed: int = 0
    noise_map: Tensor | None = None

    @property
    def at_cloud(self) -> list[int]:
        """The cloud's seeds."""
        return [self.seed + i for i in range(self.seeds)]

    @property
    def at_edge(self) -> list[int]:
        """The edge's seeds: its own, or the cloud's where the noise is shared."""
        return self.at_cloud if self.noise_map is not None else [EDGE_SEED + i for i in self.at_cloud]


def compare(
    edge: DiffusersGenerator,
    methods: Mapping[str, DrawingMethod],
    texts: Mapping[str, Sequence[str]],
    references: Mapping[str, Reference],
    drawing: Drawing,
    *,
    engine: EngineChoice = TORCH,
    on_stage: OnStage = lambda _: None,
) -> dict[str, Compared]:
    """Draw every split's prompts with every method at the edge, beside what the cloud drew for them."""
    pictures: dict[str, dict[str, list[Image]]] = {s: {} for s in texts}
    latents: dict[str, dict[str, Tensor]] = {s: {} for s in texts}
    for name, method in methods.items():
        for bundle in method.bundles or (None,):
            on_stage(f"edge draws, {name}")
            generator = with_engine(edge if bundle is None else _aligned(edge, bundle, method), engine)
            for split, prompts in texts.items():
                drawn = _drawn(replace(generator, noise_map=drawing.noise_map), prompts, method, drawing)
                latents[split].setdefault(name, drawn)
                pictures[split].setdefault(name, []).append(generator.decode(drawn).cpu())
    return {
        split: Compared(
            drawn=Drawn(
                prompts=torch.arange(len(prompts)).repeat_interleave(drawing.seeds),
                cloud=references[split].cloud,
                ceiling=references[split].ceiling,
                by_method=pictures[split],
            ),
            latents=latents[split],
        )
        for split, prompts in texts.items()
    }


def _drawn(
    generator: DiffusersGenerator, prompts: Sequence[str], method: DrawingMethod, drawing: Drawing
) -> Tensor:
    """Latents of every prompt with every seed, prompt by prompt."""
    texts = [text + method.words for text in prompts for _ in drawing.at_edge]
    return generator(texts, seeds=drawing.at_edge * len(prompts))


def noise_map(bundle: Path) -> Tensor:
    """The map of shared noise that a bundle carries. Raises InputError if it has none."""
    found = load_bundle(bundle).noise_map()
    if found is None:
        raise InputError(
            f"bundle {bundle} has no noise map: it was made without the cloud that drew its images"
        )
    return found


def bundle_bytes(methods: Mapping[str, DrawingMethod]) -> dict[str, int]:
    """Bytes of the low-rank and metaword files of each method's first bundle that it draws with."""

    def size(method: DrawingMethod) -> int:
        if not method.bundles:
            return len(method.words)
        return load_bundle(locate(method.bundles[0], "bundle")).drawn_bytes(few_steps=method.few_steps)

    return {name: size(method) for name, method in methods.items()}


def weight_bytes(folder: Path) -> int | None:
    """Bytes of a pipeline's denoiser and text encoders as they are stored: what an update adds to; None if not here."""
    sizes = [file.stat().st_size for part in _PARTS for file in folder.glob(f"{part}/*.safetensors")]
    return sum(sizes) if sizes else None


@dataclass(frozen=True, kw_only=True)
class Report(Tabular):
    """Scores by noise and split, and what every method sends: bytes of its bundle as a packed file.

    edge_bytes: of the edge's weights, None if they are not in a folder here.
    """

    world: str
    scores: Mapping[Noise, Mapping[str, GenerationScores]]
    update_bytes: Mapping[str, int]
    edge_bytes: int | None

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "world": self.world,
            **{
                noise: {split: scores_json(s) for split, s in by_split.items()}
                for noise, by_split in self.scores.items()
            },
            "update_bytes": dict(self.update_bytes),
            "edge_bytes": self.edge_bytes,
        }

    def tables(self) -> list[Table]:
        """A table for each split and kind of noise."""
        return [
            generation_table(f"{split}, {noise} noise", scores, self.update_bytes)
            for noise, by_split in self.scores.items()
            for split, scores in by_split.items()
        ]


def generation_table(
    title: str, scores: GenerationScores, update_bytes: Mapping[str, int] | None = None
) -> Table:
    """Consistency with the cloud by method and judge, and which share of the gap to the ceiling that closes."""
    judges = list(scores.consistency[NO_KA])
    methods = [method for method in METHOD_NAMES if method in scores.consistency]
    rows: dict[str, list[Cell | None]] = {}
    for method in dict.fromkeys([*methods, *scores.consistency]):
        gain, closed = scores.gain_percent.get(method), scores.gap_closed.get(method)
        row = [Cell(scores.consistency[method][judge]) for judge in judges]
        size = None if update_bytes is None or gain is None else update_bytes.get(method)
        rows[METHOD_NAMES.get(method, method)] = [
            *row,
            None if gain is None else Cell(gain, 1),
            None if closed is None else Cell(closed, 2),
            *([] if update_bytes is None else [None if size is None else Cell(size)]),
        ]
    sizes = [] if update_bytes is None else ["bytes"]
    return Table(
        title=f"Consistency with the cloud: {title}",
        headings=("", *judges, "gain %", "gap closed", *sizes),
        sections=(rows,),
    )


def scores_json(scores: GenerationScores) -> dict[str, Any]:
    """Scores of one split as JSON values, method by method; what needs a ceiling is absent where there is none."""
    rows: dict[str, Any] = {}
    for method, by_judge in scores.consistency.items():
        rows[method] = {"consistency": {judge: mean.to_json() for judge, mean in by_judge.items()}}
        if method in scores.gain_percent:
            rows[method]["gain_percent"] = scores.gain_percent[method].to_json()
        if method in scores.gap_closed:
            rows[method] |= {
                "gap_closed": scores.gap_closed[method].to_json(),
                "way_by_judge": {judge: mean.to_json() for judge, mean in scores.by_judge[method].items()},
                "way_by_training_seed": scores.by_training_seed[method],
            }
        if method in scores.lead:
            rows[method]["makd_is_ahead_by"] = scores.lead[method].to_json()
    return rows


@dataclass(frozen=True, kw_only=True)
class GenerationEvaluation:
    """What is measured: methods by name, so many prompts of each reported split, drawn with so many seeds.

    independent: ask the world's independent judges as well. With shared noise only the first training seed of each
    method draws.
    """

    methods: Sequence[str] = ("makd",)
    prompts: int = 100
    drawing: Drawing = field(default_factory=Drawing)
    noises: Sequence[Noise] = ("own",)
    independent: bool = False


def evaluate(
    world: World,
    wanted: GenerationEvaluation,
    *,
    device: str | torch.device = "cpu",
    on_stage: OnStage = lambda _: None,
) -> Report:
    """Consistency of some methods on the world's reported splits. What is missing is found before anything is drawn."""
    methods = drawing_methods(world, wanted.methods)
    texts = world.reported_prompts(wanted.prompts)
    shared = noise_map(world.update("generation")) if "shared" in wanted.noises else None
    judges = world.judges(independent=wanted.independent, device=device)
    edge = world.edge(device=device)
    check_bundles(edge, methods)
    on_stage("cloud draws")
    references = draw_references(world.reference(device=device), texts, wanted.drawing.at_cloud)
    scores: dict[Noise, dict[str, GenerationScores]] = {}
    for noise in wanted.noises:
        drawing = wanted.drawing if noise == "own" else replace(wanted.drawing, noise_map=shared)
        drawn_with = methods if noise == "own" else _first_seeds(methods)
        found = compare(edge, drawn_with, texts, references, drawing, engine=world.engine, on_stage=on_stage)
        on_stage("judge")
        seed = wanted.drawing.seed
        scores[noise] = {s: score_generation(c.drawn, judges, seed=seed) for s, c in found.items()}
    source = world.edge_model.source
    folder = locate(source, "pipeline") if isinstance(source, str | Path) else ""
    return Report(
        world=world.name,
        scores=scores,
        update_bytes=bundle_bytes(methods),
        edge_bytes=weight_bytes(Path(folder)) if folder else None,
    )


def _first_seeds(methods: Mapping[str, DrawingMethod]) -> dict[str, DrawingMethod]:
    """The methods with one training seed each."""
    return {name: replace(method, bundles=method.bundles[:1]) for name, method in methods.items()}


def _to_buy(cloud: EndpointCloud, prompts: Sequence[str], seeds: Sequence[int]) -> int:
    texts = [prompt for prompt in prompts for _ in seeds]
    return cloud.to_buy(texts, seeds=list(seeds) * len(prompts))


def _images(cloud: Cloud, prompts: Sequence[str], seeds: Sequence[int]) -> Image:
    texts = [prompt for prompt in prompts for _ in seeds]
    return cloud.images(texts, seeds=list(seeds) * len(prompts))


def _aligned(edge: DiffusersGenerator, bundle: str | Path, method: DrawingMethod) -> DiffusersGenerator:
    generator, _ = apply_generation(edge, locate(bundle, "bundle"), few_steps=method.few_steps, merge=True)
    return generator
