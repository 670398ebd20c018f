"""One training loop for everything dekag trains: GAIs, codec, judges, MAKD and CALA.

A step is the mean over `processes x accumulation` shares of the batch. Share `k` of step `n` is drawn from a
generator seeded by `(seed, n, k)`, whichever process draws it, so a run that is interrupted and started again
sees exactly the batches it would have seen, no random state has to be saved, and two processes take the steps
of one process that accumulates two shares.

With several processes (`accelerate launch` on GPUs, `torchrun` on CPUs) each holds the whole model. The loss
closes over the model's parts, so there is no forward pass for DDP to wrap; the loop averages the gradients
itself, in one exchange a step. The frozen parameters are the caller's to load alike, everything else is made alike
here; a parameter without a gradient counts as one with a zero gradient. Only the main process reports, validates and
writes files; every process must see the checkpoint.

Dropout draws from torch's global generator, which is seeded for every share and is afterwards as it was.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate.utils import gather_object
from torch import Tensor, nn

from dekag.config import check_bounds
from dekag.training.keys import Key, key_of
from dekag.training.precision import faster_precision, mixed
from dekag.training.processes import from_main, mean_over_processes, processes_on, take_from_main
from dekag.training.schedule import rate_groups, warmup_stable_decay
from dekag.training.state import StateFile, TrainingState, copy_values, state_file, swapped
from dekag.training.trackers import UNTRACKED, Log, Tracking, tracked
from dekag.types import InputError

GOLDEN = 2654435769
"""2^32 over the golden ratio: its multiples modulo 2^32 stay far apart from each other."""
SILVER = 1779033703
"""2^32 over 1 + sqrt(2), made odd: as GOLDEN, for the seeds."""

_TOLD = frozenset({"checkpoint_every", "track_every"})

Loss = Callable[[torch.Generator], Tensor]
"""Draws a batch from the generator it is given and returns a scalar loss."""


@dataclass(frozen=True, kw_only=True)
class Validation:
    """A score of the model as it is, given the step; higher is better. It is asked every so many steps and at the end.

    Raises InputError if it is to be asked every 0 steps.
    """

    score: Callable[[int], float]
    every: int

    def __post_init__(self) -> None:
        if self.every < 1:
            raise InputError(f"a validation is made every so many steps, at least 1, got {self.every}")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Numbers of one training run; lengths are in optimiser steps.

    Raises InputError if a field is out of range.
    """

    steps: int
    learning_rate: float
    warmup_steps: int = 100
    decay_fraction: float = 0.3
    """Share of the steps, at the end, over which the learning rate falls to zero."""
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.99)
    rate_factors: tuple[tuple[str, float], ...] = ()
    """Pairs of a regular expression on the parameter's name and a factor on its learning rate; the first that
    matches counts. `((r"lora_B", 16.0),)` is LoRA+ (Hayou et al. 2024)."""
    ema_decay: float = 0.999
    keep: Literal["last", "best"] = "last"
    """The average that the model ends with: `last`, or `best`, the one of the highest validation score."""
    max_grad_norm: float = 1.0
    """Bound on the norm of the whole step's gradient."""
    accumulation: int = 1
    """Shares of the batch, one call of the loss each, that a process adds up in a step."""
    seed: int = 0
    precision: Literal["no", "bf16", "auto"] = "no"
    """`no` (fp32), `bf16`, or `auto`: bf16 if some steps at the start were faster in it.

    bf16 pays where a processor has units for it (CUDA, AMX, AVX512-BF16). fp16 would need its loss scaled."""
    checkpoint_every: int = 500
    track_every: int = 10
    """Steps between the values sent to the trackers; each waits for the device."""

    def __post_init__(self) -> None:
        if self.steps < 0 or min(self.accumulation, self.checkpoint_every, self.track_every) < 1:
            raise InputError("steps must be at least 0; accumulation and what ends in _every at least 1")
        check_bounds(self)


