"""PRX."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from typing_extensions import override

from dekag.generation.families.family import Conditioning, Family
from dekag.types import Latent


class PRX(Family):
    """Photoroom's PRX (2025): image tokens attend to the fixed states of a T5Gemma encoder; rectified flow.

    Prompts are read as they are written: the pipeline's own cleaning lower-cases them, drops words that look
    like file names or codes, and may spoil a metaword.
    """

    targets = r".*\.(img_qkv_proj|txt_kv_proj|to_out\.0|gate_proj|up_proj|down_proj)$"
    at_once = 1
    """With guidance, diffusers 0.42 gives the transformer two times however many prompts there are."""

    @override
    def arguments(self, pipeline: Any, prompts: Sequence[str]) -> dict[str, Any]:
        conditioning, empty = self.condition(pipeline, prompts), self.condition(pipeline, [""] * len(prompts))
        return {
            "prompt_embeds": conditioning["states"],
            "prompt_attention_mask": conditioning["mask"],
            "negative_prompt_embeds": empty["states"],
            "negative_prompt_attention_mask": empty["mask"],
            "use_resolution_binning": False,
        }

    @override
    def condition(self, pipeline: Any, prompts: Sequence[str]) -> Conditioning:
        encoder, tokenizer = pipeline.text_encoder, pipeline.tokenizer
        # the pipeline's own reading has no gradient
        read = tokenizer(
            list(prompts),
            padding="max_length",
            max_length=tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        ).to(encoder.device)
        mask = read.attention_mask.bool()
        return {
            "states": encoder(input_ids=read.input_ids, attention_mask=mask).last_hidden_state,
            "mask": mask,
        }

    @override
    def predict(self, pipeline: Any, noised: Latent, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        transformer = pipeline.transformer
        predicted: Tensor = transformer(
            hidden_states=noised.to(transformer.dtype),
            timestep=timesteps / pipeline.scheduler.config.num_train_timesteps,
            encoder_hidden_states=conditioning["states"],
            attention_mask=conditioning["mask"],
        ).sample
        return predicted

    @override
    def shape(self, pipeline: Any, pixels: int | None) -> tuple[int, int, int]:
        side = (pixels or pipeline.get_default_resolution()) // pipeline.vae_scale_factor
        return pipeline.vae.config.latent_channels, side, side
