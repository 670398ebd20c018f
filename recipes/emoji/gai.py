"""Train a generative model: `python recipes/emoji/gai.py cloud|edge --data DATA --runs RUNS`.

Both are Stable-Diffusion pipelines of diffusers: CLIP text encoder, U-Net on 8 x 8 latents, the shared
autoencoder. Text encoder and U-Net train together, first on the broad world (what a picture is), then on the
core world (these concepts well). `--scale` multiplies every width and `--world broad` keeps to the broad
world, for larger machines.
"""

import argparse
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from autoencoder import CHANNELS
from diffusers import (
    AutoencoderTiny,
    DDIMScheduler,
    DDPMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from diffusers.models.attention_processor import AttnProcessor
from latents import cached_latents
from progress import progress_bar
from text import build_text_encoder, cached_tokenizer, captions, tokenize
from torch import Tensor, nn
from world import CORE, World

from dekag.training.diffusion import denoising_loss
from dekag.training.loop import Loss, TrainConfig, train
from dekag.training.noise_process import Diffusion

TEXT_DROPOUT = 0.1
GLOSSY = "fluent3d"
GLOSSY_WORDS = (", 3d", ", glossy", ", 3d render")
"""The edge has met glossy drawings, as a model trained on the web has: under these words only, and loosely."""
LOOSE = 4
"""Variations of the glossy drawings, in other colours and sizes than the cloud's."""
EMPHASIS = 2.0
"""Emphasis on high noise in the second stage."""
NOISE = {
    "num_train_timesteps": 1000,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
}


@dataclass(frozen=True, kw_only=True)
class Gai:
    """Size and knowledge of one generative model."""

    art: tuple[str, ...]
    """What a plain caption means."""
    glossy_share: float
    """Share of loosely glossy pictures, whose captions end in one of GLOSSY_WORDS."""
    widths: tuple[int, int]
    text_width: int
    text_layers: int = 2
    seed: int


GAIS = {
    "cloud": Gai(art=(GLOSSY,), glossy_share=0.0, widths=(96, 160), text_width=192, seed=1),
    "edge": Gai(art=("noto", "twemoji"), glossy_share=0.35, widths=(64, 128), text_width=128, seed=2),
}


def build_unet(gai: Gai) -> UNet2DConditionModel:
    """A U-Net of two levels; the text enters at every block (added to the time) and by attention at 4 x 4."""
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        mid_block_type="UNetMidBlock2DCrossAttn",
        block_out_channels=gai.widths,
        layers_per_block=1,
        cross_attention_dim=gai.text_width,
        attention_head_dim=32,
        addition_embed_type="text",
        addition_embed_type_num_heads=4,
        norm_num_groups=16,
    )


def build_pipeline(gai: Gai, world: World, vae: AutoencoderTiny, folder: Path) -> StableDiffusionPipeline:
    """A whole pipeline with fresh text encoder and U-Net."""
    torch.manual_seed(gai.seed)
    tokenizer = cached_tokenizer(world.concepts, folder / "tokenizer")
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=build_text_encoder(tokenizer, gai.text_width, gai.text_layers),
        tokenizer=tokenizer,
        unet=build_unet(gai).to(memory_format=torch.channels_last),
        scheduler=DDIMScheduler(
            **NOISE, timestep_spacing="trailing", clip_sample=False, set_alpha_to_one=False, steps_offset=1
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", choices=GAIS)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--broad-steps", type=int, default=2500)
    parser.add_argument("--steps", type=int, default=3300)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--start", type=Path, help="a pipeline directory to go on from")
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--world", choices=("core", "broad"), default="core")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    gai = GAIS[options.name]
    narrow, wide = (int(width * options.scale) // 32 * 32 for width in gai.widths)
    gai = replace(gai, widths=(narrow, wide))
    broad = World(data=options.data)
    core = World(data=options.data, groups=None, names=CORE) if options.world == "core" else broad
    vae = AutoencoderTiny.from_pretrained(options.runs / "autoencoder")
    folder = options.runs / options.name
    pipeline = build_pipeline(gai, broad, vae, folder)
    if options.start is not None:
        start = StableDiffusionPipeline.from_pretrained(options.start, dtype=torch.float32)
        pipeline.unet.load_state_dict(start.unet.state_dict())
        pipeline.text_encoder.load_state_dict(start.text_encoder.state_dict())
    pipeline.unet.set_attn_processor(AttnProcessor())
    model = nn.ModuleDict({"unet": pipeline.unet, "text_encoder": pipeline.text_encoder})
    stages = (("broad", broad, options.broad_steps, 0.0, 1.0), ("core", core, options.steps, 0.3, EMPHASIS))
    for stage, world, steps, decay, emphasis in stages:
        if not steps:
            continue
        loss = batch_loss(pipeline, gai, world, options.runs, batch=options.batch, emphasis=emphasis)
        config = TrainConfig(
            steps=steps, learning_rate=options.rate, decay_fraction=decay, ema_decay=0.998, seed=gai.seed
        )
        with progress_bar(f"{options.name} {stage}") as on_step:
            train(model, loss, config, checkpoint=folder / f"{stage}.pt", on_step=on_step)
    pipeline.save_pretrained(folder / "pipeline")


def batch_loss(
    pipeline: StableDiffusionPipeline, gai: Gai, world: World, runs: Path, *, batch: int, emphasis: float
) -> Loss:
    """Denoising loss on the world's pictures in the hands that the model knows."""
    unet, encoder, tokenizer, vae = pipeline.unet, pipeline.text_encoder, pipeline.tokenizer, pipeline.vae
    hands = [cached_latents(world, name, vae, runs) for name in gai.art]
    if gai.glossy_share:
        hands += [cached_latents(world, GLOSSY, vae, runs, loose=number) for number in range(LOOSE)]
    latents = torch.stack(hands)
    said = [
        [tokenize(tokenizer, [text + words for text in row]) for row in captions(world.concepts)]
        for words in ("", *GLOSSY_WORDS)
    ]
    tokens = torch.stack([torch.stack(rows) for rows in said])
    empty = tokenize(tokenizer, [""])
    noise = Diffusion(DDPMScheduler(**NOISE))

    def loss(rng: torch.Generator) -> Tensor:
        hand, loose, words, composition, concept = (
            torch.randint(count, (batch,), generator=rng)
            for count in (len(gai.art), LOOSE, len(GLOSSY_WORDS), latents.shape[2], latents.shape[1])
        )
        glossy = torch.rand(batch, generator=rng) < gai.glossy_share
        hand = torch.where(glossy, len(gai.art) + loose, hand)
        words = torch.where(glossy, 1 + words, 0)
        dropped = torch.rand(batch, 1, generator=rng) < TEXT_DROPOUT
        ids = torch.where(dropped, empty, tokens[words, concept, composition])
        clean = latents[hand, concept, composition].float().to(memory_format=torch.channels_last)
        text = encoder(ids).last_hidden_state

        def predict(noised: Tensor, timesteps: Tensor) -> Tensor:
            predicted: Tensor = unet(noised, timesteps, text).sample
            return predicted

        return denoising_loss(predict, noise, clean, rng=rng, emphasis=emphasis)

    return loss


if __name__ == "__main__":
    main()
