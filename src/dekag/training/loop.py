"""One training loop for everything dekag trains: GAIs, codec, judges, MAKD and CALA.

The batch of step `n` is drawn from a generator seeded by `(seed, n)`, so a run that is interrupted and
started again sees exactly the batches it would have seen, and no random state has to be saved.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from dekag.training.schedule import warmup_stable_decay

Loss = Callable[[torch.Generator], Tensor]
"""Draws a batch from the generator it is given and returns a scalar loss."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Numbers of one training run; lengths are in optimiser steps."""

    steps: int
    learning_rate: float
    warmup_steps: int = 100
    decay_fraction: float = 0.3
    """Share of the steps, at the end, over which the learning rate falls to zero."""
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.99)
    ema_decay: float = 0.999
    max_grad_norm: float = 1.0
    seed: int = 0
    precision: str = "no"
    """`no` (fp32) or `bf16`; bf16 pays only on processors with matrix units for it (AMX, CUDA)."""
    checkpoint_every: int = 500


@dataclass(frozen=True, kw_only=True)
class Progress:
    """What a caller learns after each step."""

    step: int
    steps: int
    loss: float
    steps_per_second: float


def step_rng(seed: int, step: int) -> torch.Generator:
    """The generator of one step: a function of the run's seed and the step alone."""
    return torch.Generator().manual_seed((seed << 32) + step)


def train(
    model: nn.Module,
    loss: Loss,
    config: TrainConfig,
    *,
    checkpoint: Path | None = None,
    on_step: Callable[[Progress], None] | None = None,
) -> None:
    """Train the parameters of `model` that require a gradient; it ends holding their moving average.

    With `checkpoint`, the state is written there every `checkpoint_every` steps and read back if it exists.
    """
    accelerator = Accelerator(mixed_precision=config.precision)
    parameters: dict[str, Tensor] = {n: p for n, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(
        parameters.values(), config.learning_rate, betas=config.betas, weight_decay=config.weight_decay
    )
    average = {name: p.detach().clone() for name, p in parameters.items()}
    step = 0
    if checkpoint is not None and checkpoint.exists():
        step = _load(checkpoint, model, average, optimizer)
    model.train()
    started, first = time.monotonic(), step
    while step < config.steps:
        # 1. learning rate of this step
        rate = warmup_stable_decay(step, config.steps, config.warmup_steps, config.decay_fraction)
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * rate
        # 2. loss
        with accelerator.autocast():
            value = loss(step_rng(config.seed, step))
        # 3. gradient
        accelerator.backward(value)
        accelerator.clip_grad_norm_(parameters.values(), config.max_grad_norm)
        # 4. step and average
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        _average(average, parameters, min(config.ema_decay, step / (step + 10)))
        if checkpoint is not None and (step % config.checkpoint_every == 0 or step == config.steps):
            _save(checkpoint, step, model, average, optimizer)
        if on_step is not None:
            speed = (step - first) / (time.monotonic() - started)
            on_step(Progress(step=step, steps=config.steps, loss=value.item(), steps_per_second=speed))
    _average(parameters, average, 0.0)
    model.eval()


@torch.no_grad()
def _average(average: dict[str, Tensor], new: dict[str, Tensor], decay: float) -> None:
    torch._foreach_lerp_(
        [p.data for p in average.values()], [p.data for p in new.values()], weight=1.0 - decay
    )


def _save(
    path: Path, step: int, model: nn.Module, average: dict[str, Tensor], optimizer: torch.optim.Optimizer
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {
        "step": step,
        "model": model.state_dict(),
        "average": average,
        "optimizer": optimizer.state_dict(),
    }
    part = path.with_suffix(".part")
    torch.save(state, part)
    part.replace(path)


@torch.no_grad()
def _load(path: Path, model: nn.Module, average: dict[str, Tensor], optimizer: torch.optim.Optimizer) -> int:
    state = torch.load(path, weights_only=True)
    model.load_state_dict(state["model"])
    for name, value in average.items():
        value.copy_(state["average"][name])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])
