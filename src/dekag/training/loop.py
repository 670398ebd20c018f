"""One training loop for everything dekag trains: GAIs, codec, judges, MAKD and CALA.

A step is the mean over `processes x accumulation` shares of the batch. Share `k` of step `n` is drawn from a
generator seeded by `(seed, n, k)`, whichever process draws it, so a run that is interrupted and started again
sees exactly the batches it would have seen, no random state has to be saved, and two processes take the steps
of one process that accumulates two shares.

With several processes (`accelerate launch` on GPUs, `torchrun` on CPUs) each holds the whole model. The loss
closes over the model's parts, so there is no forward pass for DDP to wrap; the loop averages the gradients
itself, in one exchange a step.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor, nn

from dekag.training.processes import from_main, mean_over_processes, processes_on, take_from_main
from dekag.training.schedule import check_rate_factors, rate_factor, warmup_stable_decay
from dekag.training.trackers import tracking
from dekag.types import InputError
from dekag.wire.files import replacing

GOLDEN = 2654435769
"""2^32 over the golden ratio: its multiples modulo 2^32 stay far apart from each other."""
SILVER = 1779033703
"""2^32 over 1 + sqrt(2), made odd: as GOLDEN, for the seeds."""

Loss = Callable[[torch.Generator], Tensor]
"""Draws a batch from the generator it is given and returns a scalar loss."""

Validate = Callable[[int], float]
"""Takes the step and returns a score of the model as it is; higher is better."""


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
    keep: str = "last"
    """The average that the model ends with: `last`, or `best`, the one of the highest validation score."""
    max_grad_norm: float = 1.0
    """Bound on the norm of the whole step's gradient."""
    accumulation: int = 1
    """Shares of the batch, one call of the loss each, that a process adds up in a step."""
    seed: int = 0
    precision: str = "no"
    """`no` (fp32) or `bf16`; bf16 pays only on processors with matrix units for it (AMX, CUDA)."""
    checkpoint_every: int = 500
    track_every: int = 10
    """Steps between the values sent to the trackers; each waits for the device."""

    def __post_init__(self) -> None:
        if self.steps < 0 or min(self.accumulation, self.checkpoint_every, self.track_every) < 1:
            raise InputError("steps must be at least 0; accumulation and what ends in _every at least 1")
        if self.precision not in ("no", "bf16"):
            raise InputError(
                f"precision must be no or bf16, got {self.precision}; fp16 would need its loss scaled"
            )
        if self.keep not in ("last", "best"):
            raise InputError(f"keep must be last or best, got {self.keep}")


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
    checkpoint: Path | None = None,
    on_step: Callable[[Progress], None] | None = None,
    validate: Validate | None = None,
    validate_every: int = 0,
    trackers: Sequence[str] = (),
    logging_dir: Path | None = None,
) -> Trained:
    """Train the parameters of `model` that require a gradient; it ends holding their moving average.

    With `checkpoint`, the state is written there every `checkpoint_every` steps and read back if it exists.
    `validate` is called every `validate_every` steps and after the last one, without gradients, in evaluation
    mode and with the moving average in place of the parameters. `trackers` are names of accelerate's trackers
    (tensorboard, wandb, ...) and log loss, learning rate, gradient norm, speed and score; those that write
    files write below `logging_dir`.

    With several processes, the frozen parameters are the caller's to load alike and everything else is made
    alike here; a parameter without a gradient counts as one with a zero gradient. Only the main process calls
    `on_step` and `validate` and writes files; every process must see `checkpoint`.

    Dropout draws from torch's global generator, which is seeded for every share and is afterwards as it was.

    Raises InputError if a trainable parameter is not float32, or if the checkpoint cannot be read or is that
    of a run with another number of processes, accumulation, seed, rate factors or trainable parameters.
    """
    if validate is not None and validate_every < 1:
        raise InputError(f"validate_every must be at least 1 with validate, got {validate_every}")
    if validate is None and config.keep == "best":
        raise InputError("keep is best, but nothing tells what is best: give validate")
    state, processes = _start(model, config)
    parameters, optimizer = state.parameters, state.optimizer
    if checkpoint is not None and checkpoint.exists():
        state.load(checkpoint)
    if len(set(gather_object([state.step]))) > 1:
        raise InputError(f"not every process sees {checkpoint}; put it on a file system that they share")
    device = next(iter(parameters.values())).device
    autocast = torch.autocast(device.type, torch.bfloat16) if config.precision == "bf16" else nullcontext()
    cuda = [device] if device.type == "cuda" else []
    model.train()
    started, first = time.monotonic(), state.step
    with (
        tracking(trackers, logging_dir, asdict(config), main=processes.is_main_process) as log,
        torch.random.fork_rng(cuda),
    ):
        while state.step < config.steps:
            # 1. learning rate of this step
            rate = config.learning_rate * warmup_stable_decay(
                state.step, config.steps, config.warmup_steps, config.decay_fraction
            )
            for group, factor in zip(optimizer.param_groups, state.factors, strict=True):
                group["lr"] = rate * factor
            # 2. loss and gradient of this process's shares
            value = torch.zeros((), device=device)
            for micro in range(config.accumulation):
                rng = step_rng(config.seed, state.step, processes.process_index * config.accumulation + micro)
                _seed_dropout(rng, device)
                with autocast:
                    part = loss(rng) / config.accumulation
                part.backward()
                value = value + part.detach()
            # 3. gradient of the whole step
            if processes.num_processes > 1:
                value = mean_over_processes(parameters.values(), value)
            norm = nn.utils.clip_grad_norm_(parameters.values(), config.max_grad_norm)
            # 4. step and average
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            state.step += 1
            state.update_average(min(config.ema_decay, state.step / (state.step + 10)))
            if processes.num_processes > 1:
                take_from_main(list(model.buffers()))
            last = state.step == config.steps
            # 5. validation
            if validate is not None and (state.step % validate_every == 0 or last):
                score = _score(state, validate)
                state.add_score(score)
                log({"score": score}, state.step)
            # 6. checkpoint and reports
            if checkpoint is not None and (state.step % config.checkpoint_every == 0 or last):
                from_main(partial(state.save, checkpoint))
            speed = (state.step - first) / (time.monotonic() - started)
            if trackers and (state.step % config.track_every == 0 or last):
                log(
                    {
                        "loss": value.item(),
                        "learning_rate": rate,
                        "gradient_norm": norm.item(),
                        "steps_per_second": speed,
                    },
                    state.step,
                )
            if on_step is not None and processes.is_main_process:
                on_step(
                    Progress(step=state.step, steps=config.steps, loss=value.item(), steps_per_second=speed)
                )
    if config.keep == "best" and state.best is None:
        raise InputError("keep is best, but the run ended without a validation; start it anew to have one")
    _copy(parameters, state.average if config.keep == "last" or state.best is None else state.best)
    model.eval()
    best_step, best_score = state.top or (None, None)
    return Trained(steps=state.step, best_step=best_step, best_score=best_score, scores=tuple(state.scores))


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


