"""FLUX.2 klein."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from dekag.generation.families.family import Conditioning, Family
from dekag.types import Latent

FLUX2_TOKENS = 512
"""`max_sequence_length` of FLUX.2's pipelines, the words around the prompt included."""


@dataclass(frozen=True)
class Flux2Klein(Family):
    """FLUX.2 klein (Black Forest Labs 2026): a two-stream transformer with rectified flow.

    It is conditioned on states of several layers of a Qwen3 language model. Latents are 2 x 2 patches of the
    autoencoder's, whitened.
    """

    layers: tuple[int, ...] = (9, 18, 27)
    """Layers of the language model whose states are read."""
    targets = (
        r".*(\.to_[qkv]|\.to_out\.0|single_transformer_blocks\.\d+\.attn\.to_out|\.add_[qkv]_proj|\.to_add_out"
        r"|\.to_qkv_mlp_proj|\.linear_in|\.linear_out)$"
    )

    @override
    def arguments(self, pipeline: Any, prompts: Sequence[str]) -> dict[str, Any]:
        return {"prompt": list(prompts), "text_encoder_out_layers": self.layers}

    @override
    def length(self, tokenizer: Any, prompt: str) -> int:
        turn = [{"role": "user", "content": prompt}]
        # as the pipeline words it
        text = tokenizer.apply_chat_template(
            turn, tokenize=False, add_generation_prompt=True, enable_thinking=False
        )
        return super().length(tokenizer, text)

    @override
    def limit(self, tokenizer: Any) -> int:
        return min(FLUX2_TOKENS, super().limit(tokenizer))

    @override
    def condition(self, pipeline: Any, prompts: Sequence[str]) -> Conditioning:
        states, places = pipeline.encode_prompt(list(prompts), text_encoder_out_layers=self.layers)
        return {"states": states, "places": places}

    @override
    def predict(self, pipeline: Any, noised: Latent, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        transformer = pipeline.transformer
        predicted: Tensor = transformer(
            hidden_states=noised.to(transformer.dtype).flatten(2).mT,
            timestep=timesteps / 1000,
            encoder_hidden_states=conditioning["states"],
            txt_ids=conditioning["places"],
            img_ids=pipeline._prepare_latent_ids(noised).to(noised.device),
        ).sample
        return predicted.mT.reshape(noised.shape)

    @override
    def shape(self, pipeline: Any, pixels: int | None) -> tuple[int, int, int]:
        scale = pipeline.vae_scale_factor
        side = (pixels or pipeline.default_sample_size * scale) // (2 * scale)
        return pipeline.transformer.config.in_channels, side, side

    @override
    def scaled(self, vae: Any, raw: Tensor) -> Latent:
        return super().scaled(vae, torch.nn.functional.pixel_unshuffle(raw, 2))

    @override
    def unscaled(self, vae: Any, latent: Latent) -> Tensor:
        return torch.nn.functional.pixel_shuffle(super().unscaled(vae, latent), 2)

    @override
    def statistics(self, vae: Any) -> tuple[Tensor | float, Tensor | float]:
        mean, variance = (
            values[:, None, None].float() for values in (vae.bn.running_mean, vae.bn.running_var)
        )
        return mean, (variance + vae.config.batch_norm_eps).rsqrt()

    @override
    def from_pipeline(self, pipeline: Any, latents: Tensor) -> Latent:
        return self.scaled(pipeline.vae, latents.float())

    @override
    def from_step(self, latents: Tensor, *, like: Latent) -> Latent:
        return latents.float().mT.reshape(like.shape)
