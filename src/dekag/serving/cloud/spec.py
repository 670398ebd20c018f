"""What a job is to do, as a client asks for it: prompts, a method and its numbers, and where the update goes.

Fields that are numbers of a training are those of its configuration, by `dekag.config`; what a client may ask for is
bounded here.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from annotated_types import Ge, Le, MaxLen
from pydantic import BaseModel, ConfigDict, Field, create_model, field_validator

from dekag.alignment.config import TOKEN, FewStepConfig, MakdConfig
from dekag.alignment.generation.methods import METHODS, find_method
from dekag.bundle.manifest import Quantisation
from dekag.config import described_fields
from dekag.errors import InputError
from dekag.generation.prompts import LONGEST_PROMPT, check_prompts
from dekag.registry.listing import BundleName
from dekag.tasks.align_generation import GenerationTask
from dekag.tasks.material import ImageSource
from dekag.tasks.validate import Extras
from dekag.world import World

MOST_PROMPTS = 10_000
MOST_IMAGES = 20_000
MOST_STEPS = Le(100_000)
MOST_RANK = Le(256)
Prompt = Annotated[str, Field(max_length=LONGEST_PROMPT)]
TRAINING: Mapping[str, tuple[str, tuple[Any, ...]]] = {
    "metaword_steps": ("metaword_steps", (MOST_STEPS,)),
    "steps": ("joint_steps", (MOST_STEPS,)),
    "frozen_steps": ("frozen_steps", (MOST_STEPS,)),
    "vectors": ("vectors", (Ge(1), Le(64))),
    "words": ("words", (MaxLen(200),)),
    "token": ("token", (Field(pattern=f"^{TOKEN}$"),)),
    "rank": ("rank", (MOST_RANK,)),
    "batch": ("batch", (Le(1024),)),
    "seed": ("seed", (Le(2**31 - 1),)),
}
"""Fields of a job that are fields of MakdConfig, and what bounds them besides."""
FEW_STEPS: Mapping[str, tuple[str, tuple[Any, ...]]] = {"few_step_rank": ("rank", (MOST_RANK,))}
"""The same of FewStepConfig."""


class JobFields(BaseModel):
    """A generation alignment, but for the numbers of its training."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    name: BundleName
    """What the update is called; on a channel it takes the place of an earlier one of that name."""
    channel: Literal["canary", "stable"] = "canary"
    """Where it is published."""
    world: Annotated[str, Field(max_length=64)] | None = None
    """Name of the world that the update is for; a cloud of another one refuses the job."""
    prompts: Annotated[list[Prompt], Field(min_length=1, max_length=MOST_PROMPTS)] | None = None
    domain: Annotated[str, Field(max_length=64)] | None = None
    """A group of the world's prompts; without prompts and domain, all of them."""
    draws: Annotated[int, Field(ge=1, le=16)] = 2
    """Cloud images of each prompt."""
    method: Annotated[str, Field(max_length=64)] = "makd"
    few_steps: Annotated[int, Field(ge=0, le=64)] = 0
    """Also learn to draw in this many steps; 0: do not."""
    quantisation: Quantisation = "int8"
    validation: bool = True
    """Whether the world's own prompts take part: to choose among what was trained, and to keep what the edge drew
    for others before."""

    @field_validator("method")
    @classmethod
    def _known(cls, name: str) -> str:
        known = [known for known, method in METHODS.items() if method.bundled]
        if name not in known:
            raise ValueError(f"it must be one of {', '.join(known)}")
        return name

    def checked_for(self, world: World) -> "JobSpec":
        """The spec with its prompts stripped; InputError if this world cannot do it."""
        if self.world not in (None, world.name):
            raise InputError(f"this cloud is of the world {world.name}, and the job is for {self.world}")
        if self.prompts is not None and self.domain is not None:
            raise InputError("give prompts or a domain of the world, not both")
        if not self.stages():
            raise InputError("all numbers of steps are 0; give steps, metaword_steps or frozen_steps")
        teacher = world.edge_model.sampling.steps or 0
        if self.few_steps and (teacher % self.few_steps or teacher == self.few_steps):
            raise InputError(f"few_steps must divide the edge's {teacher} steps, got {self.few_steps}")
        if self.prompts is None:
            ImageSource(domain=self.domain).prompts(world)
            return self
        prompts = list(check_prompts(self.prompts))
        if broken := [number for number, prompt in enumerate(prompts) if len(prompt.splitlines()) != 1]:
            raise InputError(f"prompt {broken[0]} has a line break; a prompt is one line")
        if len(prompts) * self.draws > MOST_IMAGES:
            raise InputError(
                f"{len(prompts)} prompts drawn {self.draws} times each are more than {MOST_IMAGES} images"
            )
        return self.model_copy(update={"prompts": prompts})

    def source(self, prompts_file: Path) -> ImageSource:
        """Where the prompts come from; those of the job itself are in a file."""
        field = prompts_file if self.prompts is not None else None
        return ImageSource(prompts_file=field, domain=self.domain, draws=self.draws, seed=self.config().seed)

    def config(self) -> MakdConfig:
        """The numbers of the training, before the method leaves something out."""
        return MakdConfig(**self._given(TRAINING))

    def few_step_config(self) -> FewStepConfig | None:
        """The numbers of the second update, if one is asked for."""
        if not self.few_steps:
            return None
        shared = self.config()
        return FewStepConfig(
            steps=self.few_steps, batch=shared.batch, seed=shared.seed, **self._given(FEW_STEPS)
        )

    def task(self) -> GenerationTask:
        """What is to be learned."""
        return GenerationTask(
            method=self.method,
            config=self.config(),
            extras=Extras(few_steps=self.few_step_config(), quantisation=self.quantisation),
            domain=self.domain,
            validate=self.validation,
        )

    def stages(self) -> dict[str, int]:
        """Name and steps of each stage of the training, in their order."""
        few = self.few_step_config()
        counts = find_method(self.method).stages(self.config())
        return counts if few is None else {**counts, "few steps": few.train_steps}

    def _given(self, fields: Mapping[str, tuple[str, tuple[Any, ...]]]) -> dict[str, Any]:
        """Values of a configuration's fields that a job has."""
        return {field: getattr(self, name) for name, (field, _) in fields.items()}


def _fields(kind: type, fields: Mapping[str, tuple[str, tuple[Any, ...]]]) -> dict[str, Any]:
    """Fields of a model from those of a configuration: type, bounds, help and default."""
    known = {described.name: described for described in described_fields(kind)}
    return {
        name: (Annotated[(known[field].annotated, *more)], Field(default=known[field].default))
        for name, (field, more) in fields.items()
    }


if TYPE_CHECKING:
    JobSpec = JobFields
else:
    JobSpec = create_model(
        "JobSpec",
        __base__=JobFields,
        __doc__="A generation alignment. Defaults of its numbers are those of the training itself.",
        **_fields(MakdConfig, TRAINING),
        **_fields(FewStepConfig, FEW_STEPS),
    )