@dataclass(kw_only=True)
class _State:
    """All that a checkpoint holds."""

    run: dict[str, object]
    """What must not change when the run is resumed."""
    model: nn.Module
    parameters: dict[str, nn.Parameter]
    average: dict[str, Tensor]
    optimizer: torch.optim.Optimizer
    factors: tuple[float, ...]
    """Factor on the learning rate of each of the optimiser's groups."""
    step: int = 0
    scores: list[tuple[int, float]] = field(default_factory=list)
    best: dict[str, Tensor] | None = None
    """The average of the highest score so far."""

    @property
    def top(self) -> tuple[int, float] | None:
        """Step and score of the best validation, the first of equals."""
        return max(self.scores, key=lambda score: score[1], default=None)

    @torch.no_grad()
    def update_average(self, decay: float) -> None:
        torch._foreach_lerp_(
            list(self.average.values()), [p.data for p in self.parameters.values()], weight=1.0 - decay
        )

    def add_score(self, score: float) -> None:
        """Note the score of the average as it is now, and keep the average if it is the best."""
        if self.top is None or score > self.top[1]:
            self.best = {name: mean.clone() for name, mean in self.average.items()}
        self.scores.append((self.step, score))

    def save(self, path: Path) -> None:
        """Write the checkpoint; until it is whole, the one before stays."""
        content = {
            "step": self.step,
            "model": self.model.state_dict(),
            "average": self.average,
            "optimizer": self.optimizer.state_dict(),
            "run": self.run,
            "scores": self.scores,
            "best": self.best,
        }
        with replacing(path) as part, part.open("wb") as file:
            torch.save(content, file)

    def load(self, path: Path) -> None:
        """Take everything from a checkpoint of the same run; raises InputError before anything changed."""
        content = _read(path)
        self._check(path, content)
        self.model.load_state_dict(content["model"])
        for name, value in self.average.items():
            value.copy_(content["average"][name])
        self.optimizer.load_state_dict(content["optimizer"])
        self.step = int(content["step"])
        self.scores = [(int(step), float(score)) for step, score in content.get("scores", ())]
        best = content.get("best")
        self.best = best and {name: best[name].to(mean.device) for name, mean in self.average.items()}

    def _check(self, path: Path, content: dict[str, Any]) -> None:
        # files of the first format do not tell: then there was one process and no accumulation
        was = content.get("run", {**self.run, "processes": 1, "accumulation": 1, "rate_factors": ()})
        for name, value in self.run.items():
            if was[name] != value:
                raise InputError(
                    f"{path} is of a run with {name} {was[name]}, this one has {value}: resume it as it was or "
                    "choose another checkpoint"
                )
        changed = content["average"].keys() ^ self.parameters.keys()
        if changed or list(content["average"]) != list(self.parameters):
            which = f"do not both train {min(changed)}" if changed else "order their parameters differently"
            raise InputError(f"{path} does not fit the model: they {which}")
        shapes = {name: value.shape for name, value in self.model.state_dict().items()}
        wrong = shapes.items() ^ {(name, value.shape) for name, value in content["model"].items()}
        if wrong:
            raise InputError(f"{path} does not fit the model: they differ in {min(wrong)[0]}")


