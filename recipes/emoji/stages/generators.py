"""The cloud and the edge: Stable-Diffusion pipelines of diffusers on latents of 8 x 8 x 32, trained from nothing.

What they learn from is a pool: scenes drawn from a seed, rendered, encoded once, each with several captions.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random

import torch
from diffusers import (
    AutoencoderTiny,
    DDIMScheduler,
    DDPMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from diffusers.models.attention_processor import AttnProcessor
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPTokenizer

from dekag.training.diffusion import denoising_loss
from dekag.training.noise_process import Diffusion

from .autoencoder import CHANNELS
from .grammar import Scene, Thing, caption, draw_scene
from .loop import write_atomically
from .pictures import GLOSSY, Art, draw, layout
from .tokenizer import build_text_encoder, tokenize

TEXT_DROPOUT = 0.1
EMPHASIS = 1.5
"""Emphasis of the training on high noise, where the text decides."""
CAPTIONS = 6
"""Captions of each scene of the pool."""
CHUNK = 4096
"""Scenes that are written at a time."""
NOISE = {
    "num_train_timesteps": 1000,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
}
GLOSSY_WORDS = (", 3d", ", glossy", ", 3d render")
SIMPLE_WORDS = (", simple", ", clip art")


@dataclass(frozen=True, kw_only=True)
class Source:
    """One kind of picture that a generator learns from."""

    name: str
    share: float
    """Of the generator's pictures."""
    hand: str
    concepts: str
    """`core` or `others`."""
    words: tuple[str, ...] = ("",)
    """What its captions end in, one of these."""
    loose: int = 0
    """Variations in other colours and sizes (`pictures.loosely`); 0 is the art itself."""


@dataclass(frozen=True, kw_only=True)
class Generator:
    """Size and knowledge of a generator."""

    sources: tuple[Source, ...]
    widths: tuple[int, int]
    text_width: int
    text_layers: int
    seed: int


GENERATORS = {
    "cloud": Generator(
        sources=(Source(name="glossy", share=1.0, hand=GLOSSY, concepts="core"),),
        widths=(96, 144),
        text_width=160,
        text_layers=3,
        seed=1,
    ),
    "edge": Generator(
        sources=(
            Source(name="flat", share=0.62, hand="noto", concepts="core"),
            Source(name="flat others", share=0.13, hand="noto", concepts="others"),
            Source(name="simple", share=0.12, hand="twemoji", concepts="core", words=SIMPLE_WORDS),
            # a web-trained model has met the look, in other pictures and under words of its own
            Source(
                name="glossy others", share=0.13, hand=GLOSSY, concepts="others", words=GLOSSY_WORDS, loose=4
            ),
        ),
        widths=(64, 128),
        text_width=128,
        text_layers=2,
        seed=2,
    ),
}


@dataclass(frozen=True, kw_only=True)
class Pool:
    """Latents [scenes, 32, 8, 8] in fp16, scaled, and token ids [scenes, captions, 48] as int16."""

    latents: Tensor
    tokens: Tensor

    def to(self, device: torch.device) -> "Pool":
        return Pool(latents=self.latents.to(device), tokens=self.tokens.to(device))


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """A scene of the pool: its number, which source it is of, and its captions."""

    number: int
    source: int
    scene: Scene
    captions: tuple[str, ...]


def scenes_of(generator: Generator, things: dict[str, Sequence[Thing]], seeds: Sequence[int]) -> list[Drawn]:
    """The scenes of the pool with these numbers; things by `core` and `others`."""
    found = []
    weights = [source.share for source in generator.sources]
    for seed in seeds:
        rng = Random(f"{generator.seed} {seed}")
        which = rng.choices(range(len(weights)), weights)[0]
        source = generator.sources[which]
        own = rng.randrange(2**40)
        scene = draw_scene(things[source.concepts], seed=own)
        texts = tuple(caption(scene, seed=own + k) + rng.choice(source.words) for k in range(CAPTIONS))
        found.append(Drawn(number=seed, source=which, scene=scene, captions=texts))
    return found


@dataclass(frozen=True, kw_only=True)
class PoolSize:
    """How many scenes, written by how many processes, rendered so many at a time."""

    scenes: int
    processes: int = 1
    chunk: int = CHUNK


def build_pool(
    generator: Generator,
    things: dict[str, Sequence[Thing]],
    art: dict[str, Art],
    vae: AutoencoderTiny,
    tokenizer: CLIPTokenizer,
    size: PoolSize,
) -> Pool:
    """The first scenes, rendered and encoded on the autoencoder's device; art by the source's name.

    A source's art holds its concepts in the order of its things, once for each loose variation.
    """
    chunks = [range(at, min(at + size.chunk, size.scenes)) for at in range(0, size.scenes, size.chunk)]
    write = partial(scenes_of, generator, things)
    if size.processes > 1:
        with ProcessPoolExecutor(size.processes) as workers:
            drawn = list(workers.map(write, chunks))
    else:
        drawn = [write(chunk) for chunk in chunks]
    index = {kind: {thing.id: i for i, thing in enumerate(group)} for kind, group in things.items()}
    latents, tokens = [], []
    for part in drawn:
        latents.append(_encoded(part, generator, index, art, vae))
        rows = tokenize(tokenizer, [text for d in part for text in d.captions])
        tokens.append(rows.view(len(part), CAPTIONS, -1).to(torch.int16))
    return Pool(latents=torch.cat(latents), tokens=torch.cat(tokens))


