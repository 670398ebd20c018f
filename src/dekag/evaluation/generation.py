"""G-KA measured: how consistent the edge's images are with the cloud's, between a floor and a ceiling."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int64
from torch import Tensor

from dekag.evaluation.judges import Judge
from dekag.evaluation.statistics import Mean, mean_interval, paired_relative_gain, way_to_ceiling
from dekag.types import Generator, Image, PerImage

CEILING_SEED = 1000
EDGE_SEED = 2000
LEADING = ("dino", "clip")
"""The judges whose sum is what a gain is of, as in the paper; any other judge is reported beside them."""


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """Images of the same prompts and seeds, in one order.

    prompts: index of the prompt of each image, int64 [batch].
    cloud: the reference. ceiling: the cloud again with other seeds.
    arms: the edge's images by method, once for each of the method's training seeds.
    """

    prompts: Int64[Tensor, " batch"]
    cloud: Image
    ceiling: Image
    arms: Mapping[str, Sequence[Image]]


@dataclass(frozen=True, kw_only=True)
class GenerationScores:
    """Consistency with the cloud by arm (and `ceiling`, `floor`) and judge, and what an arm gains over `no_ka`.

    gain_percent: relative increase of the leading judges' sum. way_to_ceiling: 0 is no_ka, 1 is the ceiling.
    by_judge: the way to the ceiling under each judge alone. by_training_seed: way to the ceiling of each
    training seed. lead: how much further on the way MAKD is than each other method, paired by prompt; the
    MAKD of the same steps and seeds (`makd_short`) if it is there.
    """

    consistency: dict[str, dict[str, Mean]]
    gain_percent: dict[str, Mean]
    way_to_ceiling: dict[str, Mean]
    by_judge: dict[str, dict[str, Mean]]
    by_training_seed: dict[str, list[float]]
    lead: dict[str, Mean]


def draw(generator: Generator, prompts: Sequence[str], seeds: Sequence[int]) -> Image:
    """Every prompt with every seed, prompt by prompt; on the CPU."""
    texts = [prompt for prompt in prompts for _ in seeds]
    return generator.decode(generator(texts, seeds=list(seeds) * len(prompts))).cpu()


def score_generation(drawn: Drawn, judges: Mapping[str, Judge], *, seed: int = 0) -> GenerationScores:
    """Score every arm with every judge; `drawn.arms` must have `no_ka`. Intervals are over prompts.

    The values of a method's training seeds are averaged for each image. The floor pairs cloud images of different
    prompts. `seed` drives the bootstrap.
    """
    shift = int((drawn.prompts == drawn.prompts[0]).sum())
    against = {**drawn.arms, "ceiling": [drawn.ceiling], "floor": [drawn.cloud.roll(shift, 0)]}
    cloud = {name: judge(drawn.cloud) for name, judge in judges.items()}
    every = {
        arm: {
            # the cosine of `consistency`, with the cloud's images encoded once
            name: [(cloud[name] * judge(images)).sum(1) for images in drawings]
            for name, judge in judges.items()
        }
        for arm, drawings in against.items()
    }
    values = {arm: {name: _mean(v) for name, v in by.items()} for arm, by in every.items()}
    leading = [name for name in judges if name in LEADING] or list(judges)
    total = {arm: _sum([by[name] for name in leading]) for arm, by in values.items()}
    clusters = drawn.prompts
    methods = [arm for arm in drawn.arms if arm != "no_ka"]

    def way(of: PerImage, before: PerImage, ceiling: PerImage) -> Mean:
        return way_to_ceiling(before, of, ceiling, clusters=clusters, seed=seed)

    plain, best = total["no_ka"], total["ceiling"]
    room = float((best - plain).mean())
    ours = "makd_short" if "makd_short" in methods else "makd"
    return GenerationScores(
        consistency={
            arm: {name: mean_interval(value, clusters) for name, value in by_judge.items()}
            for arm, by_judge in values.items()
        },
        gain_percent={
            arm: paired_relative_gain(plain, total[arm], clusters=clusters, seed=seed) for arm in methods
        },
        way_to_ceiling={arm: way(total[arm], plain, best) for arm in methods},
        by_judge={
            arm: {
                name: way(values[arm][name], values["no_ka"][name], values["ceiling"][name])
                for name in judges
            }
            for arm in methods
        },
        by_training_seed={
            arm: [
                float((_sum([every[arm][name][i] for name in leading]) - plain).mean()) / room
                for i in range(len(drawn.arms[arm]))
            ]
            for arm in methods
        },
        lead={
            arm: mean_interval((total[ours] - total[arm]) / room, clusters)
            for arm in (methods if ours in methods else [])
            if arm not in ("makd", ours)
        },
    )


def _mean(values: Sequence[PerImage]) -> PerImage:
    return torch.stack(list(values)).mean(0)


def _sum(values: Sequence[PerImage]) -> PerImage:
    return torch.stack(list(values)).sum(0)
