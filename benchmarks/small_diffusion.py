"""The model and the data of the benchmark: Stable Diffusion with every width divided by four, random weights.

Depths, token count and the factor 8 of the autoencoder are those of Stable Diffusion 1.5, so that the shares
of the three networks in the work of a training step are as they are there. Random weights cost what trained
ones cost.
"""

import json
from itertools import product
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image, ImageDraw
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

PIXELS = 128
COLOURS = ("red", "green", "blue", "orange", "purple", "brown", "teal", "gold")
SHAPES = ("disc", "square", "ring", "cross")
SIZES = {"small": 24, "large": 48}
TOKENS = 77


def captions() -> list[str]:
    """64 captions."""
    return [f"a {size} {colour} {shape} on white" for size, colour, shape in product(SIZES, COLOURS, SHAPES)]


def draw(caption: str) -> Image.Image:
    """The picture of a caption, 128 x 128."""
    _, size, colour, shape, *_ = caption.split()
    radius, middle = SIZES[size], PIXELS // 2
    picture = Image.new("RGB", (PIXELS, PIXELS), "white")
    pen, box = ImageDraw.Draw(picture), (middle - radius, middle - radius, middle + radius, middle + radius)
    if shape == "disc":
        pen.ellipse(box, fill=colour)
    elif shape == "ring":
        pen.ellipse(box, outline=colour, width=8)
    elif shape == "square":
        pen.rectangle(box, fill=colour)
    else:
        pen.line(box, fill=colour, width=8)
        pen.line((box[0], box[3], box[2], box[1]), fill=colour, width=8)
    return picture


def write_data(folder: Path) -> None:
    """An image folder of the 64 pictures, with their captions in metadata.jsonl."""
    folder.mkdir(parents=True)
    lines = []
    for at, caption in enumerate(captions()):
        draw(caption).save(folder / f"{at:02d}.png")
        lines.append(json.dumps({"file_name": f"{at:02d}.png", "text": caption}))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")


def write_model(folder: Path) -> dict[str, int]:
    """A StableDiffusionPipeline in `folder`; returns the parameters of its networks."""
    torch.manual_seed(0)
    blank = CLIPTokenizer(model_max_length=TOKENS, bos_token="<|startoftext|>", eos_token="<|endoftext|>")
    tokenizer = blank.train_new_from_iterator(captions(), vocab_size=400)
    networks = {"vae": _vae(), "text_encoder": _text_encoder(tokenizer), "unet": _unet()}
    StableDiffusionPipeline(
        tokenizer=tokenizer,
        scheduler=DDPMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            clip_sample=False,
            steps_offset=1,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
        **networks,
    ).save_pretrained(folder)
    return {name: sum(p.numel() for p in network.parameters()) for name, network in networks.items()}


def _vae() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(32, 64, 128, 128),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=PIXELS,
    )


def _text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=192,
            intermediate_size=768,
            num_hidden_layers=12,
            num_attention_heads=3,
            max_position_embeddings=TOKENS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def _unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=PIXELS // 8,
        block_out_channels=(80, 160, 320, 320),
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        layers_per_block=2,
        attention_head_dim=2,
        cross_attention_dim=192,
        norm_num_groups=8,
    )
