"""Copy what was trained into the package, in fp16: `python recipes/emoji/export.py --data DATA --runs RUNS`.

Writes the pipelines, judges, codec and prompts below `src/dekag/world/weights/emoji`. The bundles are written
there by `dekag align generation` and `dekag align transmission`.
"""

import argparse
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderTiny, StableDiffusionPipeline
from transformers import CLIPModel, ViTModel
from world import COMPOSITIONS, CORE, HELD_OUT_COMPOSITIONS, Composition, Concept, World, caption

from dekag.codec import load_codec, save_codec

TARGET = Path(__file__).parents[2] / "src" / "dekag" / "world" / "weights" / "emoji"
VALIDATION_EVERY = 9
"""Every ninth `distill` concept is kept from distillation, to choose its settings on."""
DISTILLED_COMPOSITIONS = 12
"""Compositions that distillation sees of each concept."""

PLANTS = frozenset(
    """evergreen tree; palm tree; cactus; tulip; rose; sunflower; four leaf clover; maple leaf; cherry blossom;
    mushroom""".replace("\n    ", " ").split("; ")
)
DOMAINS: dict[str, Callable[[Concept], bool]] = {
    "food": lambda concept: concept.group == "food-drink",
    "animals": lambda concept: concept.group == "animals-nature" and concept.name not in PLANTS,
    "faces": lambda concept: concept.group == "smileys-emotion" and "heart" not in concept.name.split(),
}
"""Domains that have a bundle of their own, and what belongs to them."""


def prompts(world: World, broad: World) -> dict[str, list[str]]:
    """Prompts by split.

    `validation` has kept concepts, and distilled ones in compositions that are neither distilled nor reported on.
    `prior` names other `distill` concepts of the broad world; `accuracy` asks for every concept on one and the
    same background.
    """
    rng = torch.Generator().manual_seed(0)
    seen = [c for c in COMPOSITIONS if c not in HELD_OUT_COMPOSITIONS]
    unseen = sorted(HELD_OUT_COMPOSITIONS, key=lambda c: (c.colour, c.placement))

    def some(options: list[Composition], count: int) -> list[Composition]:
        return [options[i] for i in torch.randperm(len(options), generator=rng)[:count]]

    known = [c for c in world.concepts if c.split == "distill"]
    validation = known[::VALIDATION_EVERY]
    held_out = [c for c in world.concepts if c.split == "heldout"]
    shown = {c: some(seen, DISTILLED_COMPOSITIONS) for c in known}
    new = {c: some(unseen, 4) for c in known}
    splits = {
        "distill": [caption(c, s) for c in known if c not in validation for s in shown[c]],
        "prior": [
            caption(c, some(seen, 1)[0])
            for c in broad.concepts
            if c.split == "distill" and c.name not in CORE
        ],
        "validation": [caption(c, s) for c in validation for s in new[c]]
        + [caption(c, new[c][1]) for c in known[::2] if c not in validation],
        "compositions": _shuffled([caption(c, new[c][0]) for c in known if c not in validation], rng),
        "concepts": _shuffled([caption(c, s) for c in held_out for s in some(list(COMPOSITIONS), 1)], rng),
        "accuracy": _shuffled([caption(c, COMPOSITIONS[0]) for c in known], rng),
    }
    concept_of = {caption(c, s): c for c in world.concepts for s in COMPOSITIONS}
    domains = {
        f"{split}:{domain}": [text for text in splits[split] if belongs(concept_of[text])]
        for domain, belongs in DOMAINS.items()
        for split in ("distill", "validation", "compositions", "concepts")
    }
    return {**splits, **domains}


def _shuffled(texts: list[str], rng: torch.Generator) -> list[str]:
    return [texts[i] for i in torch.randperm(len(texts), generator=rng)]


def _strip_unknown(path: Path) -> None:
    """Drop a key that diffusers writes for this class and then warns about when it reads it."""
    config = json.loads(path.read_text())
    config.pop("block_out_channels", None)
    path.write_text(json.dumps(config, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--runs", type=Path, required=True)
    options = parser.parse_args()

    TARGET.mkdir(parents=True, exist_ok=True)
    vae = AutoencoderTiny.from_pretrained(options.runs / "autoencoder").half()
    for name in ("cloud", "edge"):
        folder = options.runs / name / "pipeline"
        if folder.exists():
            pipeline = StableDiffusionPipeline.from_pretrained(folder, vae=vae, dtype=torch.float16)
            pipeline.save_pretrained(TARGET / name)
            _strip_unknown(TARGET / name / "vae" / "config.json")
    for name, kind in (("mini-clip", CLIPModel), ("mini-dino", ViTModel)):
        folder = options.runs / name / "model"
        if folder.exists():
            shutil.copytree(folder, TARGET / name, dirs_exist_ok=True)
            extra: dict[str, Any] = {"add_pooling_layer": False} if kind is ViTModel else {}
            kind.from_pretrained(folder, dtype=torch.float16, **extra).save_pretrained(TARGET / name)
    if (options.runs / "codec" / "model").exists():
        save_codec(load_codec(options.runs / "codec" / "model"), TARGET / "codec")
    splits = prompts(World(data=options.data, groups=None, names=CORE), World(data=options.data))
    (TARGET / "prompts.json").write_text(json.dumps(splits, indent=0) + "\n")


if __name__ == "__main__":
    main()
