"""The sampler of a pipeline as the pipeline itself sets it, and what each of its steps does.

Pipelines choose times, noise levels and shifts from the number of steps, the size of the picture and more. So the
pipeline is asked: it is run until it sets its scheduler, and what it says there is kept.
"""

import copy
import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Never

import torch
from torch import Tensor

from dekag.types import InputError

LARGE = 200.0
"""A state that every sampler that clips what it predicts would change."""


@dataclass(frozen=True)
class Schedule:
    """A scheduler, and the arguments with which a pipeline sets it before it draws."""

    scheduler: Any
    arguments: tuple[Any, ...]
    named: Mapping[str, Any]

    def fresh(self) -> Any:
        """A copy of the scheduler that is set so and has taken no step; on the CPU."""
        sampler = copy.deepcopy(self.scheduler)
        named = {**self.named, "device": "cpu"} if "device" in self.named else self.named
        sampler.set_timesteps(*self.arguments, **named)
        return sampler


@dataclass(frozen=True)
class AffineStep:
    """A step that takes a state x to `old` x + `new` v, v being the denoiser's output for `scale` x at `timestep`."""

    timestep: float
    scale: float
    old: float
    new: float


class _IsSetError(Exception):
    """A pipeline has come to setting its scheduler."""


def schedule_of(pipeline: Any, run: Callable[[Any], object]) -> Schedule:
    """How a pipeline sets its scheduler when `run` draws with it; nothing is drawn and nothing of it changes."""
    kept: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def note(_: Any, *arguments: Any, **named: Any) -> Never:
        kept.append((arguments, named))
        raise _IsSetError

    scheduler = pipeline.scheduler
    try:
        run(with_scheduler(pipeline, _setting(copy.deepcopy(scheduler), note)))
    except _IsSetError:
        return Schedule(scheduler, *kept[0])
    raise InputError(f"{type(pipeline).__name__} does not set its {type(scheduler).__name__}")


def with_scheduler(pipeline: Any, scheduler: Any) -> Any:
    """The same pipeline, of the same parts, with another scheduler."""
    other = copy.copy(pipeline)
    other.scheduler = scheduler
    return other


def affine_steps(sampler: Callable[[], Any]) -> list[AffineStep]:
    """The steps of a sampler that is given set and fresh; InputError if they are not affine.

    DDIM without noise and Euler are, for every state and every output. Samplers with a memory of earlier steps,
    with noise of their own or that clip what they predict are not.
    """
    steps = len(sampler().timesteps)
    rows = [
        _walk(sampler(), [x] * steps, [v] * steps)
        for x, v in ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (LARGE, LARGE), (LARGE, -LARGE))
    ]
    # neither the first state nor the denoiser's first output may come back later
    first, nothing = [1.0] + [0.0] * (steps - 1), [0.0] * steps
    echoes = _walk(sampler(), first, nothing)[1:] + _walk(sampler(), nothing, first)[1:]
    straight = all(abs(end) < 1e-6 for end in [*rows[0], *echoes])
    straight &= rows[3] == _walk(sampler(), [LARGE] * steps, [LARGE] * steps, seed=1)
    for a, b, both, apart in zip(*rows[1:], strict=True):
        size = LARGE * (abs(a) + abs(b) + 1e-3)
        straight &= max(abs(LARGE * (a + b) - both), abs(LARGE * (a - b) - apart)) < 1e-4 * size
    if not straight:
        raise InputError(
            "fewer steps need a deterministic sampler of first order that does not clip, as DDIM or Euler;"
            f" {type(sampler()).__name__} is none"
        )
    fresh = sampler()
    times = [float(t) for t in fresh.timesteps]
    return [AffineStep(*row) for row in zip(times, _scales(fresh), rows[1], rows[2], strict=True)]


def is_part_of(few: Any, many: Any) -> bool:
    """Whether a set sampler visits every so-maniest state of another one and starts as it does."""
    every, rest = divmod(len(many.timesteps), len(few.timesteps))
    if rest or not torch.allclose(_times(few), _times(many)[::every], rtol=0, atol=1e-3):
        return False
    starts = [float(getattr(sampler, "init_noise_sigma", 1.0)) for sampler in (few, many)]
    scales = [_scales(copy.deepcopy(sampler)) for sampler in (few, many)]
    pairs = [starts, *map(list, zip(scales[0], scales[1][::every], strict=True))]
    return all(abs(one - other) <= 1e-4 * abs(one) for one, other in pairs)


def refined(flow: Any, every: int) -> Any | None:
    """A set sampler of a flow with `every` steps in place of each of its own; None if it is not such a one.

    What it is set to, it keeps: a pipeline that sets it anew only starts it again.
    """
    sigmas = getattr(flow, "sigmas", None)
    count = int(flow.config.num_train_timesteps)
    if not isinstance(sigmas, Tensor) or not torch.allclose(sigmas[:-1] * count, _times(flow)):
        return None
    shares = torch.arange(every) / every
    finer = (sigmas[:-1, None] + (sigmas[1:] - sigmas[:-1])[:, None] * shares).flatten()

    def again(sampler: Any, *_: Any, device: Any = None, **__: Any) -> None:
        sampler.sigmas = torch.cat([finer, sigmas[-1:]])
        sampler.timesteps = (finer * count).to(device)
        sampler.num_inference_steps = len(finer)
        sampler._step_index = sampler._begin_index = None

    finest = _setting(copy.deepcopy(flow), again)
    finest.set_timesteps()
    # a sampler that has to forget something between two drawings is not started again by this alone
    affine_steps(functools.partial(copy.deepcopy, finest))
    return finest


def _setting(scheduler: Any, set_timesteps: Callable[..., Any]) -> Any:
    """The scheduler with another way of being set; pipelines read the names of the arguments of the old one."""
    kind = type(scheduler)
    wrapped = functools.wraps(kind.set_timesteps)(set_timesteps)
    scheduler.__class__ = type(
        kind.__name__, (kind,), {"set_timesteps": wrapped, "__module__": kind.__module__}
    )
    return scheduler


def _times(sampler: Any) -> Tensor:
    times: Tensor = sampler.timesteps
    return times.float().cpu()


def _scales(sampler: Any) -> list[float]:
    """The factor of each step's state in the denoiser's input."""
    scale = getattr(sampler, "scale_model_input", None)
    one = torch.ones(1, 1, 1, 1)
    factors = []
    for t in sampler.timesteps:
        factors.append(1.0 if scale is None else float(scale(one, t)))
        sampler.step(one, t, one)
    return factors


def _walk(sampler: Any, states: list[float], outputs: list[float], *, seed: int = 0) -> list[float]:
    """Where each step leads, given the state before it and the denoiser's output."""
    takes = "generator" in inspect.signature(sampler.step).parameters
    own = {"generator": torch.Generator().manual_seed(seed)} if takes else {}
    unit = torch.ones(1, 1, 1, 1)
    scale = getattr(sampler, "scale_model_input", None)
    ends = []
    for t, x, v in zip(sampler.timesteps, states, outputs, strict=True):
        if scale is not None:
            scale(x * unit, t)
        ends.append(float(sampler.step(v * unit, t, x * unit, return_dict=False, **own)[0]))
    return ends
