"""Fewer steps at the edge: a second low-rank update with which an aligned edge draws in four steps or fewer.

The aligned edge draws with many guided steps and keeps where it came by; the update learns to take several of
those steps, guidance included, at once (progressive distillation, Salimans and Ho 2022; guidance as in Meng et
al. 2023). Nothing of the cloud is needed. This goes beyond DeKA-g.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from dekag.alignment.config import FewStepConfig
from dekag.alignment.generation import adapters
from dekag.alignment.generation.makd import CHECKPOINT_STEPS, checkpointed
from dekag.alignment.generation.method import UNWATCHED, TrainingRun, trainable
from dekag.generation.diffusers import DiffusersGenerator, Sampling
from dekag.generation.families import Conditioning
from dekag.training.loop import Loss, TrainConfig, train
from dekag.types import InputError

ADAPTER = "dekag_few_steps"
STAGE = "few steps"
"""The stage that `run.on_step` gets."""
TEACHER_SEED = 400_000
NO_GUIDANCE = 1.0
"""Guidance scale at which diffusers' pipelines leave the unconditional half out."""


def distil_few_steps(
    aligned: DiffusersGenerator,
    prompts: Sequence[str],
    config: FewStepConfig,
    run: TrainingRun = UNWATCHED,
) -> tuple[dict[str, Tensor], Sampling]:
    """A low-rank update on top of the generator's own, and the sampling to draw with: no guidance, few steps.

    The generator draws every prompt once as its teacher; it is left as it was. Nothing is validated.
    Raises InputError if the steps do not divide the teacher's or its sampler is not a deterministic one of first order.
    """
    teacher = aligned.sampling.steps
    if teacher is None or teacher % config.steps or teacher == config.steps:
        raise InputError(f"the student's {config.steps} steps must divide the teacher's, which are {teacher}")
    run = run.depending_on(aligned, config, prompts=prompts)
    seeds = [TEACHER_SEED + config.seed + i for i in range(len(prompts))]
    states = aligned.trajectory(prompts, seeds=seeds)[:, :: teacher // config.steps]
    denoiser, word = aligned.denoiser, aligned.metaword
    peft = adapters.config_for("lora", rank=config.rank, targets=config.targets or aligned.family.targets)
    with ExitStack() as stack:
        stack.enter_context(aligned.active())
        read_prompts = list(prompts) if word is None else [word.word.add_to(prompt) for prompt in prompts]
        conditioning = aligned.read(read_prompts)
        stack.enter_context(adapters.fresh(denoiser, ADAPTER, peft, seed=config.seed))
        if config.gradient_checkpointing:
            stack.enter_context(checkpointed(denoiser))
        denoiser.set_adapter([*aligned.adapters, ADAPTER])
        adapters.train_only(denoiser, ADAPTER)
        _train(aligned, _loss(aligned, states, conditioning, config), config, run)
        learned = adapters.tensors(denoiser, ADAPTER)
    return learned, replace(aligned.sampling, steps=config.steps, guidance=NO_GUIDANCE)


def _train(aligned: DiffusersGenerator, loss: Loss, config: FewStepConfig, run: TrainingRun) -> None:
    """Train what of the denoiser asks for a gradient."""
    train(
        trainable(dict(aligned.denoiser.named_parameters())),
        loss,
        TrainConfig(
            steps=config.train_steps,
            learning_rate=config.learning_rate,
            ema_decay=0.99,
            accumulation=config.accumulation,
            precision=config.precision,
            seed=config.seed,
            checkpoint_every=CHECKPOINT_STEPS,
        ),
        checkpoint=run.state_file(STAGE),
        on_step=run.hook(STAGE),
    )


def _loss(
    aligned: DiffusersGenerator, states: Tensor, conditioning: Conditioning, config: FewStepConfig
) -> Loss:
    """Mean square error of the state after one of the student's steps; states [images, steps + 1, c, rows, cols]."""
    line = affine_steps(aligned.pipeline.scheduler, config.steps)
    timesteps = torch.tensor([t for t, _, _ in line])
    old, new = (torch.tensor([row[k] for row in line])[:, None, None, None] for k in (1, 2))

    def loss(rng: torch.Generator) -> Tensor:
        index = torch.randint(len(states), (config.batch,), generator=rng)
        step = torch.randint(config.steps, (config.batch,), generator=rng)
        start, end = states[index, step], states[index, step + 1]
        of_batch = {name: values[index.to(values.device)] for name, values in conditioning.items()}
        predicted = aligned.family.predict(
            aligned.pipeline, start, timesteps[step].to(start.device), of_batch
        )
        landed = old[step].to(start) * start + new[step].to(start) * predicted.float()
        error: Tensor = (landed - end).square().mean()
        return error

    return loss


def affine_steps(scheduler: Any, steps: int) -> list[tuple[float, float, float]]:
    """(timestep, a, b) of each step of a sampler: it takes x and the denoiser's output v to a x + b v.

    Raises InputError unless that is so for every x and v: DDIM without noise and Euler are, samplers with a
    memory of earlier steps are not.
    """
    rows = [_walk(scheduler, steps, x, [v] * steps) for x, v in ((1.0, 0.0), (0.0, 1.0), (2.0, 3.0))]
    # the denoiser's first output must not come back later
    echo = _walk(scheduler, steps, 0.0, [1.0] + [0.0] * (steps - 1))[1:]
    remembers = any(abs(value) > 1e-6 for _, value in echo)
    for (_, a), (_, b), (_, both) in zip(*rows, strict=True):
        if remembers or abs(2 * a + 3 * b - both) > 1e-3 * (1 + abs(both)):
            raise InputError(
                f"fewer steps need a deterministic sampler of first order, as DDIM or Euler; {type(scheduler).__name__}"
                " is none"
            )
    return [(t, a, b) for (t, a), (_, b) in zip(rows[0], rows[1], strict=True)]


def _walk(scheduler: Any, steps: int, x: float, outputs: Sequence[float]) -> list[tuple[float, float]]:
    """Timesteps, and where each step leads from x with the denoiser's output at that step."""
    fresh = type(scheduler).from_config(scheduler.config)
    fresh.set_timesteps(steps)
    state, unit = torch.full((1, 1, 1, 1), x), torch.ones(1, 1, 1, 1)
    return [
        (float(t), float(fresh.step(v * unit, t, state).prev_sample))
        for t, v in zip(fresh.timesteps, outputs, strict=False)
    ]
