"""Latents of every concept in every composition, cached: the training set of the GAIs and of the codec."""

from pathlib import Path

import torch
from diffusers import AutoencoderTiny
from safetensors.torch import load_file, save_file
from torch import Tensor
from world import COMPOSITIONS, World, render


@torch.no_grad()
def encode_art(world: World, name: str, vae: AutoencoderTiny) -> Tensor:
    """Scaled latents of one art set, fp16 [concepts, compositions, channels, rows, cols]."""
    art = world.art(name)
    rows = []
    for composition in COMPOSITIONS:
        images = render(art, [composition] * len(art))
        rows.append((vae.encode(images * 2 - 1).latents * vae.config.scaling_factor).half())
    return torch.stack(rows, dim=1)


def cached_latents(world: World, name: str, vae: AutoencoderTiny, runs: Path) -> Tensor:
    """As `encode_art`, kept in `runs`; the encoder is closed-form, so the cache never goes stale."""
    path = runs / "latents" / f"{name}-{len(world.concepts)}-{world.size}.safetensors"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        save_file({"latents": encode_art(world, name, vae)}, part)
        part.replace(path)
    return load_file(path)["latents"]
