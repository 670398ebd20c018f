"""How latents are noised in training, and what the denoiser is then asked for."""

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from diffusers import DDPMScheduler
from torch import Tensor

from dekag.types import InputError


@runtime_checkable
class Noising(Protocol):
    """How a model's training noises a latent, and what it then asks for."""

    def noised(self, latents: Tensor, noise: Tensor, share: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(noised latents, timesteps, target) at shares of the schedule in [0, 1), 0 being the clean end."""

    def share(self, timesteps: Tensor) -> Tensor:
        """Shares at which timesteps are taught: those that `noised` answers with them."""

    def weights(self, share: Tensor, gamma: float) -> Tensor:
        """Min-SNR weights [batch] (Hang et al. 2023) of the loss at shares of the schedule."""


PREDICTIONS = ("epsilon", "v_prediction", "sample")
"""What a denoiser of variance-preserving diffusion may be trained to say."""


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
        raise InputError(f"prediction_type must be one of {', '.join(PREDICTIONS)}, got {kind!r}")

    def share(self, timesteps: Tensor) -> Tensor:
        """The middle of the shares at which whole timesteps are taught."""
        return (timesteps + 0.5) / int(self.scheduler.config.num_train_timesteps)

    def weights(self, share: Tensor, gamma: float) -> Tensor:
        """The smaller of SNR and gamma, over what the prediction type weighs by itself (Hang et al. 2023, Sec. 3.4).

        That is SNR for the noise, SNR + 1 for the velocity, 1 for the latent. At an SNR of 0, which the last timestep
        of a rescaled schedule has (Lin et al. 2024), they are 1, 0 and 0.
        """
        power: Tensor = self.scheduler.alphas_cumprod.to(share.device)[self.timesteps(share)]
        snr = power / (1 - power)
        bounded = snr.clamp(max=gamma)
        kind = self.scheduler.config.prediction_type
        if kind == "epsilon":
            # 0 / 0 has the limit 1
            return torch.where(snr > 0, bounded / snr, 1.0)
        return bounded / (snr + 1) if kind == "v_prediction" else bounded


@dataclass(frozen=True)
class Flow:
    """Rectified flow (Liu et al. 2023; Lipman et al. 2023): the target is noise minus latent."""

    count: int

    def noised(self, latents: Tensor, noise: Tensor, share: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As `Noising.noised`."""
        sigma = share.to(latents)[:, None, None, None]
        noised = (1 - sigma) * latents + sigma * noise
        return noised, (share * self.count).to(latents), noise - latents

    def share(self, timesteps: Tensor) -> Tensor:
        """The shares at which timesteps, whole or not, are taught."""
        return timesteps / self.count

    def weights(self, share: Tensor, gamma: float) -> Tensor:
        """One everywhere: the flow's own weighting is even already."""
        return torch.ones_like(share)


def process_of(scheduler: Any) -> Diffusion | Flow:
    """How the models of a sampler's scheduler are trained, by its configuration alone; `noising` also checks it.

    Raises InputError where the configuration names no known process.
    """
    config, name = scheduler.config, type(scheduler).__name__
    count, kind = config.get("num_train_timesteps"), config.get("prediction_type")
    if not isinstance(count, int) or count < 2:
        raise InputError(
            f"{name} counts {count} timesteps of a training; an edge needs a sampler with at least 2"
        )
    if kind == "flow_prediction" or "beta_schedule" not in config:
        return Flow(count)
    if kind not in PREDICTIONS:
        raise InputError(f"prediction_type of {name} must be one of {', '.join(PREDICTIONS)}, got {kind!r}")
    if kind == "epsilon" and config.get("rescale_betas_zero_snr"):
        # Lin et al. 2024, Sec. 3.2: the noised latent is the noise, and x0 is 0 / 0
        raise InputError(
            f"{name} ends at an SNR of 0, where prediction_type epsilon says nothing; v_prediction does"
        )
    process = DDPMScheduler.from_config(config)
    powers = getattr(scheduler, "alphas_cumprod", None)
    if isinstance(powers, Tensor) and len(powers) == count:
        # some samplers shift them, or keep an SNR of 0 away from their divisions
        process.alphas_cumprod = powers.detach().clone().float()
    return Diffusion(process)