@dataclass(frozen=True, kw_only=True)
class Progress:
    """What a caller learns after each step; the loss is the mean over the whole step."""

    step: int
    steps: int
    loss: float
    steps_per_second: float


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What a run came to. The best step is the first of the highest score; None without validation."""

    steps: int
    best_step: int | None
    best_score: float | None
    scores: tuple[tuple[int, float], ...]
    """Step and score of every validation, those before an interruption included."""


def step_rng(seed: int, step: int, share: int = 0) -> torch.Generator:
    """The generator of one share of a step's batch: a function of the run's seed, the step and the share.

    torch's generator on the CPU heeds 32 bits of its seed, so all three are mixed into these.
    """
    return torch.Generator().manual_seed((seed * SILVER + step + share * GOLDEN) % 2**32)


def train(
    model: nn.Module,
    loss: Loss,
    config: TrainConfig,
    *,
    checkpoint: Path | StateFile | None = None,
    on_step: Callable[[Progress], None] | None = None,
    validation: Validation | None = None,
    tracking: Tracking = UNTRACKED,
) -> Trained:
    """Train the parameters of `model` that require a gradient; it ends holding their moving average.

    With `checkpoint`, the state is written there every `checkpoint_every` steps and read back if it exists.
    `validation` is asked without gradients, in evaluation mode and with the moving average in place of the
    parameters. `tracking` logs loss, learning rate, gradient norm, speed and score.

    Raises InputError if a trainable parameter is not float32, or if the checkpoint cannot be read or is that
    of a run with another number of processes, accumulation, seed, rate factors or trainable parameters; of a
    `StateFile` that says what the run depends on, also if any of that or of the configuration is another.
    """
    kept = state_file(checkpoint)
    loop = _start(model, loss, config, kept, validation)
    state = loop.state
    with loop.running(tracking) as log:
        loop.choose_precision(log)
        report = _Report(loop=loop, on_step=on_step, log=log if tracking.trackers else None)
        while state.step < config.steps:
            # 1. learning rate of this step
            rate = loop.set_rate()
            # 2. loss and gradient of this process's shares
            value = loop.accumulate_gradient()
            # 3. gradient of the whole step
            value, norm = loop.reduce_gradient(value)
            # 4. step and average
            loop.update()
            # 5. validation
            if validation is not None and loop.is_due(validation.every):
                log({"score": loop.score(validation)}, state.step)
            # 6. checkpoint and reports
            if kept is not None and loop.is_due(config.checkpoint_every):
                from_main(partial(state.save, kept.path))
            report(rate, value, norm)
    return _finish(state, config)


def checkpoint_gradients(model: nn.Module) -> None:
    """Compute activations again in the backward pass, for less memory, in every diffusers part of `model`.

    The gradients stay the same. Raises InputError if no part of the model can do so.
    """
    able = [m for m in model.modules() if getattr(m, "_supports_gradient_checkpointing", False)]
    turns: list[Any] = [getattr(m, "enable_gradient_checkpointing", None) for m in able]
    if not any(turns):
        raise InputError(f"no part of {type(model).__name__} supports gradient checkpointing")
    for turn_on in filter(None, turns):
        turn_on()


@dataclass(frozen=True, kw_only=True)
class _Loop:
    """The steps of one training run on this process; `processes` is accelerate's view of all of them."""

    state: TrainingState
    loss: Loss
    config: TrainConfig
    processes: Any

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(iter(self.state.parameters.values())).device

    @contextmanager
    def running(self, tracking: Tracking) -> Iterator[Log]:
        """The model in training mode, its trackers, and torch's global generators as they were afterwards."""
        cuda = [self.device] if self.device.type == "cuda" else []
        self.state.model.train()
        with (
            tracked(tracking, asdict(self.config), main=self.processes.is_main_process) as log,
            torch.random.fork_rng(cuda),
        ):
            yield log

    def is_due(self, every: int) -> bool:
        """Whether what happens every so many steps, and after the last one, happens now."""
        step = self.state.step
        return step % every == 0 or step == self.config.steps

    def set_rate(self) -> float:
        """Give the optimiser the learning rate of this step, and return it."""
        config, state = self.config, self.state
        rate = config.learning_rate * warmup_stable_decay(
            state.step, config.steps, config.warmup_steps, config.decay_fraction
        )
        for group, factor in zip(state.optimizer.param_groups, state.factors, strict=True):
            group["lr"] = rate * factor
        return rate

    def choose_precision(self, log: Log) -> None:
        """Fix the precision of the run, by a measurement of the main process if nothing else says it."""
        config, state = self.config, self.state
        if config.precision != "auto":
            state.precision = config.precision
        elif state.precision is None:
            rng = partial(step_rng, config.seed, 0)
            state.precision, ratio = from_main(
                lambda: faster_precision(lambda: self.loss(rng()) / config.accumulation, self.device)
            )
            state.optimizer.zero_grad(set_to_none=True)
            log({"bf16_over_fp32_seconds": ratio}, 0)

    def accumulate_gradient(self) -> Tensor:
        """Add up the gradients of this process's shares; returns their mean loss."""
        config, device = self.config, self.device
        autocast = mixed(self.state.precision or "no", device)
        value = torch.zeros((), device=device)
        for micro in range(config.accumulation):
            share = self.processes.process_index * config.accumulation + micro
            rng = step_rng(config.seed, self.state.step, share)
            _seed_dropout(rng, device)
            with autocast:
                part = self.loss(rng) / config.accumulation
            part.backward()
            value = value + part.detach()
        return value

    def reduce_gradient(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """Average gradients and loss over the processes and bound the gradient; returns the loss and the norm."""
        parameters = self.state.parameters.values()
        if self.processes.num_processes > 1:
            value = mean_over_processes(parameters, value)
        return value, nn.utils.clip_grad_norm_(parameters, self.config.max_grad_norm)

    def update(self) -> None:
        """Take the optimiser's step and move the average."""
        state = self.state
        state.optimizer.step()
        state.optimizer.zero_grad(set_to_none=True)
        state.step += 1
        state.update_average(min(self.config.ema_decay, state.step / (state.step + 10)))
        if self.processes.num_processes > 1:
            take_from_main(list(state.model.buffers()))

    def score(self, validation: Validation) -> float:
        """Note the main process's score of the moving average, and return it; the others wait for it."""
        state = self.state

        def value() -> float:
            with swapped(state.parameters, state.average), torch.no_grad():
                state.model.eval()
                score = float(validation.score(state.step))
                state.model.train()
            if not math.isfinite(score):
                raise InputError(f"the validation score must be finite, got {score} at step {state.step}")
            return score

        state.add_score(from_main(value))
        return state.scores[-1][1]


@dataclass(kw_only=True)
class _Report:
    """What trackers and the caller are told after each step; the speed is that since the report was made."""

    loop: _Loop
    on_step: Callable[[Progress], None] | None
    log: Log | None

    def __post_init__(self) -> None:
        self._started, self._first = time.monotonic(), self.loop.state.step

    def __call__(self, rate: float, value: Tensor, norm: Tensor) -> None:
        """Tell learning rate, loss and norm of the gradient; each number that is read waits for the device."""
        loop, step = self.loop, self.loop.state.step
        speed = (step - self._first) / (time.monotonic() - self._started)
        if self.log is not None and loop.is_due(loop.config.track_every):
            numbers = {"loss": value.item(), "learning_rate": rate, "gradient_norm": norm.item()}
            self.log({**numbers, "steps_per_second": speed}, step)
        if self.on_step is not None and loop.processes.is_main_process:
            steps = loop.config.steps
            self.on_step(Progress(step=step, steps=steps, loss=value.item(), steps_per_second=speed))


def _start(
    model: nn.Module,
    loss: Loss,
    config: TrainConfig,
    kept: StateFile | None,
    validation: Validation | None,
) -> _Loop:
    """The loop before its first step, alike on all processes, or where the checkpoint left it."""
    if validation is None and config.keep == "best":
        raise InputError("keep is best, but nothing tells what is best: give a validation")
    parameters = _trainable(model)
    processes = processes_on(next(iter(parameters.values())).device)
    if processes.num_processes > 1:
        take_from_main([*parameters.values(), *model.buffers()])
    groups = rate_groups(parameters, config.rate_factors)
    optimizer = torch.optim.AdamW(
        [{"params": group} for group in groups.values()],
        config.learning_rate,
        betas=config.betas,
        weight_decay=config.weight_decay,
    )
    state = TrainingState(
        run={
            "processes": processes.num_processes,
            "accumulation": config.accumulation,
            "seed": config.seed,
            "rate_factors": config.rate_factors,
        },
        key=_key(kept, config),
        model=model,
        parameters=parameters,
        average={name: p.detach().clone() for name, p in parameters.items()},
        optimizer=optimizer,
        factors=tuple(groups),
    )
    if kept is not None and kept.path.exists():
        state.load(kept.path)
    if len(set(gather_object([state.step]))) > 1:
        assert kept is not None
        raise InputError(f"not every process sees {kept.path}; put it on a file system that they share")
    return _Loop(state=state, loss=loss, config=config, processes=processes)


def _key(kept: StateFile | None, config: TrainConfig) -> Key:
    """All that the run depends on, if the state file says what that is; how often it is told of changes nothing."""
    if kept is None or not kept.inputs:
        return {}
    numbers = {name: value for name, value in asdict(config).items() if name not in _TOLD}
    return key_of({**numbers, **kept.inputs})


def _finish(state: TrainingState, config: TrainConfig) -> Trained:
    """Leave the model with the average that was asked for, in evaluation mode."""
    if config.keep == "best" and state.best is None:
        raise InputError("keep is best, but the run ended without a validation; start it anew to have one")
    copy_values(
        state.parameters, state.average if config.keep == "last" or state.best is None else state.best
    )
    state.model.eval()
    best_step, best_score = state.top or (None, None)
    return Trained(steps=state.step, best_step=best_step, best_score=best_score, scores=tuple(state.scores))


def _trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that require a gradient; raises InputError if there are none or one is not float32."""
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not parameters:
        raise InputError("the model has no parameter that requires a gradient")
    for name, parameter in parameters.items():
        if parameter.dtype != torch.float32:
            raise InputError(
                f"trainable parameters must be float32, but {name} is {str(parameter.dtype).removeprefix('torch.')}"
                ": small steps would be rounded away; precision bf16 casts by itself"
            )
    return parameters


def _seed_dropout(rng: torch.Generator, device: torch.device) -> None:
    """Seed torch's global generators by the share's own, but not to the same numbers."""
    seed = rng.initial_seed() ^ 0xFFFF_FFFF
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)
