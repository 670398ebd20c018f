"""Names of SGM against another implementation: diffusers' own reader of checkpoints."""

import re
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint
from random_draws import normal
from torch import nn

from dekag.bundle.exported import Exported
from dekag.bundle.kohya import kohya_tensors
from dekag.bundle.manifest import Manifest, Metrics
from dekag.bundle.sgm import plain_blocks, sgm_path
from dekag.generation.families import StableDiffusion

SDXL: dict[str, Any] = {
    "cross_attention_dim": 2048,
    "attention_head_dim": (5, 10, 20),
    "use_linear_projection": True,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
SD15: dict[str, Any] = {"cross_attention_dim": 768}
SD21: dict[str, Any] = {
    "cross_attention_dim": 1024,
    "attention_head_dim": (5, 10, 20, 20),
    "use_linear_projection": True,
}


def unet_of(config: dict[str, Any]) -> UNet2DConditionModel:
    """A U-Net of full size, without storage."""
    with torch.device("meta"):
        return UNet2DConditionModel(**config)


def layers_of(unet: nn.Module) -> dict[str, Any]:
    return {path: part for path, part in unet.named_modules() if isinstance(part, nn.Linear | nn.Conv2d)}


@pytest.mark.parametrize("config", [SD15, SD21, SDXL])
def test_every_layer_of_a_unet_has_the_name_that_checkpoints_have(config: dict[str, Any]) -> None:
    """Under these names diffusers finds every layer of SD 1.5, SD 2.1 and SDXL in a checkpoint, and no other."""
    unet = unet_of(config)
    paths, plain = list(layers_of(unet)), plain_blocks(layers_of(unet))
    names = {path: sgm_path(path, plain=plain) for path in paths}
    assert len(set(names.values())) == len(paths)
    ends = ("weight", "bias")
    checkpoint = {f"model.diffusion_model.{names[path]}.{end}": path for path in paths for end in ends}
    found = convert_ldm_unet_checkpoint(checkpoint, unet.config)
    assert found == {f"{path}.{end}": path for path in paths for end in ends}


@pytest.mark.parametrize(
    ("config", "blocks", "count"),
    [
        (SD15, "down_blocks|mid_block|up_blocks", 280),
        (SD21, "down_blocks|mid_block|up_blocks", 280),
        (SDXL, "input_blocks|middle_block|output_blocks", 790),
    ],
)
def test_kohya_calls_the_layers_of_sdxl_as_sgm_and_those_of_others_as_diffusers(
    config: dict[str, Any], blocks: str, count: int
) -> None:
    """As its trainer does, and every loader of its files therefore reads; the first upsampler among them."""
    targets = re.compile(StableDiffusion.targets)
    chosen = {path: layer for path, layer in layers_of(unet_of(config)).items() if targets.fullmatch(path)}
    assert len(chosen) == count
    lora = {f"unet.{path}": (normal(1, part.weight.shape[1]), normal(4, 1)) for path, part in chosen.items()}
    manifest = Manifest(
        kind="generation",
        base_digest="0" * 64,
        tokenizer_digest="0" * 64,
        metaword=None,
        licence="MIT",
        metrics=Metrics(),
        training_digest=None,
        quantisation="fp16",
        settings={},
        files={},
    )
    below = {path.removeprefix("unet."): pair for path, pair in lora.items()}
    update = Exported(name="x", manifest=manifest, component="unet", loras={"": below}, vectors={})
    keys = {name.partition(".")[0] for name in kohya_tensors(update, lora)}
    assert len(keys) == count
    inside = [key for key in keys if re.match(rf"lora_unet_({blocks})_", key)]
    outside = {"lora_unet_out_2"} if config is SDXL else {"lora_unet_conv_in", "lora_unet_conv_out"}
    assert keys - set(inside) == outside
    upsampler = "output_blocks_2_2_conv" if config is SDXL else "up_blocks_0_upsamplers_0_conv"
    assert f"lora_unet_{upsampler}" in keys


def test_what_has_no_name_in_sgm_has_none() -> None:
    assert sgm_path("transformer_blocks.0.attn1.to_q") is None
    assert sgm_path("encoder_hid_proj") is None
