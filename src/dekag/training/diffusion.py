"""The denoising loss of a latent diffusion model, for every prediction type of diffusers' schedulers."""

import torch
from diffusers import DDPMScheduler
from torch import Tensor, nn


def denoising_loss(
    unet: nn.Module,
    scheduler: DDPMScheduler,
    latents: Tensor,
    text: Tensor,
    *,
    rng: torch.Generator,
    emphasis: float = 1.0,
    least: float = 0.0,
) -> Tensor:
    """Mean square error of the noise predictor on noised latents; scalar.

    `latents` are scaled, [batch, channels, rows, cols]; `text` are encoder states [batch, tokens, width].
    The target is the noise (Ho et al. 2020), the velocity (Salimans and Ho 2022, Eq. 13) or the latent
    itself, as the scheduler's `prediction_type` says. The density of timesteps grows as t^(emphasis - 1): 1 is
    uniform, more dwells on high noise, where the text decides. `least`, a share of the schedule, leaves out
    the timesteps below it.
    """
    noise = torch.randn(latents.shape, generator=rng).to(latents)
    count = scheduler.config.num_train_timesteps
    position = least + (1 - least) * torch.rand(len(latents), generator=rng) ** (1 / emphasis)
    timesteps = (position * count).long().clamp(max=count - 1).to(latents.device)
    noised = scheduler.add_noise(latents, noise, timesteps)
    target = denoising_target(scheduler, latents, noise, timesteps)
    predicted: Tensor = unet(noised, timesteps, text).sample
    return (predicted.float() - target.float()).square().mean()


def denoising_target(scheduler: DDPMScheduler, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """What the noise predictor is asked for at each timestep."""
    kind = scheduler.config.prediction_type
    if kind == "epsilon":
        return noise
    if kind == "v_prediction":
        velocity: Tensor = scheduler.get_velocity(latents, noise, timesteps)
        return velocity
    if kind == "sample":
        return latents
    raise ValueError(f"prediction_type must be epsilon, v_prediction or sample, got {kind!r}")
