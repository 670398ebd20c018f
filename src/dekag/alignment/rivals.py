"""What a user would pick instead of MAKD, as the same training with something left out or put in its place.

Every method sees the same images, in the same order, for the same number of steps, and is drawn with the same
sampler and seeds.
"""

from collections.abc import Callable
from dataclasses import replace

from dekag.alignment.makd import MakdConfig
from dekag.types import InputError

Method = Callable[[MakdConfig], MakdConfig]


def makd(config: MakdConfig) -> MakdConfig:
    """The method itself."""
    return config


def textual_inversion(config: MakdConfig) -> MakdConfig:
    """The metaword alone, for all of the steps (Gal et al. 2023)."""
    return replace(config, adapter="none", metaword_steps=_steps(config))


def lora(config: MakdConfig) -> MakdConfig:
    """Low-rank matrices alone (Hu et al. 2022), everything else as in MAKD."""
    steps = config.metaword_steps + config.joint_steps
    return replace(config, vectors=0, metaword_steps=0, joint_steps=steps)


def dreambooth(config: MakdConfig) -> MakdConfig:
    """A rare word that is not trained, low-rank matrices, and as much of the edge's own drawings, without the
    word and at every noise, as of the cloud's (Ruiz et al. 2023)."""
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


METHODS: dict[str, Method] = {
    "makd": makd,
    "textual_inversion": textual_inversion,
    "lora": lora,
    "dreambooth": dreambooth,
    "lokr": lokr,
    "full": full,
}


def method_config(name: str, config: MakdConfig) -> MakdConfig:
    """The configuration of a method, given MAKD's; InputError lists the known methods."""
    if name not in METHODS:
        raise InputError(f"unknown method {name!r}; known are {', '.join(METHODS)}")
    return METHODS[name](config)


def _steps(config: MakdConfig) -> int:
    return config.metaword_steps + config.joint_steps + config.frozen_steps
