"""The denoising loss of a latent diffusion model, for every prediction type of diffusers' schedulers."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dekag.training.noise_process import Noising, process_of
from dekag.training.schedulers import check_scheduler

Predict = Callable[[Tensor, Tensor], Tensor]
"""(noised latents, timesteps) -> what the denoiser says."""


def noising(scheduler: Any) -> Noising:
    """How the models of a sampler's scheduler are trained; InputError if the sampler assumes anything else."""
    check_scheduler(scheduler)
    return process_of(scheduler)


def denoising_loss(
    predict: Predict,
    noise_process: Noising,
    latents: Tensor,
    *,
    rng: torch.Generator,
    emphasis: float = 1.0,
    min_share: float | Tensor = 0.0,
    gamma: float | None = None,
) -> Tensor:
    """Mean square error of a denoiser on noised latents; scalar.

    `latents` have unit scale, [batch, channels, rows, cols]. The density of timesteps grows as
    t^(emphasis - 1): 1 is uniform, more dwells on high noise, where the text decides. `min_share`, a share of the
    schedule, one or one for each image, leaves out the timesteps below it. With `gamma`, the loss has min-SNR weights.
    """
    noise = torch.randn(latents.shape, generator=rng, device=rng.device).to(latents)
    share = min_share + (1 - min_share) * torch.rand(len(latents), generator=rng, device=rng.device) ** (
        1 / emphasis
    )
    noised, timesteps, target = noise_process.noised(latents, noise, share)
    error = (predict(noised, timesteps).float() - target.float()).square()
    if gamma is None:
        return error.mean()
    return (error.mean((1, 2, 3)) * noise_process.weights(share, gamma).to(error)).mean()
