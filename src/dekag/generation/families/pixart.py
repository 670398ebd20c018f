"""PixArt-Sigma."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from typing_extensions import override

from dekag.generation.families.family import Conditioning, Family, OnLatents
from dekag.types import Latent

PIXART_TOKENS = 300
"""`max_sequence_length` of the pipeline."""


class PixArtSigma(Family):
    """PixArt-Sigma (Chen et al. 2024): image tokens attend to the states of a T5 encoder.

    Its captions are not cleaned and its pictures are not resized: both would depend on the packages that happen to
    be installed, or on the size of the picture.
    """

    targets = r".*\.(to_[qkv]|to_out\.0|net\.0\.proj|net\.2)$"

    @override
    def arguments(self, pipeline: Any, prompts: Sequence[str]) -> dict[str, Any]:
        return {"prompt": list(prompts), "clean_caption": False, "use_resolution_binning": False}

    @override
    def length(self, tokenizer: Any, prompt: str) -> int:
        # as the pipeline reads it
        return super().length(tokenizer, prompt.lower().strip())

    @override
    def limit(self, tokenizer: Any) -> int:
        return min(PIXART_TOKENS, super().limit(tokenizer))

    @override
    def condition(self, pipeline: Any, prompts: Sequence[str]) -> Conditioning:
        states, mask, _, _ = pipeline.encode_prompt(list(prompts), do_classifier_free_guidance=False)
        return {"states": states, "mask": mask}

    @override
    def predict(self, pipeline: Any, noised: Latent, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        transformer = pipeline.transformer
        predicted: Tensor = transformer(
            noised.to(transformer.dtype),
            encoder_hidden_states=conditioning["states"],
            encoder_attention_mask=conditioning["mask"],
            timestep=timesteps.expand(len(noised)),
            added_cond_kwargs={"resolution": None, "aspect_ratio": None},
        ).sample
        # a learned variance comes behind the noise, and no sampler uses it
        return predicted[:, : noised.shape[1]]

    @override
    def shape(self, pipeline: Any, pixels: int | None) -> tuple[int, int, int]:
        config = pipeline.transformer.config
        side = config.sample_size if pixels is None else pixels // pipeline.vae_scale_factor
        return config.in_channels, side, side

    @override
    def watched(self, told: OnLatents) -> dict[str, Any]:
        return {"callback": lambda step, timestep, latents: told(step, latents)}
