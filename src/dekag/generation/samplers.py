"""Whether a pipeline's sampler can draw at all as it is configured, known before anything is drawn with it."""

import copy
import inspect
import warnings
from collections.abc import Callable
from typing import Any

import torch

from dekag.errors import InputError

USUAL_STEPS = 50
"""Of pipelines that do not say how many."""
BROKEN = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    NotImplementedError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What samplers raise that are configured as they do not know, and classes that are no samplers of latents."""


def check_sampler(pipeline: Any, steps: int | None) -> None:
    """Walk all steps of a small latent; InputError, in one line, if one fails or ends in what is no number.

    steps: the pipeline's own number if None. A class that cannot be walked so with its defaults either is left alone.
    """
    scheduler, count = getattr(pipeline, "scheduler", None), steps or _usual_steps(pipeline)
    if scheduler is None:
        return
    reason = _trouble(lambda: copy.deepcopy(scheduler), count)
    if reason and not _trouble(type(scheduler), min(count, USUAL_STEPS)):
        raise InputError(
            f"{type(scheduler).__name__}, as it is configured, cannot draw in {count} steps: {reason}"
        )


def _trouble(make: Callable[[], Any], steps: int) -> str:
    """What is wrong with a walk of a sampler; empty if nothing is."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the libraries, once it draws
            end = _end(make(), steps)
        return "" if end.isfinite().all() else "its noise levels lead to what is no number"
    except BROKEN as error:
        return " ".join(str(error).split())[:200] or type(error).__name__


@torch.no_grad()
def _end(sampler: Any, steps: int) -> torch.Tensor:
    """Where a sampler ends whose denoiser answers half of what it is given; dynamic shifts are those of mu = 1."""
    sampler.set_timesteps(steps, **({"mu": 1.0} if sampler.config.get("use_dynamic_shifting") else {}))
    rng = torch.Generator().manual_seed(0)
    state = torch.randn(1, 4, 8, 8, generator=rng) * float(getattr(sampler, "init_noise_sigma", 1.0))
    own = {"generator": rng} if "generator" in inspect.signature(sampler.step).parameters else {}
    learned = str(sampler.config.get("variance_type", "")).startswith("learned")
    for timestep in sampler.timesteps:
        scale = getattr(sampler, "scale_model_input", None)
        said = (state if scale is None else scale(state, timestep)) / 2
        said = torch.cat([said, torch.zeros_like(said)], dim=1) if learned else said
        state = sampler.step(said, timestep, state, return_dict=False, **own)[0]
    return state


def _usual_steps(pipeline: Any) -> int:
    parameter = inspect.signature(type(pipeline).__call__).parameters.get("num_inference_steps")
    default = None if parameter is None else parameter.default
    return default if isinstance(default, int) else USUAL_STEPS
