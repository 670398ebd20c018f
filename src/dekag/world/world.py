"""A world: everything that a system is made of, and what every task asks of it.

A world is read from a folder (`world.file`), is one of those that ship, or is made in Python. Tasks take a `World`,
never the name of one.
"""

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Literal

import torch

from dekag.alignment.generation.bundles import apply_generation
from dekag.alignment.transmission.bundles import apply_transmission, trained_range
from dekag.bundle.bundle import Bundle, load_bundle
from dekag.bundle.canonical import digest_folder
from dekag.bundle.manifest import Kind
from dekag.codec import AdaptableCodec, TrainableCodec, TrainedRange, load_codec, require_adaptable
from dekag.data.bought import EndpointCloud
from dekag.data.endpoint import ImageEndpoint
from dekag.data.pictures import PictureSet
from dekag.engine.drawing import TORCH, EngineChoice, with_engine
from dekag.errors import SafetyWarning
from dekag.evaluation.judges import Judge, load_judge
from dekag.generation.diffusers import DiffusersGenerator, Sampling, load_generator
from dekag.generation.loading import PipelineSource
from dekag.link import Link, deliver
from dekag.training.keys import digest_of
from dekag.types import Codec, Condition, Delivery, InputError
from dekag.world import hub
from dekag.world.drawings import Cloud, KeptDrawings
from dekag.world.shipped import locate

