"""Pipelines of real families with random weights: the same classes, a few thousand parameters, no downloads."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLFlux2,
    AutoencoderKLQwenImage,
    DDIMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    PRXPipeline,
    PRXTransformer2DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    GemmaTokenizer,
    PreTrainedTokenizerBase,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3Model,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)
from transformers.models.t5gemma.configuration_t5gemma import T5GemmaConfig, T5GemmaModuleConfig
from transformers.models.t5gemma.modeling_t5gemma import T5GemmaEncoder

from dekag.generation.families import Flux2Klein

PIXELS = 16
"""Side of the pictures; every autoencoder here halves it."""
TOKENS = 32
WIDTH = 16
LAYERS = Flux2Klein().layers
"""Layers of the language model that FLUX.2 reads, the tiny one as well."""
CAPTIONS = ["a red apple on a blue background", "a cat face on a pink background", "a picture of a tree"]
CHAT = (
    "{% for message in messages %}<|user|>{{ message['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def stable_diffusion(
    *, prediction: str = "epsilon", channels: int = 4, pixels: int = PIXELS
) -> StableDiffusionPipeline:
    """Stable Diffusion; `prediction` is epsilon or v_prediction, `channels` are those of the latents."""
    tokenizer = trained(CLIPTokenizer)
    return StableDiffusionPipeline(
        vae=autoencoder(channels=channels, pixels=pixels),
        text_encoder=CLIPTextModel(clip_config(tokenizer)),
        tokenizer=tokenizer,
        unet=UNet2DConditionModel(**unet_config(WIDTH, channels=channels, pixels=pixels)),
        scheduler=DDIMScheduler(
            beta_schedule="scaled_linear", clip_sample=False, prediction_type=prediction, steps_offset=1
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def stable_diffusion_xl(*, channels: int = 4, pixels: int = PIXELS) -> StableDiffusionXLPipeline:
    """Stable Diffusion XL: two text encoders of different widths, of which the second gives a pooled state."""
    tokenizer, wider = trained(CLIPTokenizer), 2 * WIDTH
    sizes = {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 6 * 8 + wider,
        "use_linear_projection": True,
    }
    return StableDiffusionXLPipeline(
        vae=autoencoder(channels=channels, pixels=pixels),
        text_encoder=CLIPTextModel(clip_config(tokenizer)),
        text_encoder_2=CLIPTextModelWithProjection(clip_config(tokenizer, width=wider)),
        tokenizer=tokenizer,
        tokenizer_2=trained(CLIPTokenizer),
        unet=UNet2DConditionModel(**unet_config(WIDTH + wider, channels=channels, pixels=pixels), **sizes),
        scheduler=EulerDiscreteScheduler(beta_schedule="scaled_linear", timestep_spacing="leading"),
        add_watermarker=False,
    )


def stable_diffusion_3(*, t5: bool = True) -> StableDiffusion3Pipeline:
    """Stable Diffusion 3: two CLIP text encoders side by side, and behind them a T5 encoder, which may be missing."""
    tokenizer, wider = trained(CLIPTokenizer), 2 * WIDTH
    transformer = SD3Transformer2DModel(
        sample_size=PIXELS // 2,
        in_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=4 * WIDTH,
        caption_projection_dim=16,
        pooled_projection_dim=WIDTH + wider,
        out_channels=4,
        pos_embed_max_size=16,
        dual_attention_layers=(0,),
        qk_norm="rms_norm",
    )
    return StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=autoencoder(shift_factor=0.1),
        text_encoder=CLIPTextModelWithProjection(clip_config(tokenizer)),
        tokenizer=tokenizer,
        text_encoder_2=CLIPTextModelWithProjection(clip_config(tokenizer, width=wider)),
        tokenizer_2=trained(CLIPTokenizer),
        text_encoder_3=t5_encoder(width=4 * WIDTH) if t5 else None,
        tokenizer_3=trained(T5Tokenizer, extra_ids=0) if t5 else None,
    )


def prx(*, channels: int = 4, pixels: int = PIXELS) -> PRXPipeline:
    """PRX with a T5Gemma encoder and the autoencoder of FLUX.1."""
    tokenizer = trained(GemmaTokenizer)
    sizes: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "query_pre_attn_scalar": 8,
        "pad_token_id": tokenizer.pad_token_id,
        "dropout_rate": 0.0,
    }
    # transformers' annotation asks for the configuration of encoder and decoder together
    config: Any = T5GemmaModuleConfig(**sizes)
    encoder = T5GemmaEncoder(config)
    transformer = PRXTransformer2DModel(
        in_channels=channels, context_in_dim=WIDTH, hidden_size=16, num_heads=2, depth=2, axes_dim=[4, 4]
    )
    return PRXPipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        text_encoder=encoder,
        tokenizer=tokenizer,
        vae=autoencoder(channels=channels, pixels=pixels, shift_factor=0.1),
        default_sample_size=pixels,
    )


def flux2_klein() -> Flux2KleinPipeline:
    """FLUX.2 klein, base, with a Qwen3 language model."""
    tokenizer = trained(Qwen2Tokenizer)
    tokenizer.chat_template = CHAT
    transformer = Flux2Transformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=len(LAYERS) * WIDTH,
        timestep_guidance_channels=16,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=False,
    )
    return Flux2KleinPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=AutoencoderKLFlux2(**autoencoder_config()),
        text_encoder=Qwen3ForCausalLM(qwen_config(tokenizer, layers=max(LAYERS) + 1)),
        tokenizer=tokenizer,
        transformer=transformer,
    )


def pixart_sigma() -> PixArtSigmaPipeline:
    """PixArt-Sigma with a T5 encoder."""
    transformer = PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=1,
        cross_attention_dim=16,
        sample_size=PIXELS // 2,
        caption_channels=WIDTH,
        use_additional_conditions=False,
    )
    return PixArtSigmaPipeline(
        tokenizer=trained(T5Tokenizer, extra_ids=0),
        text_encoder=t5_encoder(width=WIDTH),
        vae=autoencoder(),
        transformer=transformer,
        scheduler=DPMSolverMultistepScheduler(),
    )


def z_image() -> ZImagePipeline:
    """Z-Image with a Qwen3 language model."""
    tokenizer = trained(Qwen2Tokenizer)
    tokenizer.chat_template = CHAT
    transformer = ZImageTransformer2DModel(
        in_channels=4,
        dim=32,
        n_layers=1,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=WIDTH,
        axes_dims=[8, 4, 4],
        axes_lens=[1024, 32, 32],
    )
    return ZImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=autoencoder(shift_factor=0.1),
        text_encoder=Qwen3Model(qwen_config(tokenizer, layers=2)),
        tokenizer=tokenizer,
        transformer=transformer,
    )


def qwen_image() -> QwenImagePipeline:
    """Qwen-Image with a Qwen2.5-VL language model."""
    tokenizer = trained(Qwen2Tokenizer)
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": WIDTH,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "rope_parameters": {"mrope_section": [1, 1, 2], "rope_type": "default", "rope_theta": 1e6},
    }
    vision = {
        "depth": 1,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_heads": 2,
        "out_hidden_size": WIDTH,
    }
    transformer = QwenImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        axes_dims_rope=(8, 4, 4),
    )
    vae = AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 2],
        num_res_blocks=1,
        temperal_downsample=[False],
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    )
    return QwenImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=vae,
        text_encoder=Qwen2_5_VLForConditionalGeneration(
            Qwen2_5_VLConfig(text_config=text, vision_config=vision)
        ),
        tokenizer=tokenizer,
        transformer=transformer,
    )


EDGES: dict[str, Callable[[], Any]] = {
    "sd-epsilon": partial(stable_diffusion, prediction="epsilon"),
    "sd-v": partial(stable_diffusion, prediction="v_prediction"),
    "sdxl": stable_diffusion_xl,
    "prx": prx,
    "flux2-klein": flux2_klein,
    "sd3": stable_diffusion_3,
    "pixart-sigma": pixart_sigma,
}
CLOUDS: dict[str, Callable[[], Any]] = {
    "z-image": z_image,
    "qwen-image": qwen_image,
}


def build(make: Callable[[], Any], *, seed: int = 0) -> Any:
    """A pipeline of which every weight is random and none is zero."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        pipeline: DiffusionPipeline = make()
        for part in pipeline.components.values():
            if isinstance(part, nn.Module):
                randomise(part.eval())
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def save(pipeline: Any, folder: Path) -> None:
    """Write a pipeline as a hub holds it."""
    pipeline.save_pretrained(folder)
    if isinstance(pipeline, PRXPipeline):
        # PRX comes with the configuration of a whole T5Gemma, of which only the encoder is there
        part = pipeline.text_encoder.config
        T5GemmaConfig(encoder=part, decoder=part).save_pretrained(folder / "text_encoder")