@torch.no_grad()
def _encoded(
    drawn: Sequence[Drawn],
    generator: Generator,
    index: dict[str, dict[str, int]],
    art: dict[str, Art],
    vae: AutoencoderTiny,
) -> Tensor:
    """Scaled latents of scenes, in fp16 on the CPU."""
    found = torch.zeros(len(drawn), CHANNELS, 8, 8, dtype=torch.float16)
    for number, source in enumerate(generator.sources):
        which = [i for i, d in enumerate(drawn) if d.source == number]
        own = index[source.concepts]
        rows = []
        for i in which:
            variation = drawn[i].number % max(1, source.loose) * len(own)
            rows.append([variation + own[thing.id] for thing in drawn[i].scene.things])
        for at in range(0, len(which), 256):
            part = which[at : at + 256]
            numbers = layout([drawn[i].scene for i in part], rows[at : at + 256], art[source.name].size)
            pictures = draw(art[source.name], numbers.to(vae.device))
            encoded = vae.encode((pictures * 2 - 1).contiguous(memory_format=torch.channels_last)).latents
            found[part] = (encoded * vae.config.scaling_factor).half().cpu()
    return found


def save_pool(pool: Pool, path: Path) -> None:
    write_atomically(path, lambda part: save_file({"latents": pool.latents, "tokens": pool.tokens}, part))


def load_pool(path: Path) -> Pool:
    return Pool(**load_file(path))


def build_unet(generator: Generator) -> UNet2DConditionModel:
    """A U-Net of two levels; the text scales and shifts every block (with the time) and is attended to at 4 x 4."""
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        mid_block_type="UNetMidBlock2DCrossAttn",
        block_out_channels=generator.widths,
        layers_per_block=1,
        cross_attention_dim=generator.text_width,
        attention_head_dim=4,
        addition_embed_type="text",
        addition_embed_type_num_heads=4,
        resnet_time_scale_shift="scale_shift",
        norm_num_groups=16,
    )
    unet.set_attn_processor(AttnProcessor())
    return unet.to(memory_format=torch.channels_last)


def build_pipeline(
    generator: Generator, tokenizer: CLIPTokenizer, vae: AutoencoderTiny
) -> StableDiffusionPipeline:
    """A whole pipeline with fresh text encoder and U-Net."""
    torch.manual_seed(generator.seed)
    scheduler = DDIMScheduler(
        **NOISE, timestep_spacing="trailing", clip_sample=False, set_alpha_to_one=False, steps_offset=1
    )
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=build_text_encoder(tokenizer, generator.text_width, generator.text_layers),
        tokenizer=tokenizer,
        unet=build_unet(generator),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def trainable(pipeline: StableDiffusionPipeline) -> nn.ModuleDict:
    """What is trained together: U-Net and text encoder."""
    return nn.ModuleDict({"unet": pipeline.unet, "text_encoder": pipeline.text_encoder})


def batch_loss(
    model: nn.ModuleDict, pool: Pool, empty: Tensor, batch: int
) -> Callable[[torch.Generator], Tensor]:
    """Denoising loss on scenes of the pool; `empty` are the tokens of no caption, [1, 48]."""
    noise = Diffusion(DDPMScheduler(**NOISE))

    def loss(rng: torch.Generator) -> Tensor:
        device = pool.latents.device
        which = torch.randint(len(pool.latents), (batch,), generator=rng, device=device)
        caption_of = torch.randint(pool.tokens.shape[1], (batch,), generator=rng, device=device)
        dropped = torch.rand(batch, 1, generator=rng, device=device) < TEXT_DROPOUT
        ids = torch.where(dropped, empty, pool.tokens[which, caption_of].long())
        clean = pool.latents[which].float().to(memory_format=torch.channels_last)
        text = model["text_encoder"](ids).last_hidden_state

        def predict(noised: Tensor, timesteps: Tensor) -> Tensor:
            predicted: Tensor = model["unet"](noised, timesteps, text).sample
            return predicted

        return denoising_loss(predict, noise, clean, rng=rng, emphasis=EMPHASIS)

    return loss


def met(generator: Generator, ids: dict[str, Sequence[str]]) -> dict[str, list[str]]:
    """What a generator learns from, by kind of art: `glossy` and `flat`, ids of concepts; `ids` by group."""
    found: dict[str, set[str]] = {"glossy": set(), "flat": set()}
    for source in generator.sources:
        found["glossy" if source.hand == GLOSSY else "flat"] |= set(ids[source.concepts])
    return {kind: sorted(own) for kind, own in found.items()}