Device = str | torch.device
Source = str | Path
"""A folder, a shipped name, or a hub id."""
UPDATE_NAMES: Mapping[Kind, str] = {"generation": "makd", "transmission": "cala"}
"""What the update of a kind is called where it is published."""
Precision = Literal["fp32", "bf16", "fp16"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
NOT_ASKED = (
    "the safety checker of the edge is not asked: it judges pictures, and an edge sends latents;"
    " check what is decoded"
)
NOMINAL = Condition(uses=512, snr_db=10.0)


@dataclass(frozen=True, kw_only=True)
class Model:
    """A text-to-image pipeline of diffusers, and how it draws.

    source: a folder, a hub id, a single file of weights, or a generator that is loaded already. revision: commit of a
    hub id; None is the one that `world.hub` knows. sha256: digest of a folder (`bundle.digest.digest_folder`),
    compared before it is loaded.
    pixels: side to draw at, the pipeline's own if None. precision: of its weights, fp32, bf16 or fp16; another is an
    InputError. licence: of the weights. variant, pipeline_config: as those of `generation.PipelineSource`.
    """

    source: Source | DiffusersGenerator
    sampling: Sampling = field(default_factory=Sampling)
    pixels: int | None = None
    revision: str | None = None
    sha256: str | None = None
    precision: Precision = "fp32"
    licence: str = ""
    variant: str | None = None
    pipeline_config: Source | None = None

    def __post_init__(self) -> None:
        if self.precision not in DTYPES:
            raise InputError(f"precision must be one of {', '.join(DTYPES)}, got {self.precision!r}")

    def load(self, *, device: Device = "cpu") -> DiffusersGenerator:
        """The generator. Raises InputError if the source holds no pipeline."""
        if isinstance(self.source, DiffusersGenerator):
            return self.source
        place = locate(self.source, "pipeline")
        if self.sha256 is not None and digest_folder(Path(place)) != self.sha256:
            raise InputError(f"{place} is not what the world names: its digest is another one")
        origin = PipelineSource(
            source=place,
            revision=self.revision or hub.revision(str(self.source)),
            variant=self.variant,
            pipeline_config=self.pipeline_config,
        )
        return load_generator(
            origin,
            sampling=self.sampling,
            pixels=self.pixels,
            device=device,
            dtype=DTYPES[self.precision],
        )

    def key(self) -> dict[str, object]:
        """All that its drawings depend on."""
        sampling = replace(self.sampling, batch=1)  # it changes nothing of any picture
        numbers: dict[str, object] = {
            "sampling": sampling,
            "pixels": self.pixels,
            "precision": self.precision,
        }
        if isinstance(self.source, DiffusersGenerator):
            held = self.source
            own = replace(held.sampling, batch=1)
            weights = {name: part for name, part in held.pipeline.components.items() if part is not None}
            return {
                **numbers,
                "weights": weights,
                "own": own,
                "own_pixels": held.pixels,
                "map": held.noise_map,
            }
        return {**numbers, "source": source_key(locate(self.source, "pipeline"), self.revision)}


@dataclass(frozen=True, kw_only=True)
class DrawingMethod:
    """One way to draw at the edge, to be compared with others.

    bundles: one for each training seed; none is the edge without an update. words: what a person would add to the
    prompt instead. few_steps: with the bundle's update for fewer steps.
    """

    bundles: tuple[Source, ...] = ()
    words: str = ""
    few_steps: bool = False


@dataclass(frozen=True, kw_only=True)
class System:
    """An edge with its link to the user, ready to deliver."""

    link: Link

    def deliver(
        self,
        prompts: Sequence[str],
        condition: Condition,
        *,
        seeds: Sequence[int] | None = None,
        channel_seed: int = 0,
    ) -> Delivery:
        """Draw each prompt at the edge and send it to the user; `seeds`, one each, count from 0 if left out.

        Warns with ConditionWarning if the condition is none that the codec's update was trained for.
        Raises InputError for unusable prompts, seeds or conditions.
        """
        drawn = list(range(len(prompts))) if seeds is None else list(seeds)
        rng = torch.Generator().manual_seed(channel_seed)
        return deliver(self.link, prompts, condition, seeds=drawn, rng=rng)


@dataclass(frozen=True, kw_only=True)
class World:
    """What a system is made of. What a world lacks is None or empty, and asking for it is an InputError.

    pixels: side of the pictures that the user sees; None is the edge's own.
    latents: channels, rows and columns of the edge's latents; None is whatever they are.
    cloud_model: what the edge is aligned with, a model or an endpoint.
    images: folder of pictures with their prompts; the cloud's, where there is no model of it. Of an endpoint, where
    what it drew is kept; by default the folder `images` of the world.
    drawings: file of what the cloud drew once (`world.drawings`); what is not in it is drawn.
    updates: bundle of each kind.
    judge_models: source of each judge; independent_judges: those that are asked beside them when methods are compared.
    prompt_splits: prompts by split, or the JSON file with them. reported: the splits that are reported.
    methods: further ways to draw at the edge, to compare the world's update with.
    nominal: the condition that the codec was trained at. folder: where the world was read from.
    engine: what draws at the edge; training is always torch's.
    """

    name: str
    edge_model: Model
    pixels: int | None = None
    latents: tuple[int, int, int] | None = None
    cloud_model: Model | ImageEndpoint | None = None
    images: Path | None = None
    drawings: Path | None = None
    codec_model: Source | AdaptableCodec | None = None
    updates: Mapping[Kind, Source] = field(default_factory=dict)
    judge_models: Mapping[str, Source | Judge] = field(default_factory=dict)
    independent_judges: Mapping[str, Source | Judge] = field(default_factory=dict)
    prompt_splits: Mapping[str, Sequence[str]] | Path = field(default_factory=dict)
    reported: tuple[str, ...] = ("heldout",)
    methods: Mapping[str, DrawingMethod] = field(default_factory=dict)
    nominal: Condition = field(default=NOMINAL, compare=False)
    licence: str = ""
    folder: Path | None = None
    engine: EngineChoice = field(default=TORCH, compare=False)

    def __hash__(self) -> int:
        return hash((self.name, self.folder))

    def edge(self, *, device: Device = "cpu") -> DiffusersGenerator:
        """The edge-GAI, without an update. Raises InputError if its latents are not those that the world says.

        Warns with SafetyWarning if its pipeline has a safety checker: it judges pictures, and an edge sends latents.
        """
        edge = self.edge_model.load(device=device)
        if getattr(edge.pipeline, "safety_checker", None) is not None:
            warnings.warn(NOT_ASKED, SafetyWarning, stacklevel=2)
        if self.latents is not None and edge.latent_shape != self.latents:
            shapes = f"{list(edge.latent_shape)}, and the world {self.name} says {list(self.latents)}"
            raise InputError(f"the latents of the edge are {shapes}")
        return edge

    def cloud(self, *, device: Device = "cpu") -> DiffusersGenerator:
        """The cloud-GAI. Raises InputError if the world has no model of it."""
        if not isinstance(self.cloud_model, Model):
            raise self._lacks("model of a cloud")
        return self.cloud_model.load(device=device)

    @property
    def side(self) -> int:
        """Side of the pictures that the user sees; loads the edge if the world does not say it."""
        return self.pixels or self.edge().side

    @property
    def has_cloud(self) -> bool:
        """Whether there is something that draws a prompt anew, a model or an endpoint."""
        return self.cloud_model is not None

    def reference(self, *, device: Device = "cpu") -> Cloud:
        """What the edge is compared with: the cloud or what it drew once, its endpoint, or its pictures.

        Raises InputError if the world has none of the three.
        """
        if isinstance(self.cloud_model, Model):
            if self.drawings is None:
                return self.cloud(device=device)
            key = digest_of(self.cloud_model.key())
            return KeptDrawings(file=self.drawings, key=key, load=partial(self.cloud, device=device))
        if self.cloud_model is not None:
            return self.endpoint_cloud(self.cloud_model)
        if self.images is None:
            raise self._lacks("cloud and no pictures of one")
        return PictureSet(folder=self.images, pixels=self.side)

    def endpoint_cloud(self, endpoint: ImageEndpoint) -> EndpointCloud:
        """The endpoint with a folder that keeps what is paid for: `images`, or one in the world's own folder."""
        inside = None if self.folder is None else self.folder / "images"
        return EndpointCloud(endpoint=endpoint, folder=self.images or inside)

    def codec(self, *, device: Device = "cpu") -> AdaptableCodec:
        """The codec, without an update."""
        if self.codec_model is None:
            raise self._lacks("codec")
        if isinstance(self.codec_model, str | Path):
            return load_codec(Path(locate(self.codec_model, "codec"))).to(device)
        return require_adaptable(self.codec_model).to(device)

    def update(self, kind: Kind) -> Path:
        """Folder or tar of the update of a kind."""
        if kind not in self.updates:
            raise self._lacks(f"{kind} update")
        return Path(locate(self.updates[kind], "bundle"))

    def with_bundles(
        self, bundles: Sequence[Source], kinds: Sequence[Kind] = ("generation", "transmission")
    ) -> "World":
        """The world with these bundles in place of its own of their kinds.

        Raises InputError for one that is damaged or of another kind than `kinds`, or for two of one kind.
        """
        places = [locate(bundle, "bundle") for bundle in bundles]
        found = {load_bundle(place).manifest.kind: place for place in places}
        if other := [kind for kind in found if kind not in kinds]:
            raise InputError(
                f"{found[other[0]]} is for {other[0]}, and a bundle for {kinds[0]} is needed here"
            )
        if len(found) < len(places):
            raise InputError("give at most one bundle for generation and one for transmission")
        return replace(self, updates={**self.updates, **found})

    def aligned_edge(self, *, device: Device = "cpu") -> tuple[DiffusersGenerator, Bundle]:
        """The edge as it draws with the world's update, which is merged into its weights, and the update."""
        return self._aligned(self.edge(device=device))

    def drawing_edge(self, *, device: Device = "cpu") -> DiffusersGenerator:
        """The edge as it draws without an update, by the world's engine."""
        return with_engine(self.edge(device=device), self.engine)

    def _aligned(self, edge: DiffusersGenerator) -> tuple[DiffusersGenerator, Bundle]:
        aligned, bundle = apply_generation(edge, self.update("generation"), merge=True)
        return with_engine(aligned, self.engine), bundle

    def judges(self, *, independent: bool = False, device: Device = "cpu") -> dict[str, Judge]:
        """The judges by name; `independent` adds those that nobody here trained or chose anything with."""
        if not self.judge_models:
            raise self._lacks("judge")
        sources = {**self.judge_models, **(self.independent_judges if independent else {})}
        return {name: _judge(source, device) for name, source in sources.items()}

    def prompts(self, split: str) -> list[str]:
        """The prompts of a split. Raises InputError, naming the known ones, if there is none."""
        splits = self.splits
        if split not in splits:
            known = f"has {', '.join(splits)}" if splits else "has no prompts"
            raise InputError(f"unknown split {split!r} of prompts; the world {self.name} {known}")
        return list(splits[split])

    @property
    def splits(self) -> Mapping[str, Sequence[str]]:
        """All prompts by split."""
        if not isinstance(self.prompt_splits, Path):
            return self.prompt_splits
        found: dict[str, list[str]] = json.loads(self.prompt_splits.read_text(encoding="utf-8"))
        return found

    def reported_prompts(self, count: int | None = None) -> dict[str, list[str]]:
        """The first prompts of each reported split."""
        return {split: self.prompts(split)[:count] for split in self.reported}

    def system(self, *, align: bool = True, device: Device = "cpu") -> System:
        """Edge and codec as a link, with the updates that the world has, or with none.

        Raises InputError if it is to be aligned and the world has no update.
        """
        if align and not self.updates:
            raise self._lacks("update")
        codec = self.codec(device=device)
        edge = self.fitting_edge(codec, device=device)
        if not align:
            return System(link=Link(generator=with_engine(edge, self.engine), codec=codec))
        bundles: dict[str, str] = {}
        trained: TrainedRange | None = None
        adapted: Codec = codec
        if "generation" in self.updates:
            edge, bundle = self._aligned(edge)
            bundles["generation"] = bundle.id
        else:
            edge = with_engine(edge, self.engine)
        if "transmission" in self.updates:
            adapted, bundle = apply_transmission(codec, self.update("transmission"))
            bundles["transmission"], trained = bundle.id, trained_range(bundle)
        return System(link=Link(generator=edge, codec=adapted, bundles=bundles, trained=trained))

    def fitting_edge(self, codec: TrainableCodec, *, device: Device = "cpu") -> DiffusersGenerator:
        """The edge, if its latents are those of a codec; else InputError, before anything is drawn."""
        edge = self.edge(device=device)
        if edge.latent_shape != codec.latent_shape:
            edge_shape, codec_shape = list(edge.latent_shape), list(codec.latent_shape)
            raise InputError(
                f"the codec takes latents {codec_shape}, and those of the edge are {edge_shape}; train one for it"
            )
        return edge

    def _lacks(self, part: str) -> InputError:
        return InputError(f"the world {self.name} has no {part}; name one, or train one")


def source_key(place: Source, revision: str | None = None) -> str:
    """What a folder holds, or the commit of a hub id."""
    path = Path(place)
    return digest_folder(path) if path.exists() else f"{place}@{revision or hub.revision(str(place))}"


def _judge(source: Source | Judge, device: Device) -> Judge:
    if isinstance(source, Judge):
        return source
    return load_judge(locate(source, "judge"), device=device)