@torch.no_grad()
def randomise(module: nn.Module) -> None:
    """Draw the weights anew: many a transformer starts with gates of zero, through which nothing can be seen."""
    for parameter in module.parameters():
        if parameter.ndim > 1:
            parameter.normal_(std=parameter[0].numel() ** -0.5)
        else:
            parameter.add_(0.1 * torch.randn_like(parameter))
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            assert part.running_mean is not None
            assert part.running_var is not None
            part.running_mean.normal_()
            part.running_var.uniform_(0.5, 2.0)


def trained(kind: type[PreTrainedTokenizerBase], **options: Any) -> Any:
    """A tokenizer of that class, trained on a few captions."""
    bare: Any = kind(model_max_length=TOKENS, **options)
    return bare.train_new_from_iterator(CAPTIONS, vocab_size=320)


def autoencoder_config(*, channels: int = 4, pixels: int = PIXELS) -> dict[str, Any]:
    return {
        "block_out_channels": (8, 16),
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "latent_channels": channels,
        "norm_num_groups": 4,
        "layers_per_block": 1,
        "sample_size": pixels,
    }


def autoencoder(
    *, channels: int = 4, pixels: int = PIXELS, shift_factor: float | None = None
) -> AutoencoderKL:
    config = autoencoder_config(channels=channels, pixels=pixels)
    return AutoencoderKL(**config, scaling_factor=0.7, shift_factor=shift_factor)


def unet_config(cross_attention_dim: int, *, channels: int = 4, pixels: int = PIXELS) -> dict[str, Any]:
    return {
        "in_channels": channels,
        "out_channels": channels,
        "sample_size": pixels // 2,
        "block_out_channels": (8, 16),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "attention_head_dim": 2,
        "cross_attention_dim": cross_attention_dim,
    }


def clip_config(tokenizer: Any, *, width: int = WIDTH) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=TOKENS,
        projection_dim=width,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def t5_encoder(*, width: int) -> T5EncoderModel:
    words = len(trained(T5Tokenizer, extra_ids=0))
    return T5EncoderModel(
        T5Config(vocab_size=words, d_model=width, d_kv=8, d_ff=32, num_layers=2, num_heads=2)
    )


def qwen_config(tokenizer: Any, *, layers: int) -> Qwen3Config:
    return Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        bos_token_id=0,
        eos_token_id=0,
    )
