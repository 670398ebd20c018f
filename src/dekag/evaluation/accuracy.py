"""Whether a model draws what it was asked for: concept accuracy under a CLIP judge."""

from collections.abc import Sequence

import torch

from dekag.evaluation.judges import ClipJudge, concept_accuracy
from dekag.evaluation.statistics import Mean, mean_interval
from dekag.types import Image


def score_accuracy(
    clip: ClipJudge, images: Image, prompts: Sequence[str], *, seeds: int, seed: int = 0
) -> Mean:
    """Share of images whose own prompt is the nearest among 100; images are prompt by prompt, `seeds` of each.

    The 99 others are drawn from the same prompts, so these should differ in the concept alone.
    """
    truth = torch.arange(len(prompts)).repeat_interleave(seeds)
    rng = torch.Generator().manual_seed(seed)
    return mean_interval(concept_accuracy(clip, images, prompts, truth, rng=rng), truth)
