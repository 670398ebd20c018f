"""The denoising loss of a latent diffusion model, for every prediction type of diffusers' schedulers."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from diffusers import DDPMScheduler
from torch import Tensor

Predict = Callable[[Tensor, Tensor], Tensor]
"""(noised latents, timesteps) -> what the denoiser says."""


@runtime_checkable
class Noising(Protocol):
    """How a model's training noises a latent, and what it then asks for."""

    def noised(self, latents: Tensor, noise: Tensor, share: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(noised latents, timesteps, target) at shares of the schedule in [0, 1), 0 being the clean end."""

    def weights(self, share: Tensor, gamma: float) -> Tensor:
        """Min-SNR weights [batch] (Hang et al. 2023) of the loss at shares of the schedule."""


@dataclass(frozen=True)
class Diffusion:
    """Variance-preserving diffusion; the scheduler's `prediction_type` says what the target is.

    It is the noise (Ho et al. 2020), the velocity (Salimans and Ho 2022, Eq. 13) or the latent itself.
    """

    scheduler: DDPMScheduler

    def timesteps(self, share: Tensor) -> Tensor:
        """Timesteps of the scheduler at shares of its schedule in [0, 1)."""
        count = int(self.scheduler.config.num_train_timesteps)
        return (share * count).long().clamp(max=count - 1)

    def noised(self, latents: Tensor, noise: Tensor, share: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As `Noising.noised`."""
        timesteps = self.timesteps(share).to(latents.device)
        noised: Tensor = self.scheduler.add_noise(latents, noise, timesteps)
        kind = self.scheduler.config.prediction_type
        if kind == "epsilon":
            return noised, timesteps, noise
        if kind == "v_prediction":
            return noised, timesteps, self.scheduler.get_velocity(latents, noise, timesteps)
        if kind == "sample":
            return noised, timesteps, latents
        raise ValueError(f"prediction_type must be epsilon, v_prediction or sample, got {kind!r}")

    def weights(self, share: Tensor, gamma: float) -> Tensor:
        """The smaller of SNR and gamma, over what the prediction type weighs by itself.

        That is SNR for the noise, SNR + 1 for the velocity, 1 for the latent.
        """
        power = self.scheduler.alphas_cumprod[self.timesteps(share)]
        snr = power / (1 - power)
        by_kind = {"epsilon": snr, "v_prediction": snr + 1, "sample": torch.ones_like(snr)}
        bounded = snr.clamp(max=gamma)
        # at zero SNR the weight of the noise is 0 / 0, its limit 1
        return torch.where(
            snr > 0, bounded / by_kind[self.scheduler.config.prediction_type].clamp(min=1e-8), 1.0
        )


@dataclass(frozen=True)
class Flow:
    """Rectified flow (Liu et al. 2023; Lipman et al. 2023): the target is noise minus latent."""

    count: int

    def noised(self, latents: Tensor, noise: Tensor, share: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As `Noising.noised`."""
        sigma = share.to(latents)[:, None, None, None]
        noised = (1 - sigma) * latents + sigma * noise
        return noised, (share * self.count).to(latents), noise - latents

    def weights(self, share: Tensor, gamma: float) -> Tensor:
        """One everywhere: the flow's own weighting is even already."""
        return torch.ones_like(share)


def noising(scheduler: Any) -> Noising:
    """How the models of a sampler's scheduler are trained."""
    count = int(scheduler.config.num_train_timesteps)
    if "FlowMatch" in type(scheduler).__name__:
        return Flow(count)
    return Diffusion(DDPMScheduler.from_config(scheduler.config))


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
