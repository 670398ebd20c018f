"""What differs between families of diffusers pipelines when one is trained or drawn with as an edge-GAI.

A family knows the names of a pipeline's parts, how it reads a prompt, how it calls its denoiser and how its
latents become [batch, channels, rows, cols]. Everything else is the same for all of them. A cloud-GAI needs no
family: it is only asked for images.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from dekag.types import Image, Latent

Conditioning = dict[str, Tensor]
"""What a denoiser is told of a batch of prompts, by name; every tensor is batch first."""
OnLatents = Callable[[int, Tensor], None]
"""Told the number of a step from 0 and what the pipeline holds after it."""


class Family(ABC):
    """A kind of pipeline; the defaults are those of a transformer with one text encoder.

    Latents are the autoencoder's in unit scale, in the shape in which the pipeline draws its noise.
    """

    denoiser: str = "transformer"
    encoders: Mapping[str, str] = {"text_encoder": "tokenizer"}
    """Text encoders that a metaword enters, and their tokenizers."""
    targets: str
    """Regular expression of the layers that get a low-rank update."""
    at_once: int | None = None
    """Most pictures that the pipeline draws in one call, None for any number."""

    @abstractmethod
    def condition(self, pipeline: Any, prompts: Sequence[str]) -> Conditioning:
        """What the denoiser is told of the prompts; differentiable in the token embeddings."""

    @abstractmethod
    def predict(self, pipeline: Any, noised: Latent, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """The denoiser's output for noised latents at the scheduler's timesteps [batch], in the latents' shape."""

    @abstractmethod
    def shape(self, pipeline: Any, pixels: int | None) -> tuple[int, int, int]:
        """Channels, rows and columns of the latents of square pictures; None for the pipeline's own size."""

    def fitted(self, pipeline: Any) -> "Family":
        """The family as this pipeline has it; of some a text encoder may be missing."""
        return self

    def arguments(self, pipeline: Any, prompts: Sequence[str]) -> dict[str, Any]:
        """Arguments of a call of the pipeline that say what to draw; it reads them as `condition` does."""
        return {"prompt": list(prompts)}

    def length(self, tokenizer: Any, prompt: str) -> int:
        """Tokens of a prompt as the pipeline reads it with one of its tokenizers."""
        return len(tokenizer(prompt, truncation=False, verbose=False).input_ids)

    def limit(self, tokenizer: Any) -> int:
        """Tokens that a text encoder reads; the pipeline cuts off the others."""
        return int(tokenizer.model_max_length)

    def encode(self, pipeline: Any, image: Image) -> Latent:
        """Latents of images in [0, 1]: unit scale, the mean where the encoder gives a distribution."""
        vae = pipeline.vae
        encoded = vae.encode((image * 2 - 1).to(vae.device, vae.dtype))
        return self.scaled(vae, _likeliest(encoded).float())

    def decode(self, pipeline: Any, latent: Latent) -> Image:
        """Images in [0, 1] of latents."""
        vae = pipeline.vae
        decoded: Tensor = vae.decode(self.unscaled(vae, latent.to(vae.device)).to(vae.dtype)).sample
        return (decoded.float() / 2 + 0.5).clamp(0, 1)

    def scaled(self, vae: Any, raw: Tensor) -> Latent:
        """Latents of what the autoencoder gives."""
        mean, scale = self.statistics(vae)
        return (raw - mean) * scale

    def unscaled(self, vae: Any, latent: Latent) -> Tensor:
        """What the autoencoder takes, of latents."""
        mean, scale = self.statistics(vae)
        return latent / scale + mean

    def statistics(self, vae: Any) -> tuple[Tensor | float, Tensor | float]:
        """Mean of the autoencoder's latents and the factor that gives them unit scale."""
        return float(vae.config.get("shift_factor") or 0.0), float(vae.config.scaling_factor)

    def noise(self, pipeline: Any, rng: torch.Generator, *, pixels: int | None = None) -> Latent:
        """Initial noise of one image, [1, channels, rows, cols], of variance 1: what the pipeline would draw."""
        return torch.randn((1, *self.shape(pipeline, pixels)), generator=rng)

    def to_pipeline(self, pipeline: Any, latents: Latent) -> Tensor:
        """Latents as the pipeline's `latents` argument wants them."""
        return latents

    def from_pipeline(self, pipeline: Any, latents: Tensor) -> Latent:
        """Latents of what the pipeline returns for `output_type="latent"`."""
        return latents.float()

    def from_step(self, latents: Tensor, *, like: Latent) -> Latent:
        """Latents of what the pipeline holds between two steps, in the shape of others."""
        return latents.float()

    def watched(self, told: OnLatents) -> dict[str, Any]:
        """Arguments of a call of the pipeline with which it tells of every step."""

        def ended(_: Any, step: int, timestep: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            told(step, tensors["latents"])
            return tensors

        return {"callback_on_step_end": ended}


def _likeliest(encoded: Any) -> Tensor:
    """An encoder's latents, or the mode of their distribution; its outputs name them in three ways."""
    if hasattr(encoded, "latent_dist"):
        mode: Tensor = encoded.latent_dist.mode()
        return mode
    latents: Tensor = encoded.latents if hasattr(encoded, "latents") else encoded.latent
    return latents
