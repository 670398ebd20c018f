"""Draw with what is being trained, measure it, and write it as diffusers reads it."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import AutoencoderTiny, StableDiffusionPipeline
from torch import Tensor
from world import COMPOSITIONS, Concept
from world import caption as old_caption

from dekag.evaluation.accuracy import score_accuracy
from dekag.evaluation.judges import ClipJudge, load_clip
from dekag.generation.diffusers import DiffusersGenerator, Sampling
from dekag.world import shipped

from .splits import Row
from .tokenizer import forget_padding

Numbers = dict[str, float | int | None]
"""A mean with its interval, as `Mean` gives it."""
SAMPLING = Sampling(steps=12, guidance=3.0, batch=64)
CANDIDATES = 100
"""Captions that a picture's own one is told from."""


@torch.no_grad()
def drawn(pipeline: StableDiffusionPipeline, prompts: Sequence[str]) -> Tensor:
    """One picture of each prompt, with the seeds 0, 1, 2 and so on; on the CPU."""
    pipeline.set_progress_bar_config(disable=True)
    generator = DiffusersGenerator(pipeline=pipeline, sampling=SAMPLING)
    return generator.images(prompts, seeds=list(range(len(prompts))))


def accuracy(clip: ClipJudge, images: Tensor, texts: Sequence[str]) -> Numbers:
    """Share of pictures whose own prompt is the nearest of 100, with an interval."""
    return dict(score_accuracy(clip, images, texts, seeds=1).to_json())


def old_accuracy(concepts: Sequence[Concept], images: Tensor, rows: Sequence[Row]) -> Numbers:
    """As the shipped mini-clip has it, among captions of the concepts and the pattern that it was trained on.

    The pictures are those of plain statements on white, which is what that pattern says.
    """
    clip = load_clip(shipped("emoji/mini-clip"))
    by_id = {concept.id: concept for concept in concepts}
    known = _known_to_shipped()
    which = [
        i for i, row in enumerate(rows) if old_caption(by_id[row["concepts"][0]], COMPOSITIONS[0]) in known
    ]
    texts = [old_caption(by_id[rows[i]["concepts"][0]], COMPOSITIONS[0]) for i in which]
    return accuracy(clip, images[which], texts)


def _known_to_shipped() -> frozenset[str]:
    prompts = json.loads((shipped("emoji/edge").parent / "prompts.json").read_text(encoding="utf-8"))
    return frozenset(prompts["accuracy"])


def save_autoencoder(vae: AutoencoderTiny, folder: Path) -> None:
    vae.save_pretrained(folder)
    strip_unknown(folder / "config.json")


def save_pipeline(pipeline: StableDiffusionPipeline, folder: Path) -> None:
    forget_padding(pipeline.tokenizer)
    pipeline.save_pretrained(folder)
    strip_unknown(folder / "vae" / "config.json")


def strip_unknown(path: Path) -> None:
    """Drop a key that diffusers writes for AutoencoderTiny and then warns about when it reads it, and the path of
    the run, which it writes when the model was read from there."""
    config = json.loads(path.read_text(encoding="utf-8"))
    for key in ("block_out_channels", "_name_or_path"):
        config.pop(key, None)
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
