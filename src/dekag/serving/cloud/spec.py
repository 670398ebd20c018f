"""What a job is to do, as a client asks for it: prompts, a method and its numbers, and where the update goes."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from dekag.alignment.bundle import Quantisation
from dekag.alignment.few_steps import FewStepConfig
from dekag.alignment.makd import MakdConfig
from dekag.alignment.rivals import method_config
from dekag.distillation import Extras, GenerationTask, ImageSource
from dekag.generation.prompts import LONGEST_PROMPT, check_prompts
from dekag.registry.listing import BundleName
from dekag.types import InputError
from dekag.world import World

MOST_PROMPTS = 10_000
MOST_IMAGES = 20_000
MOST_STEPS = 100_000

Steps = Annotated[int, Field(ge=0, le=MOST_STEPS)]
Rank = Annotated[int, Field(ge=1, le=256)]
Prompt = Annotated[str, Field(max_length=LONGEST_PROMPT)]


class JobSpec(BaseModel):
    """A generation alignment. Its defaults are those of `dekag align generation`."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    name: BundleName
    """What the update is called; on a channel it takes the place of an earlier one of that name."""
    channel: Literal["canary", "stable"] = "canary"
    """Where it is published."""
    prompts: Annotated[list[Prompt], Field(min_length=1, max_length=MOST_PROMPTS)] | None = None
    domain: Annotated[str, Field(max_length=64)] | None = None
    """A group of the world's prompts; without prompts and domain, all of them."""
    draws: Annotated[int, Field(ge=1, le=16)] = 2
    """Cloud images of each prompt."""
    method: Literal["makd", "textual_inversion", "lora", "dreambooth", "lokr"] = "makd"
    metaword_steps: Steps = 100
    steps: Steps = 200
    """Of metaword and low-rank matrices together."""
    frozen_steps: Steps = 600
    """Further ones with the metaword frozen."""
    vectors: Annotated[int, Field(ge=1, le=64)] = 4
    words: Annotated[str, Field(min_length=1, max_length=200)] = "glossy 3d"
    token: Annotated[str, Field(pattern=r"^<[a-z0-9_-]{1,62}>$")] = "<dekag>"
    rank: Rank = 8
    batch: Annotated[int, Field(ge=1, le=1024)] = 64
    few_steps: Annotated[int, Field(ge=0, le=64)] = 0
    """Also learn to draw in this many steps; 0: do not."""
    few_step_rank: Rank = 4
    quantisation: Quantisation = "int8"
    validation: bool = True
    """Whether the world's own prompts take part: to choose among what was trained, and to keep what the edge drew
    for others before."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0

    def checked_for(self, world: World) -> "JobSpec":
        """The spec with its prompts stripped; InputError if this world cannot do it."""
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
        own = prompts_file if self.prompts is not None else None
        return ImageSource(prompts_file=own, domain=self.domain, draws=self.draws, seed=self.seed)

    def config(self) -> MakdConfig:
        """The numbers of the training, before the method leaves something out."""
        return MakdConfig(
            token=self.token,
            vectors=self.vectors,
            words=self.words,
            rank=self.rank,
            metaword_steps=self.metaword_steps,
            joint_steps=self.steps,
            frozen_steps=self.frozen_steps,
            batch=self.batch,
            seed=self.seed,
        )

    def extras(self) -> Extras:
        """What the update carries besides."""
        few = None
        if self.few_steps:
            few = FewStepConfig(
                steps=self.few_steps, rank=self.few_step_rank, batch=self.batch, seed=self.seed
            )
        return Extras(few_steps=few, quantisation=self.quantisation)

    def task(self) -> GenerationTask:
        """What is to be learned."""
        return GenerationTask(
            method=self.method,
            config=self.config(),
            extras=self.extras(),
            domain=self.domain,
            validate=self.validation,
        )

    def stages(self) -> dict[str, int]:
        """Name and steps of each stage of the training, in their order."""
        config, few = method_config(self.method, self.config()), self.extras().few_steps
        adapted = config.adapter != "none"
        counts = {
            "metaword": config.metaword_steps if config.train_metaword else 0,
            "joint": config.joint_steps if adapted else 0,
            "frozen": config.frozen_steps if adapted else 0,
            "few steps": 0 if few is None else few.train_steps,
        }
        return {name: steps for name, steps in counts.items() if steps}
