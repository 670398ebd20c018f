"""A method of generation alignment of one's own, in one file: DoRA of rank 1 with PEFT, without a metaword."""

from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Gt
from torch import Tensor
from typing_extensions import Doc

from dekag.alignment.generation import adapters
from dekag.alignment.generation.method import (
    UNWATCHED,
    DistillationData,
    GenerationMethod,
    TrainingRun,
    frozen,
    trainable,
)
from dekag.alignment.generation.methods import METHODS
from dekag.alignment.generation.update import GenerationUpdate
from dekag.config import check_bounds
from dekag.generation.diffusers import DiffusersGenerator
from dekag.training.diffusion import denoising_loss, noising
from dekag.training.loop import TrainConfig, train


@dataclass(frozen=True, kw_only=True)
class DoraConfig:
    """Numbers of the method."""

    steps: Annotated[int, Ge(1), Doc("Steps of the training.")] = 20
    learning_rate: Annotated[float, Gt(0), Doc("Learning rate.")] = 1e-2
    seed: Annotated[int, Ge(0), Doc("Seed.")] = 0

    def __post_init__(self) -> None:
        check_bounds(self)


class Dora(GenerationMethod[DoraConfig]):
    """Direction and length of each row of the denoiser's weights, learned apart (Liu et al. 2024)."""

    config_type = DoraConfig

    def train(
        self,
        generator: DiffusersGenerator,
        data: DistillationData,
        config: DoraConfig,
        run: TrainingRun = UNWATCHED,
    ) -> GenerationUpdate:
        """Train the adapter on the cloud's images."""
        denoiser, family, pipeline = generator.denoiser, generator.family, generator.pipeline
        latents, conditioning = generator.encode(data.images), generator.read(data.prompts)
        noise_process = noising(pipeline.scheduler)

        def loss(rng: torch.Generator) -> Tensor:
            rows = torch.randint(len(latents), (8,), generator=rng)
            chosen = {name: values[rows] for name, values in conditioning.items()}
            predict = lambda noised, at: family.predict(pipeline, noised, at, chosen)  # noqa: E731
            return denoising_loss(predict, noise_process, latents[rows], rng=rng)

        peft = adapters.config_for("dora", rank=1, targets=family.targets)
        with frozen(generator), adapters.fresh(denoiser, "own", peft, seed=config.seed):
            numbers = TrainConfig(steps=config.steps, learning_rate=config.learning_rate, ema_decay=0.0)
            train(trainable(dict(denoiser.named_parameters())), loss, numbers, on_step=run.hook("dora"))
            return GenerationUpdate(adapter=adapters.tensors(denoiser, "own"))


METHODS["own_dora"] = Dora()
