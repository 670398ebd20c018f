"""G-KA measured: how consistent the edge's images are with the cloud's, between a floor and a ceiling."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int64
from torch import Tensor

from dekag.evaluation.judges import Judge, consistency
from dekag.evaluation.statistics import Mean, mean_interval, paired_relative_gain, way_to_ceiling
from dekag.types import Generator, Image, PerImage

CEILING_SEED = 1000
EDGE_SEED = 2000


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """Images of the same prompts and seeds, in one order.

    prompts: index of the prompt of each image, int64 [batch].
    cloud: the reference. ceiling: the cloud again with other seeds.
    arms: the edge's images by method, each with seeds of its own, so no noise is shared with the cloud.
    """

    prompts: Int64[Tensor, " batch"]
    cloud: Image
    ceiling: Image
    arms: Mapping[str, Image]


@dataclass(frozen=True, kw_only=True)
class GenerationScores:
    """Consistency with the cloud by arm (and `ceiling`, `floor`) and judge, and what an arm gains over `no_ka`.

    gain_percent: relative increase of the judges' sum. way_to_ceiling: 0 is no_ka, 1 is the ceiling.
    """

    consistency: dict[str, dict[str, Mean]]
    gain_percent: dict[str, Mean]
    way_to_ceiling: dict[str, Mean]


def draw(generator: Generator, prompts: Sequence[str], seeds: Sequence[int]) -> Image:
    """Every prompt with every seed, prompt by prompt."""
    texts = [prompt for prompt in prompts for _ in seeds]
    return generator.decode(generator(texts, seeds=list(seeds) * len(prompts)))


def score_generation(drawn: Drawn, judges: Mapping[str, Judge], *, seed: int = 0) -> GenerationScores:
    """Score every arm with every judge; `drawn.arms` must have `no_ka`. Intervals are over prompts.

    The floor pairs cloud images of different prompts. `seed` drives the bootstrap.
    """
    shift = int((drawn.prompts == drawn.prompts[0]).sum())
    against = {**drawn.arms, "ceiling": drawn.ceiling, "floor": drawn.cloud.roll(shift, 0)}
    values = {
        arm: {name: consistency(judge, drawn.cloud, images) for name, judge in judges.items()}
        for arm, images in against.items()
    }
    total: dict[str, PerImage] = {arm: torch.stack(list(v.values())).sum(0) for arm, v in values.items()}
    clusters = drawn.prompts
    methods = [arm for arm in drawn.arms if arm != "no_ka"]
    return GenerationScores(
        consistency={
            arm: {name: mean_interval(value, clusters) for name, value in by_judge.items()}
            for arm, by_judge in values.items()
        },
        gain_percent={
            arm: paired_relative_gain(total["no_ka"], total[arm], clusters=clusters, seed=seed)
            for arm in methods
        },
        way_to_ceiling={
            arm: way_to_ceiling(total["no_ka"], total[arm], total["ceiling"], clusters=clusters, seed=seed)
            for arm in methods
        },
    )
