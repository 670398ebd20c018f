"""Which samplers an edge can be trained for: measured on the sampler itself, before any work.

A denoiser that knows the latent answers as training asks it to. Where training and sampler mean the same, the
sampler then leads through the very latents that training noises, x = a(t) latent + s(t) noise, and ends at the
latent. That holds for every order and every kind of noise, since what is predicted of the latent never changes.
"""

import copy
import inspect
import math
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dekag.generation.samplers import BROKEN
from dekag.training.noise_process import Diffusion, Flow, process_of
from dekag.types import InputError

STEPS = 10
"""Steps of the sampler that are measured."""
TOLERANCE = 1e-3
"""Largest distance between the sampler's latents and training's that passes, in mean steps of the sampler."""
INEXACT = 0.02
"""Largest `conversion` that passes with a warning: samplers lose digits where the noise is thousands of latents."""
LATENT = 0.5
"""The latent that the denoiser knows: within what a sampler that clips leaves alone."""
FAR = 0.15
"""Largest difference between the strengths of the sampler's first noise and of training's last one."""
ROUNDED = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas")
"""Spacings of noise levels for which samplers tell the denoiser the nearest timestep of training."""


class _MisfitError(ValueError):
    """A sampler and a training do not meet, for the reason given."""


class SamplerWarning(UserWarning):
    """A sampler tells the denoiser other times than its noise has: the training is right, pictures not quite."""


@dataclass(frozen=True, kw_only=True)
class Fit:
    """How a sampler and a training agree; all numbers are in mean steps of the sampler.

    conversion: how far its first step leads from the latents that training knows, at whatever time. error: the
    largest distance of its latents from those of the times that it tells the denoiser. noise_error: the same of the
    strength of the noise alone, an estimate where the sampler adds noise of its own. random: whether it does.
    """

    conversion: float
    error: float
    noise_error: float
    random: bool


def check_scheduler(scheduler: Any) -> Fit:
    """Measure whether a sampler draws from what an edge is trained for; InputError in one line if not.

    Warns with SamplerWarning where the times that the sampler tells are not quite those of its noise.
    """
    name = type(scheduler).__name__
    fit = measure(scheduler)
    if not (fit.conversion <= INEXACT and fit.error <= 1):
        raise InputError(
            f"{name}, as it is configured, draws from other latents than an edge is trained on: they differ by"
            f" {100 * max(fit.conversion, fit.error):.2g} % of a step{_better(scheduler)}"
        )
    if fit.error > TOLERANCE:
        warnings.warn(
            f"{name}, as it is configured, tells the denoiser times that differ from its noise by up to"
            f" {100 * fit.error:.2g} % of a step{_better(scheduler)}",
            SamplerWarning,
            stacklevel=3,
        )
    return fit


def measure(scheduler: Any) -> Fit:
    """Run a sampler with a denoiser that knows the latent; InputError if it is no sampler of latents."""
    name, process = type(scheduler).__name__, process_of(scheduler)
    try:
        return _measured(scheduler, process)
    except BROKEN as error:
        kind = "" if isinstance(error, _MisfitError) else f"{type(error).__name__}: "
        reason = kind + " ".join(str(error).split())
        raise InputError(f"{name} is no sampler that an edge can be trained for ({reason[:200]})") from error


def _better(scheduler: Any) -> str:
    """The end of a line that says which spacing of the same sampler would be right, if one is."""
    if "timestep_spacing" not in scheduler.config:
        return ""
    for spacing in ("trailing", "leading"):
        other = type(scheduler).from_config(scheduler.config, timestep_spacing=spacing)
        if measure(other).error <= TOLERANCE:
            return f"; with timestep_spacing {spacing!r} they do not"
    return ""


def set_for(scheduler: Any, steps: int) -> Any:
    """A copy of a sampler, set to draw in some steps; dynamic shifts are those of mu = 1."""
    sampler = copy.deepcopy(scheduler)
    mu = {"mu": 1.0} if scheduler.config.get("use_dynamic_shifting") else {}
    sampler.set_timesteps(steps, **mu)
    return sampler


def model_input(sampler: Any, state: Tensor, timestep: Tensor) -> Tensor:
    """What the denoiser is given of a sampler's state; those of flows give it as it is."""
    scale = getattr(sampler, "scale_model_input", None)
    given: Tensor = state if scale is None else scale(state, timestep)
    return given


def _measured(scheduler: Any, process: Diffusion | Flow) -> Fit:
    """Every input of the denoiser, and where the sampler ends, against training's."""
    walk = _walk(scheduler, process, seed=0)
    random = _takes_noise(scheduler) and not torch.equal(walk.last, _walk(scheduler, process, seed=1).last)
    levels = [row.taught for row in walk.rows] + [(1.0, 0.0)]
    mean_step = sum(map(math.dist, levels[:-1], levels[1:])) / len(walk.rows)
    signals, noises = ([abs(row.found[k] - row.taught[k]) for row in walk.rows] for k in (0, 1))
    # the end is the latent, or it is nearer to it than the last input was
    left = max(0.0, math.dist(walk.end, levels[-1]) - math.dist(walk.rows[-1].found, levels[-1]))
    errors = [*signals, left] if random else [*signals, *noises, left]
    if not all(map(math.isfinite, errors)):
        raise _MisfitError("its latents are not finite")
    last = walk.rows[0].taught[1]
    if max(abs(walk.start - last), abs(1 - last)) > FAR:
        raise _MisfitError(
            f"it starts from noise of strength {walk.start:.3g} alone, where training has noise of {last:.3g}"
        )
    a, s = walk.rows[1].found
    circle, line = abs(math.hypot(a, s) - 1), abs(a + s - 1)
    # what is between levels shows in the signal only, where the strength of the noise is an estimate
    conversion = signals[1] if random else circle if isinstance(process, Diffusion) else line
    return Fit(
        conversion=conversion / mean_step,
        error=max(errors) / mean_step,
        noise_error=max(noises) / mean_step,
        random=random,
    )


