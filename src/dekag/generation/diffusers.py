"""Any diffusers text-to-image pipeline as a cloud-GAI or an edge-GAI: prompt -> latent -> image."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from dekag.generation.prompts import check_prompts, warn_truncated
from dekag.types import Image, InputError, Latent


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How a pipeline is run; `None` leaves the pipeline's own default."""

    steps: int | None = None
    guidance: float | None = None
    batch: int = 32
    """Images drawn at a time."""


@dataclass(frozen=True, kw_only=True)
class Metaword:
    """A learned pseudo-word that is put before or after every prompt."""

    token: str
    position: Literal["prefix", "suffix"] = "prefix"

    def add_to(self, prompt: str) -> str:
        """The prompt with the metaword."""
        return f"{self.token} {prompt}" if self.position == "prefix" else f"{prompt} {self.token}"


@dataclass(frozen=True, kw_only=True)
class DiffusersGenerator:
    """Implements `dekag.types.Generator` over a pipeline whose latents are [batch, channels, rows, cols].

    The initial noise of an image depends on its own seed only. The pipeline carries any update that was
    loaded into it; `metaword` is the word that belongs to the update.
    """

    pipeline: Any
    """Of diffusers; its class says which components it has."""
    sampling: Sampling = field(default_factory=Sampling)
    metaword: Metaword | None = None

    def __call__(self, prompts: Sequence[str], *, seeds: Sequence[int]) -> Latent:
        """Draw one latent for each prompt and seed; unit scale.

        Raises InputError for an empty or over-long prompt, or if there is not one seed for each prompt;
        warns with PromptTruncatedWarning if the text encoder does not read all of a prompt.
        """
        prompts = check_prompts(prompts)
        if len(seeds) != len(prompts):
            raise InputError(f"give one seed for each prompt: {len(prompts)} prompts, {len(seeds)} seeds")
        if self.metaword is not None:
            prompts = tuple(self.metaword.add_to(prompt) for prompt in prompts)
        self._warn_truncated(prompts)
        size = self.sampling.batch
        chunks = [
            self._draw(prompts[at : at + size], seeds[at : at + size]) for at in range(0, len(prompts), size)
        ]
        return torch.cat(chunks)

    @torch.no_grad()
    def decode(self, latent: Latent) -> Image:
        """Latents, unit scale, to images in [0, 1]."""
        vae = self.pipeline.vae
        scaled: Tensor = latent / vae.config.scaling_factor + (vae.config.get("shift_factor") or 0.0)
        pictures = [vae.decode(part.to(vae.dtype)).sample for part in scaled.split(self.sampling.batch)]
        return (torch.cat(pictures).float() / 2 + 0.5).clamp(0, 1)

    @torch.no_grad()
    def encode(self, image: Image) -> Latent:
        """Images in [0, 1] to latents, unit scale (the mean, where the encoder gives a distribution)."""
        vae = self.pipeline.vae
        latents = [
            self._mean(vae.encode((part * 2 - 1).to(vae.dtype))) for part in image.split(self.sampling.batch)
        ]
        shifted = torch.cat(latents).float() - float(vae.config.get("shift_factor") or 0.0)
        return shifted * float(vae.config.scaling_factor)

    @torch.no_grad()
    def _draw(self, prompts: Sequence[str], seeds: Sequence[int]) -> Latent:
        settings: dict[str, float | int] = {}
        if self.sampling.steps is not None:
            settings["num_inference_steps"] = self.sampling.steps
        if self.sampling.guidance is not None:
            settings["guidance_scale"] = self.sampling.guidance
        # the noise is drawn on the CPU, so that one seed means one noise on every device
        noise = [torch.Generator().manual_seed(seed) for seed in seeds]
        latents: Tensor = self.pipeline(
            prompt=list(prompts), generator=noise, output_type="latent", **settings
        ).images
        if latents.ndim != 4:
            name = type(self.pipeline).__name__
            raise InputError(
                f"{name} packs its latents to {latents.ndim} axes; latents [b, c, rows, cols] are needed"
            )
        return latents.float()

    def _warn_truncated(self, prompts: Sequence[str]) -> None:
        expand = getattr(self.pipeline, "maybe_convert_prompt", None)
        tokenizer = self.pipeline.tokenizer
        warn_truncated([expand(p, tokenizer) for p in prompts] if expand else prompts, tokenizer)

    @staticmethod
    def _mean(encoded: Any) -> Tensor:
        distribution = getattr(encoded, "latent_dist", None)
        latents: Tensor = encoded.latents if distribution is None else distribution.mode()
        return latents


def load_generator(
    source: str | Path,
    *,
    sampling: Sampling | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> DiffusersGenerator:
    """A generator from a pipeline directory or a hub id.

    Raises InputError if neither is there.
    """
    try:
        pipeline = DiffusionPipeline.from_pretrained(source, dtype=dtype)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"{source} is no diffusers pipeline directory and no hub id that can be read: {reason}"
        ) from error
    pipeline.set_progress_bar_config(disable=True)
    return DiffusersGenerator(pipeline=pipeline.to(device), sampling=sampling or Sampling())
