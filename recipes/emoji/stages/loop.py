"""Train by the clock or by steps, with checkpoints of tensors and JSON only.

A step draws its batch from a generator seeded by (seed, step), so a run that was killed and started again takes
exactly the steps that it would have taken. By steps, two runs end in the same bytes; by the clock, a run goes on
from its exact state, and the learning rate follows the share of the time that has passed.
"""

import json
import math
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from dekag.training.loop import step_rng
from dekag.training.schedule import rate_factor

STATE, STABLE, PROGRESS = "state.safetensors", "stable.safetensors", "progress.json"
"""The last checkpoint, the one before the learning rate began to fall, and what the run has come to."""

LONGEST_STEP = 10.0
"""Seconds that one step can count for: a process that was stopped for a while has not trained meanwhile."""

Loss = Callable[[torch.Generator], Tensor]
"""Draws a batch from a generator on the model's device and returns a scalar loss."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How long a stage trains: a number of steps, or seconds of `clock_of` its device. Exactly one is given."""

    steps: int | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.seconds is None):
            raise ValueError("a budget is either steps or seconds")

    def share(self, step: int, seconds: float) -> float:
        """Share of the budget that is used, from 0; 1 or more ends the run."""
        if self.steps is not None:
            return step / self.steps if self.steps else 1.0
        return seconds / self.seconds if self.seconds else 1.0


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """Numbers of one training."""

    rate: float
    batch: int
    """Pictures a step, for the count of pictures seen."""
    warmup_steps: int = 100
    decay_fraction: float = 0.3
    """Share of the budget, at its end, over which the learning rate falls to zero."""
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.99)
    ema_decay: float = 0.999
    rate_factors: tuple[tuple[str, float], ...] = ()
    """Pairs of a regular expression on the parameter's name and a factor on its learning rate."""
    muon: str | None = None
    """A regular expression on names: matrices and kernels that match are trained by Muon, all else by AdamW."""
    max_grad_norm: float = 1.0
    bf16: bool = False
    seed: int = 0
    checkpoint_seconds: float = 300.0
    reports: int = 8
    """Reports on the way, at equal shares of the budget; the last is at its end."""


@dataclass(kw_only=True)
class Progress:
    """What a run has come to; seconds are of all its starts together, without pauses."""

    step: int = 0
    pictures: int = 0
    seconds: float = 0.0
    loss: float = 0.0
    """Moving mean over about a hundred steps."""
    pictures_per_second: float = 0.0
    """Of this start alone."""
    reports: int = 0
    """Reports that are done."""

    def to_json(self) -> dict[str, float]:
        return asdict(self)


def clock_of(device: torch.device) -> Callable[[], float]:
    """What a budget in seconds is measured with: a CPU's own time, which no other process uses up, else the wall's."""
    return time.process_time if device.type == "cpu" else time.monotonic


Report = Callable[[Progress], None]
"""Called with the averaged weights in the model and the model in evaluation mode."""


def train(
    model: nn.Module,
    loss: Loss,
    config: LoopConfig,
    budget: Budget,
    folder: Path,
    *,
    report: Report,
    clock: Callable[[], float] | None = None,
) -> Progress:
    """Train what requires a gradient in `model`; it ends holding the moving average of its weights.

    The state is written into `folder` every `checkpoint_seconds` and at the end, and read from there at the start.
    A run whose budget has grown goes on from before its learning rate fell.
    clock: `clock_of` the model's device if None.
    Raises ValueError if the loss or what it made of the weights is not finite.
    """
    device = next(model.parameters()).device
    clock = clock_of(device) if clock is None else clock
    state = State(model, config, device)
    progress = state.resume(folder, budget)
    last, started = clock(), time.monotonic()
    saved, first = started, progress.pictures
    model.train()
    while (share := budget.share(progress.step, progress.seconds)) < 1:
        # 1. learning rate of this step
        for group in state.groups:
            group["lr"] = config.rate * group["factor"] * share_factor(progress.step, share, config)
        # 2. loss and gradient
        rng = on_device(step_rng(config.seed, progress.step), device)
        with torch.autocast(device.type, torch.bfloat16, enabled=config.bf16):
            value = loss(rng)
        value.backward()
        nn.utils.clip_grad_norm_(state.trained, config.max_grad_norm)
        # 3. step and moving average
        state.step()
        state.update_average(progress.step)
        # 4. progress; reading the loss waits for the device, so it is read every tenth step
        progress.step += 1
        progress.pictures += config.batch
        now = clock()
        progress.seconds += min(now - last, LONGEST_STEP)
        if progress.step % 10 == 0 or progress.step < 10:
            progress.loss = moving_mean(progress.loss, value.item(), progress.step)
            if not math.isfinite(progress.loss):
                raise ValueError(f"the loss is not finite at step {progress.step}: {progress.loss}")
        progress.pictures_per_second = (progress.pictures - first) / max(1e-9, time.monotonic() - started)
        # 5. report and checkpoint
        taken, share = share, budget.share(progress.step, progress.seconds)
        if share * config.reports >= progress.reports + 1:
            progress.reports = int(share * config.reports)
            with state.averaged():
                report(progress)
            progress.seconds += clock() - now
            share = budget.share(progress.step, progress.seconds)
        stable = fall_factor(taken, config) == 1
        if time.monotonic() - saved > config.checkpoint_seconds or (
            stable and fall_factor(share, config) < 1
        ):
            state.save(folder, progress, share, stable=stable)
            saved = time.monotonic()
        last = clock()
    state.save(folder, progress, share, stable=False)
    state.use_average()
    model.eval()
    return progress


