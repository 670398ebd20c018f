"""The contract of a method of generation alignment: the cloud's images in, an update of the edge out.

`dekag.alignment.generation.methods.METHODS` has the methods by name. A further one is a class in a file of its own,
which adds it to that dictionary.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar, runtime_checkable

from jaxtyping import Float
from torch import Tensor, nn

from dekag.alignment.generation.update import GenerationUpdate
from dekag.config import settings
from dekag.generation.diffusers import DiffusersGenerator
from dekag.training.kept import kept_rows
from dekag.training.keys import key_of
from dekag.training.loop import Progress
from dekag.training.processes import from_main
from dekag.training.run import Tracking
from dekag.training.state import StateFile
from dekag.types import ImageRows, InputError, Latent
from dekag.wire.rows import map_rows, rows_on_disk

Config = TypeVar("Config")
OnStep = Callable[[str, Progress], None]
"""Called with the stage and its progress after each step."""
Validate = Callable[[DiffusersGenerator, str, int], float]
"""Scores the generator as it is being trained, at a stage and its step; higher is better."""


@dataclass(frozen=True, kw_only=True)
class DistillationData:
    """What the cloud drew, and what the edge should go on to draw as before.

    images: [prompts, 3, height, width] in [0, 1], one for each prompt; a tensor, or what reads them by slice.
    weights: how often each pair is drawn, relative to the others; None is all alike. prior: prompts whose drawings by
    the edge itself a method may keep as they are (Ruiz et al. 2023), so that what was not distilled is not spoiled.
    Raises InputError unless prompts and images pair.
    """

    prompts: Sequence[str]
    images: ImageRows
    prior: Sequence[str] = ()
    weights: Float[Tensor, " prompts"] | None = None

    def __post_init__(self) -> None:
        prompts, images = len(self.prompts), len(self.images)
        if prompts != images:
            raise InputError(f"give one cloud image for each prompt: {prompts} prompts, {images} images")


@dataclass(frozen=True, kw_only=True)
class TrainingRun:
    """How a training is run and watched; nothing of it changes what an uninterrupted training learns but `validate`.

    checkpoint: a folder from which an interrupted run goes on where it was. inputs: what the run depends on beside
    generator, data and config, as what it is validated with; a state of other inputs is refused. validate: if given,
    the best moving average by its score is what comes back, else the last.
    """

    checkpoint: Path | None = None
    inputs: Mapping[str, object] = field(default_factory=dict)
    on_step: OnStep | None = None
    validate: Validate | None = None
    tracking: Tracking = field(default_factory=Tracking)

    def state_file(self, stage: str) -> StateFile | None:
        """Where the state of a stage is kept, if it is."""
        if self.checkpoint is None:
            return None
        return StateFile(path=self.checkpoint / f"{stage.replace(' ', '_')}.pt", inputs=self.inputs)

    def depending_on(self, generator: DiffusersGenerator, config: object, **data: object) -> "TrainingRun":
        """The run with generator, data and config, as they are now, among its inputs, if it keeps a state."""
        if self.checkpoint is None:
            return self
        edge = {
            "base": _parts_of(generator),
            "sampler": _sampler_of(generator),
            "metaword": generator.metaword and generator.metaword.word,
            "adapters": generator.adapters,
        }
        return replace(self, inputs={**self.inputs, **key_of({**settings(config), **edge, **data})})

    def latents(self, count: int, make: Callable[[], Iterable[Latent]]) -> Latent:
        """Latents of the images that `make` gives in parts, mapped from the disk; a checkpoint keeps them."""
        if self.checkpoint is None:
            return rows_on_disk(count, make())
        name = "latents"
        inputs = {key: self.inputs[key] for key in ("base", "images")}
        path = from_main(lambda: kept_rows(self.checkpoint, name, count, make, lambda: inputs))
        return map_rows(path, name)

    def tracking_of(self, stage: str) -> Tracking:
        """The trackers of a stage, which write to a folder of their own if they do."""
        folder = None if self.tracking.folder is None else self.tracking.folder / stage
        return replace(self.tracking, folder=folder)

    def hook(self, stage: str) -> Callable[[Progress], None] | None:
        """What the training loop calls after each step of a stage."""
        return None if self.on_step is None else partial(self.on_step, stage)


def _parts_of(generator: DiffusersGenerator) -> dict[str, object]:
    """Weights and vocabularies of a pipeline, its adapters included."""
    found: dict[str, object] = {}
    for name, part in generator.pipeline.components.items():
        vocabulary = getattr(part, "get_vocab", None)
        found[name] = part if vocabulary is None else vocabulary()
    return {**found, "noise_map": generator.noise_map}


def _sampler_of(generator: DiffusersGenerator) -> dict[str, object]:
    """How a generator draws."""
    scheduler = generator.pipeline.scheduler
    return {
        "kind": type(scheduler).__qualname__,
        "config": dict(scheduler.config),
        # how many are drawn at a time changes nothing of any of them
        "sampling": replace(generator.sampling, batch=1),
        "pixels": generator.pixels,
    }


UNWATCHED = TrainingRun()
"""A training that nobody watches and that cannot be resumed."""


@runtime_checkable
class GenerationMethod(Protocol[Config]):
    """A method of generation alignment; a class that derives from this one needs `config_type` and `train` alone.

    config_type: frozen dataclass of the method's numbers, each field with a default and described as
    `dekag.config` says; options of the command line and fields of a job are made from it.
    bundled: whether what it learns is small enough to travel in a bundle.
    """

    bundled: bool = True

    @property
    def config_type(self) -> type[Config]:
        """The dataclass of the method's numbers."""
        ...

    def train(
        self,
        generator: DiffusersGenerator,
        data: DistillationData,
        config: Config,
        run: TrainingRun = UNWATCHED,
    ) -> GenerationUpdate:
        """Train an update; the generator is left as it was."""
        ...

    def check(self, generator: DiffusersGenerator, config: Config) -> None:
        """Raise InputError, before anything is drawn or trained, if the generator cannot be trained so."""
        return None

    def stages(self, config: Config) -> dict[str, int]:
        """Name and steps of each stage as `run.on_step` gets them, in their order; empty if unknown."""
        return {}

    def settings(self, config: Config) -> dict[str, int | float | str]:
        """The numbers of the training as they are written into the bundle."""
        return settings(config)


@contextmanager
def frozen(generator: DiffusersGenerator) -> Iterator[None]:
    """Within, no weight of denoiser or text encoders asks for a gradient."""
    parts = [generator.denoiser, *(getattr(generator.pipeline, name) for name in generator.family.encoders)]
    asked = [parameter for part in parts for parameter in part.parameters() if parameter.requires_grad]
    for part in parts:
        part.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in asked:
            parameter.requires_grad_(True)


def trainable(named: Mapping[str, Tensor]) -> nn.ParameterDict:
    """Those of some named parameters that train, as the training loop takes them: a name there has no dots."""
    return nn.ParameterDict({name.replace(".", "/"): p for name, p in named.items() if p.requires_grad})