@dataclass(frozen=True)
class _Row:
    """One input of the denoiser: its signal and its noise as they are, and as training has them."""

    found: tuple[float, float]
    taught: tuple[float, float]


@dataclass(frozen=True)
class _Walk:
    """Rows of a sampler's run, signal and noise of its end, its last input, the strength of its own first noise."""

    rows: list[_Row]
    end: tuple[float, float]
    last: Tensor
    start: float


def _walk(scheduler: Any, process: Diffusion | Flow, *, seed: int) -> _Walk:
    """Run a sampler with a denoiser that knows the latent, and beside it with one that knows a latent of 0.

    Both draw the same noise, so that their difference is the signal and the second is the noise alone.
    """
    steps = min(STEPS, int(scheduler.config.num_train_timesteps))
    known = (0.0, LATENT)
    samplers = [set_for(scheduler, steps) for _ in known]
    # another seed than that of the first noise, which must not come again
    rngs = [torch.Generator().manual_seed(1 + seed) for _ in known]
    first = samplers[0].timesteps[0]
    unit = float(model_input(samplers[0], torch.ones(1, 1, 1, 1), first))
    level = _taught(process, float(first), None, around=0)
    noise = _noise()
    states = [(level[0] * latent + level[1] * noise) / unit for latent in known]
    rows = []
    for t in samplers[0].timesteps:
        inputs = [model_input(sampler, x, t) for sampler, x in zip(samplers, states, strict=True)]
        found = _parts(inputs)
        a, s, of_latent, of_noise = _taught(process, float(t), found, around=_rounding(samplers[0]))
        rows.append(_Row(found, (a, s)))
        for k, latent in enumerate(known):
            said = of_latent * latent + of_noise * (inputs[k] - a * latent) / max(s, 1e-6)
            states[k] = _step(samplers[k], said, t, states[k], rngs[k])
    start = float(getattr(samplers[0], "init_noise_sigma", 1.0)) * unit
    return _Walk(rows=rows, end=_parts(states), last=inputs[0], start=start)


def _noise() -> Tensor:
    """Noise whose mean square is 1."""
    noise = torch.randn(1, 4, 32, 32, generator=torch.Generator().manual_seed(0))
    return noise / noise.square().mean().sqrt()


def _parts(pair: list[Tensor]) -> tuple[float, float]:
    """Signal and strength of the noise, of a state without and one with the latent."""
    bare, whole = (state.double() for state in pair)
    return float((whole - bare).mean() / LATENT), float(bare.square().mean().sqrt())


def _step(sampler: Any, said: Tensor, t: Tensor, state: Tensor, rng: torch.Generator) -> Tensor:
    """The sampler's next state."""
    own = {"generator": rng} if _takes_noise(sampler) else {}
    after: Tensor = sampler.step(said, t, state, return_dict=False, **own)[0]
    return after


def _takes_noise(sampler: Any) -> bool:
    return "generator" in inspect.signature(sampler.step).parameters


def _rounding(sampler: Any) -> int:
    """Timesteps by which what the denoiser is told may differ from the noise that its input has."""
    config = sampler.config
    flow = config.get("use_flow_sigmas") and not sampler.timesteps.is_floating_point()
    return int(bool(flow) or any(config.get(option) for option in ROUNDED))


def _taught(
    process: Diffusion | Flow, timestep: float, found: tuple[float, float] | None, *, around: int
) -> tuple[float, float, float, float]:
    """Signal and noise of a timestep in training, and the parts of latent and noise in what training asks for.

    Diffusion is trained at whole timesteps: between two of them, or `around` one, it is the level nearest to what
    was found. The signal tells, which is exact even where the sampler adds noise of its own.
    """
    if isinstance(process, Flow):
        if found is not None:
            time = (1 - found[0]) * process.count
            timestep = min(timestep + around, max(timestep - around, time))
        return _level(process, timestep)
    assert isinstance(process, Diffusion)
    most = int(process.scheduler.config.num_train_timesteps) - 1
    timestep = min(float(most), max(0.0, timestep))
    ends = max(0, math.floor(timestep) - around), min(most, math.ceil(timestep) + around)
    low, high = (_level(process, float(end)) for end in ends)
    if ends[0] == ends[1]:
        return low
    share = (timestep - ends[0]) / (ends[1] - ends[0])
    if found is not None:
        angles = [math.acos(max(-1.0, min(1.0, level[0]))) for level in (low, high, found)]
        share = min(1.0, max(0.0, (angles[2] - angles[0]) / (angles[1] - angles[0])))
    mixed = [(1 - share) * one + share * other for one, other in zip(low, high, strict=True)]
    # both pairs are points of the unit circle
    sizes = math.hypot(*mixed[:2]), math.hypot(*mixed[2:])
    return mixed[0] / sizes[0], mixed[1] / sizes[0], mixed[2] / sizes[1], mixed[3] / sizes[1]


def _level(process: Diffusion | Flow, timestep: float) -> tuple[float, float, float, float]:
    """As `_taught`, at a timestep that training knows."""
    latents, noise = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    share = process.share(torch.full((2,), timestep, dtype=torch.float64))
    noised, _, target = process.noised(latents[:, None, None, None], noise[:, None, None, None], share)
    a, s = noised.flatten().tolist()
    of_latent, of_noise = target.flatten().tolist()
    return a, s, of_latent, of_noise
