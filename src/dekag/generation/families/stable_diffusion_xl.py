"""Stable Diffusion XL."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from dekag.generation.families.family import Conditioning
from dekag.generation.families.stable_diffusion import StableDiffusion
from dekag.types import Image, Latent


class StableDiffusionXL(StableDiffusion):
    """Stable Diffusion XL (Podell et al. 2024): two CLIP text encoders, and the picture's size as a condition."""

    encoders: Mapping[str, str] = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"}

    @override
    def condition(self, pipeline: Any, prompts: Sequence[str]) -> Conditioning:
        states, _, pooled, _ = pipeline.encode_prompt(list(prompts), do_classifier_free_guidance=False)
        return {"states": states, "pooled": pooled}

    @override
    def predict(self, pipeline: Any, noised: Latent, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        unet = pipeline.unet
        rows, cols = (side * pipeline.vae_scale_factor for side in noised.shape[-2:])
        # original size, crop and target size of an uncropped picture
        sizes = conditioning["pooled"].new_tensor([rows, cols, 0, 0, rows, cols]).expand(len(noised), -1)
        predicted: Tensor = unet(
            noised.to(unet.dtype),
            timesteps,
            conditioning["states"],
            added_cond_kwargs={"text_embeds": conditioning["pooled"], "time_ids": sizes},
        ).sample
        return predicted

    @override
    def encode(self, pipeline: Any, image: Image) -> Latent:
        with _upcast(pipeline.vae):
            return super().encode(pipeline, image)

    @override
    def decode(self, pipeline: Any, latent: Latent) -> Image:
        with _upcast(pipeline.vae):
            return super().decode(pipeline, latent)

    @override
    def statistics(self, vae: Any) -> tuple[Tensor | float, Tensor | float]:
        mean, std = vae.config.get("latents_mean"), vae.config.get("latents_std")
        if mean is None or std is None:
            return super().statistics(vae)
        means, stds = (torch.tensor(values, device=vae.device)[:, None, None] for values in (mean, std))
        return means, vae.config.scaling_factor / stds


@contextmanager
def _upcast(vae: Any) -> Iterator[None]:
    """Within, an autoencoder that overflows in fp16 computes in fp32, as in its pipeline."""
    overflows = vae.dtype == torch.float16 and vae.config.force_upcast
    if overflows:
        vae.to(torch.float32)
    try:
        yield
    finally:
        if overflows:
            vae.to(torch.float16)
