"""Stable Diffusion 3 and 3.5."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor
from typing_extensions import override

from dekag.generation.families.family import Conditioning, Family
from dekag.types import Latent

T5_TOKENS = 256
"""`max_sequence_length` of the pipeline, for its T5 encoder."""


@dataclass(frozen=True)
class StableDiffusion3(Family):
    """Stable Diffusion 3 (Esser et al. 2024): a two-stream transformer with rectified flow.

    It is conditioned on two CLIP text encoders and a T5 encoder, which may be left out to save memory.
    """

    encoders: Mapping[str, str] = field(
        default_factory=lambda: {
            "text_encoder": "tokenizer",
            "text_encoder_2": "tokenizer_2",
            "text_encoder_3": "tokenizer_3",
        }
    )
    targets: str = r".*\.(to_[qkv]|to_out\.0|add_[qkv]_proj|to_add_out|net\.0\.proj|net\.2)$"

    @override
    def fitted(self, pipeline: Any) -> Family:
        held = {name: of for name, of in self.encoders.items() if getattr(pipeline, name) is not None}
        # nothing reads what the last block makes of the text
        last = pipeline.transformer.config.num_layers - 1
        unread = rf"transformer_blocks\.{last}\.attn\.add_q_proj$"
        return replace(self, encoders=held, targets=f"(?!{unread}){self.targets}")

    @override
    def limit(self, tokenizer: Any) -> int:
        return min(T5_TOKENS, super().limit(tokenizer))

    @override
    def condition(self, pipeline: Any, prompts: Sequence[str]) -> Conditioning:
        texts = list(prompts)
        states, _, pooled, _ = pipeline.encode_prompt(texts, texts, texts, do_classifier_free_guidance=False)
        return {"states": states, "pooled": pooled}

    @override
    def predict(self, pipeline: Any, noised: Latent, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        transformer = pipeline.transformer
        predicted: Tensor = transformer(
            hidden_states=noised.to(transformer.dtype),
            timestep=timesteps,
            encoder_hidden_states=conditioning["states"],
            pooled_projections=conditioning["pooled"],
        ).sample
        return predicted

    @override
    def shape(self, pipeline: Any, pixels: int | None) -> tuple[int, int, int]:
        config = pipeline.transformer.config
        side = config.sample_size if pixels is None else pixels // pipeline.vae_scale_factor
        return config.in_channels, side, side
