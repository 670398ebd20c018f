"""Stable Diffusion 1 and 2."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from typing_extensions import override

from dekag.generation.families.family import Conditioning, Family
from dekag.types import Latent


class StableDiffusion(Family):
    """Stable Diffusion 1 and 2 (Rombach et al. 2022): a U-Net, one CLIP text encoder."""

    denoiser = "unet"
    targets = (
        r".*(conv|conv1|conv2|conv_shortcut|conv_in|conv_out|time_emb_proj"
        r"|to_[qkv]|to_out\.0|proj_in|proj_out|net\.0\.proj|net\.2)$"
    )

    @override
    def condition(self, pipeline: Any, prompts: Sequence[str]) -> Conditioning:
        device = pipeline.text_encoder.device
        states, _ = pipeline.encode_prompt(
            list(prompts), device, num_images_per_prompt=1, do_classifier_free_guidance=False
        )
        return {"states": states}

    @override
    def predict(self, pipeline: Any, noised: Latent, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        unet = pipeline.unet
        predicted: Tensor = unet(noised.to(unet.dtype), timesteps, conditioning["states"]).sample
        return predicted

    @override
    def shape(self, pipeline: Any, pixels: int | None) -> tuple[int, int, int]:
        config = pipeline.unet.config
        side = config.sample_size if pixels is None else pixels // pipeline.vae_scale_factor
        rows, cols = side if isinstance(side, list | tuple) else (side, side)
        return config.in_channels, rows, cols
