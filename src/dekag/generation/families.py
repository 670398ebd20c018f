"""What differs between families of diffusers pipelines when one is trained or drawn with as an edge-GAI.

A family knows the names of a pipeline's parts, how it reads a prompt, how it calls its denoiser and how its
latents become [batch, channels, rows, cols]. Everything else is the same for all of them. A cloud-GAI needs no
family: it is only asked for images.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.loaders import PeftAdapterMixin
from torch import Tensor
from typing_extensions import override

from dekag.types import Image, InputError, Latent

Conditioning = dict[str, Tensor]
"""What a denoiser is told of a batch of prompts, by name; every tensor is batch first."""


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


FAMILIES: dict[str, Family] = {
    "StableDiffusionPipeline": StableDiffusion(),
    "StableDiffusionXLPipeline": StableDiffusionXL(),
    "PRXPipeline": PRX(),
    "Flux2KleinPipeline": Flux2Klein(),
}
"""Family of each pipeline class that can be an edge."""


def family_of(pipeline: Any) -> Family:
    """The family of a pipeline; InputError lists the known ones."""
    name = type(pipeline).__name__
    if name not in FAMILIES:
        raise InputError(
            f"{name} is not known as an edge, only as a cloud; known edges are {', '.join(FAMILIES)}"
        )
    return FAMILIES[name]


def make_adaptable(pipeline: Any) -> None:
    """Give an edge's denoiser diffusers' methods for low-rank updates, which the class of PRX lacks."""
    family = FAMILIES.get(type(pipeline).__name__)
    if family is None:
        return
    denoiser = getattr(pipeline, family.denoiser)
    original = type(denoiser)
    if not issubclass(original, PeftAdapterMixin):
        # of the same name, so that it is saved as what it is
        denoiser.__class__ = type(
            original.__name__, (original, PeftAdapterMixin), {"__module__": original.__module__}
        )


def _likeliest(encoded: Any) -> Tensor:
    """An encoder's latents, or the mode of their distribution; its outputs name them in three ways."""
    if hasattr(encoded, "latent_dist"):
        mode: Tensor = encoded.latent_dist.mode()
        return mode
    latents: Tensor = encoded.latents if hasattr(encoded, "latents") else encoded.latent
    return latents


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
