"""Measure the autoencoder and the judges on real art: `python recipes/emoji/measure.py --data DATA`; prints JSON."""

import argparse
import json
from pathlib import Path

import torch
from autoencoder import art_of, psnr_db, sample
from diffusers import AutoencoderTiny
from torch import Tensor
from world import ART, COMPOSITIONS, CORE, World, caption, render

from dekag.evaluation.accuracy import score_accuracy
from dekag.evaluation.judges import Judge, consistency, load_clip, load_dino
from dekag.evaluation.statistics import mean_interval
from dekag.world import shipped

OTHER = 5
"""Index of another composition: another background, the same placement."""


def scale_of(judge: Judge, pictures: Tensor, elsewhere: Tensor) -> dict[str, object]:
    """Cosines of known pairs; pictures [art, concepts, 3, h, w], the same with another background."""
    pairs = {
        "same_concept": (pictures[0], pictures[1]),
        "same_art": (pictures[0], pictures[0].roll(1, 0)),
        "same_picture": (pictures[0], elsewhere[0]),
    }
    return {name: mean_interval(consistency(judge, *pair)).to_json() for name, pair in pairs.items()}


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    options = parser.parse_args()

    vae = AutoencoderTiny.from_pretrained(shipped("emoji/edge") / "vae", dtype=torch.float32)
    unseen = art_of(World(data=options.data, groups=None), "heldout")
    world = World(data=options.data, groups=None, names=CORE)
    art = [world.art(name) for name in ART]
    pictures, elsewhere = (
        torch.stack([render(a, [COMPOSITIONS[i]] * len(a)) for a in art]) for i in (0, OTHER)
    )
    clip, dino = load_clip(shipped("emoji/mini-clip")), load_dino(shipped("emoji/mini-dino"))
    texts = [caption(c, COMPOSITIONS[0]) for c in world.concepts]
    scales = {"clip": scale_of(clip, pictures, elsewhere), "dino": scale_of(dino, pictures, elsewhere)}
    report = {
        "autoencoder_psnr_db": mean_interval(
            psnr_db(vae, sample(unseen, 256, torch.Generator().manual_seed(1)))
        ).to_json(),
        "clip_accuracy": score_accuracy(clip, pictures[0], texts, seeds=1).to_json(),
        **{pair: {judge: scales[judge][pair] for judge in scales} for pair in scales["clip"]},
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