def share_factor(step: int, share: float, config: LoopConfig) -> float:
    """Factor on the learning rate: linear warm-up by steps, constant, then linear to zero by the share used."""
    return min(1.0, (step + 1) / max(1, config.warmup_steps)) * fall_factor(share, config)


def fall_factor(share: float, config: LoopConfig) -> float:
    """The part of that which falls: 1 until the last `decay_fraction` of the budget."""
    return min(1.0, (1 - share) / max(1e-9, config.decay_fraction))


def moving_mean(mean: float, value: float, step: int) -> float:
    return value if step <= 1 else mean + (value - mean) * max(0.1, 1 / step)


def on_device(rng: torch.Generator, device: torch.device) -> torch.Generator:
    """The generator itself on the CPU; elsewhere one of the device with the same seed."""
    if device.type == "cpu":
        return rng
    return torch.Generator(device).manual_seed(rng.initial_seed())


class State:
    """Model, moving average and optimisers, and how they are written and read.

    Matrices step by Muon (Jordan 2024; torch's own, its rate matched to AdamW's), the rest by AdamW.
    """

    def __init__(self, model: nn.Module, config: LoopConfig, device: torch.device) -> None:
        self.model, self.config, self.device = model, config, device
        named = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.names, self.trained = list(named), list(named.values())
        self.average = [p.detach().clone() for p in self.trained]
        self.matrices = {name: as_matrix(p) for name, p in named.items() if is_matrix(name, p, config)}
        rest = {name: p for name, p in named.items() if name not in self.matrices}
        self.optimizers: dict[str, torch.optim.Optimizer] = {}
        if rest:
            self.optimizers["adamw"] = torch.optim.AdamW(
                by_factor(rest, config),
                config.rate,
                betas=config.betas,
                weight_decay=config.weight_decay,
                fused=device.type == "cuda",
            )
        if self.matrices:
            self.optimizers["muon"] = torch.optim.Muon(
                by_factor(self.matrices, config),
                config.rate,
                weight_decay=config.weight_decay,
                adjust_lr_fn="match_rms_adamw",
            )

    @property
    def groups(self) -> list[dict[str, Any]]:
        return [group for optimizer in self.optimizers.values() for group in optimizer.param_groups]

    def step(self) -> None:
        """One step of the optimisers along the gradients, which are then gone."""
        for name, parameter in zip(self.names, self.trained, strict=True):
            if name in self.matrices and parameter.grad is not None:
                self.matrices[name].grad = flattened(parameter.grad, like=parameter)
        for optimizer in self.optimizers.values():
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        for parameter in self.trained:
            parameter.grad = None

    def moments(self, name: str, parameter: nn.Parameter) -> tuple[torch.optim.Optimizer, nn.Parameter]:
        """The optimiser of this parameter and what it knows the parameter as."""
        if name in self.matrices:
            return self.optimizers["muon"], self.matrices[name]
        return self.optimizers["adamw"], parameter

    @torch.no_grad()
    def update_average(self, step: int) -> None:
        """Moving average whose memory grows from a few steps to 1 / (1 - ema_decay)."""
        decay = min(self.config.ema_decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.average, [p.data for p in self.trained], 1 - decay)

    @torch.no_grad()
    def use_average(self) -> None:
        torch._foreach_copy_([p.data for p in self.trained], self.average)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The averaged weights in the model, in evaluation mode, without gradients; then its own again."""
        own = [p.detach().clone() for p in self.trained]
        self.use_average()
        self.model.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_([p.data for p in self.trained], own)
            self.model.train()

    def tensors(self) -> dict[str, Tensor]:
        """Everything that training changes, by name."""
        found = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        found |= {f"average.{name}": value for name, value in zip(self.names, self.average, strict=True)}
        for name, parameter in zip(self.names, self.trained, strict=True):
            optimizer, own = self.moments(name, parameter)
            for key, value in optimizer.state.get(own, {}).items():
                found[f"optimizer.{name}.{key}"] = value
        return {name: value.detach().cpu().contiguous() for name, value in found.items()}

    def save(self, folder: Path, progress: Progress, share: float, *, stable: bool) -> None:
        """Write the checkpoint; until it is whole, the one before stays.

        share: of the budget, used so far. stable: the learning rate has not yet fallen.
        Raises ValueError, and writes nothing, if the weights are not finite.
        """
        if not all(bool(mean.isfinite().all()) for mean in self.average):
            raise ValueError(f"the weights are not finite at step {progress.step}")
        tensors = self.tensors()
        content = {"progress": json.dumps(progress.to_json()), "share": repr(share)}
        for name in (STATE, STABLE) if stable else (STATE,):
            write_atomically(folder / name, lambda part: save_file(tensors, part, metadata=content))

    def resume(self, folder: Path, budget: Budget) -> Progress:
        """Take the state from `folder` if there is one; return its progress."""
        path, stable = folder / STATE, folder / STABLE
        if not path.exists():
            return Progress()
        progress, used = read_header(path)
        if budget.share(progress.step, progress.seconds) < used and stable.exists():
            # the budget has grown, and a rate that has fallen by the old one is not to rise again
            path, (progress, _) = stable, read_header(stable)
        self._load(path)
        return progress

    @torch.no_grad()
    def _load(self, path: Path) -> None:
        with safe_open(path, "pt", device=str(self.device)) as file:
            found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        self.model.load_state_dict(
            {k.removeprefix("model."): v for k, v in found.items() if k[:6] == "model."}
        )
        for name, parameter, mean in zip(self.names, self.trained, self.average, strict=True):
            mean.copy_(found[f"average.{name}"])
            prefix = f"optimizer.{name}."
            moments = {k.removeprefix(prefix): v for k, v in found.items() if k.startswith(prefix)}
            if moments:
                optimizer, own = self.moments(name, parameter)
                optimizer.state[own] = moments


SMALLEST_MATRIX = 16
"""Rows and columns below which orthogonal steps have nothing to tell apart."""


def is_matrix(name: str, parameter: nn.Parameter, config: LoopConfig) -> bool:
    """Whether Muon trains this parameter."""
    if config.muon is None or parameter.ndim < 2 or not re.search(config.muon, name):
        return False
    return min(len(parameter), parameter[0].numel()) >= SMALLEST_MATRIX


def as_matrix(parameter: nn.Parameter) -> nn.Parameter:
    """The same numbers in memory as a matrix with one row for each output."""
    return nn.Parameter(_rows(parameter.data, like=parameter).view(len(parameter), -1))


def flattened(gradient: Tensor, *, like: nn.Parameter) -> Tensor:
    """A gradient in the order of `as_matrix` of its parameter."""
    return _rows(gradient, like=like).reshape(len(gradient), -1)


def _rows(values: Tensor, *, like: nn.Parameter) -> Tensor:
    return values if like.is_contiguous() else values.movedim(1, -1)


def by_factor(named: dict[str, nn.Parameter], config: LoopConfig) -> list[dict[str, Any]]:
    """Groups of parameters with the factor on their learning rate."""
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in named.items():
        groups.setdefault(rate_factor(name, config.rate_factors), []).append(parameter)
    return [{"params": own, "factor": factor} for factor, own in groups.items()]


def read_header(path: Path) -> tuple[Progress, float]:
    """What a checkpoint had come to, and the share of its budget that this was."""
    with safe_open(path, "pt") as file:
        content = file.metadata()
    return Progress(**json.loads(content["progress"])), float(content.get("share", 0))


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a file beside `path`, then move it there, safe against a crash of the machine."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    write(part)
    with part.open("rb") as file:
        os.fsync(file.fileno())
    part.replace(path)


def write_json(path: Path, content: object) -> None:
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    write_atomically(path, lambda part: part.write_text(text, encoding="utf-8"))
