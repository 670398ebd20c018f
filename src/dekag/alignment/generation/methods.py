"""The methods of generation alignment by name: MAKD, and what a user would pick instead of it.

A rival is MAKD's training with something left out or put in its place. Every one of them sees the same images, in
the same order, for the same number of steps, and is drawn with the same sampler and seeds.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from dekag.alignment.config import MakdConfig
from dekag.alignment.generation.checks import check_config
from dekag.alignment.generation.makd import distil, stages
from dekag.alignment.generation.method import UNWATCHED, DistillationData, GenerationMethod, TrainingRun
from dekag.alignment.generation.update import GenerationUpdate
from dekag.generation.diffusers import DiffusersGenerator
from dekag.types import InputError


def makd(config: MakdConfig) -> MakdConfig:
    """The method itself."""
    return config


def textual_inversion(config: MakdConfig) -> MakdConfig:
    """The metaword alone, for all of the steps (Gal et al. 2023)."""
    steps = config.metaword_steps + config.joint_steps + config.frozen_steps
    return replace(config, adapter="none", metaword_steps=steps)


def lora(config: MakdConfig) -> MakdConfig:
    """Low-rank matrices alone (Hu et al. 2022), everything else as in MAKD."""
    steps = config.metaword_steps + config.joint_steps
    return replace(config, vectors=0, metaword_steps=0, joint_steps=steps)


def dreambooth(config: MakdConfig) -> MakdConfig:
    """A rare word that is not trained, low-rank matrices and prior preservation (Ruiz et al. 2023).

    As much is learned from the edge's own drawings, without the word and at every noise, as from the cloud's.
    """
    steps = config.metaword_steps + config.joint_steps
    return replace(
        config,
        vectors=1,
        words="sks",
        train_metaword=False,
        metaword_steps=0,
        joint_steps=steps,
        prior_share=0.5,
        prior_least=0.0,
        prior_word=False,
    )


def lokr(config: MakdConfig) -> MakdConfig:
    """Kronecker products in place of low-rank matrices (Yeh et al. 2024), without a metaword.

    Four times the rank, which is as many numbers: the second factor has a quarter of the rows and columns.
    """
    return replace(lora(config), adapter="lokr", rank=4 * config.rank)


def full(config: MakdConfig) -> MakdConfig:
    """All weights of the denoiser, at a tenth of the learning rate: what an update of any size could reach."""
    return replace(lora(config), adapter="full", joint_rate=config.joint_rate / 10)


@dataclass(frozen=True)
class MakdMethod(GenerationMethod[MakdConfig]):
    """MAKD with its configuration changed first; `change` takes the one that the user gave."""

    change: Callable[[MakdConfig], MakdConfig]
    bundled: bool = True

    @property
    def config_type(self) -> type[MakdConfig]:
        """As of MAKD, whatever is changed."""
        return MakdConfig

    def train(
        self,
        generator: DiffusersGenerator,
        data: DistillationData,
        config: MakdConfig,
        run: TrainingRun = UNWATCHED,
    ) -> GenerationUpdate:
        """As `distil`, with the configuration changed."""
        return distil(generator, data, self.change(config), run)

    def check(self, generator: DiffusersGenerator, config: MakdConfig) -> None:
        """As `dekag.alignment.generation.checks.check_config`, with the configuration changed."""
        check_config(generator, self.change(config))

    def stages(self, config: MakdConfig) -> dict[str, int]:
        """As `dekag.alignment.generation.makd.stages`."""
        return {stage.name: stage.steps for stage in stages(self.change(config))}

    def settings(self, config: MakdConfig) -> dict[str, int | float | str]:
        """The numbers that the training went by."""
        return self.change(config).settings()


METHODS: dict[str, GenerationMethod[Any]] = {
    "makd": MakdMethod(makd),
    "textual_inversion": MakdMethod(textual_inversion),
    "lora": MakdMethod(lora),
    "dreambooth": MakdMethod(dreambooth),
    "lokr": MakdMethod(lokr),
    "full": MakdMethod(full, bundled=False),
}
"""Every method by the name that the command line, jobs and bundles have for it."""


def find_method(name: str) -> GenerationMethod[Any]:
    """A method by its name.

    Raises InputError, which lists the known ones.
    """
    if name not in METHODS:
        raise InputError(f"unknown method {name!r}; known are {', '.join(METHODS)}")
    return METHODS[name]


def method_config(name: str, config: MakdConfig) -> MakdConfig:
    """The configuration of MAKD or one of its rivals, given MAKD's.

    Raises InputError for any other name.
    """
    method = find_method(name)
    if not isinstance(method, MakdMethod):
        raise InputError(f"the method {name!r} is not MAKD with something left out")
    return method.change(config)