def _read(path: Path) -> dict[str, Any]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as err:  # whatever an unpickler makes of damaged bytes
        raise InputError(
            f"{path} cannot be read as a checkpoint ({type(err).__name__}): delete it to start anew"
        ) from err
    if not isinstance(content, dict) or not {"step", "model", "average", "optimizer"} <= content.keys():
        raise InputError(f"{path} is not a checkpoint of a training run; choose another name")
    return content


def _start(model: nn.Module, config: TrainConfig) -> tuple[_State, Any]:
    """The state before the first step, alike on all processes, and accelerate's view of these."""
    parameters = _trainable(model)
    processes = processes_on(next(iter(parameters.values())).device)
    if processes.num_processes > 1:
        take_from_main([*parameters.values(), *model.buffers()])
    groups = _rate_groups(parameters, config)
    optimizer = torch.optim.AdamW(
        [{"params": group} for group in groups.values()],
        config.learning_rate,
        betas=config.betas,
        weight_decay=config.weight_decay,
    )
    state = _State(
        run={
            "processes": processes.num_processes,
            "accumulation": config.accumulation,
            "seed": config.seed,
            "rate_factors": config.rate_factors,
        },
        model=model,
        parameters=parameters,
        average={name: p.detach().clone() for name, p in parameters.items()},
        optimizer=optimizer,
        factors=tuple(groups),
    )
    return state, processes


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


def _rate_groups(parameters: dict[str, nn.Parameter], config: TrainConfig) -> dict[float, list[nn.Parameter]]:
    """The parameters by the factor on their learning rate."""
    check_rate_factors(list(parameters), config.rate_factors)
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in parameters.items():
        groups.setdefault(rate_factor(name, config.rate_factors), []).append(parameter)
    return groups


def _seed_dropout(rng: torch.Generator, device: torch.device) -> None:
    """Seed torch's global generators by the share's own, but not to the same numbers."""
    seed = rng.initial_seed() ^ 0xFFFF_FFFF
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)


def _score(state: _State, validate: Validate) -> float:
    """The main process's score of the moving average; the others wait for it."""

    def value() -> float:
        with _swapped(state.parameters, state.average), torch.no_grad():
            state.model.eval()
            score = float(validate(state.step))
            state.model.train()
        if not math.isfinite(score):
            raise InputError(f"the validation score must be finite, got {score} at step {state.step}")
        return score

    return from_main(value)


@contextmanager
def _swapped(parameters: dict[str, nn.Parameter], values: dict[str, Tensor]) -> Iterator[None]:
    """Let the parameters hold other values, and exactly their own again afterwards."""
    own = {name: p.detach().clone() for name, p in parameters.items()}
    _copy(parameters, values)
    try:
        yield
    finally:
        _copy(parameters, own)


@torch.no_grad()
def _copy(parameters: dict[str, nn.Parameter], values: dict[str, Tensor]) -> None:
    torch._foreach_copy_([p.data for p in parameters.values()], [values[name] for name in parameters])
