"""G-KA measured: how consistent the edge's images are with the cloud's, between a floor and a ceiling."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from dekag.evaluation.judges import Judge
from dekag.evaluation.statistics import Mean, gap_closed, mean_interval, paired_relative_gain
from dekag.types import Generator, Image, InputError, PerImage

CEILING_SEED = 1000
EDGE_SEED = 2000
LEADING = ("dino", "clip")
"""The judges whose sum is what a gain is of, as in the paper, if both are asked."""
BASELINE = "no_ka"
"""The method that every other is compared with: the edge as it was."""
CEILING, FLOOR = "ceiling", "floor"


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """Images of the same prompts and seeds, in one order.

    prompts: index of the prompt of each image, int64 [batch].
    cloud: the reference. ceiling: the cloud again with other seeds, if there is a cloud that can draw again.
    by_method: the edge's images by method, once for each of the method's training seeds.
    """

    prompts: Int64[Tensor, " batch"]
    cloud: Image
    ceiling: Image | None = None
    by_method: Mapping[str, Sequence[Image]]


@dataclass(frozen=True, kw_only=True)
class GenerationScores:
    """Consistency with the cloud by method (and `ceiling`, `floor`) and judge, and what a method gains over `no_ka`.

    gain_percent: relative increase of the leading judges' sum. gap_closed: of the same sum, 0 is no_ka and 1 the
    ceiling. by_judge: the gap closed under each judge alone. by_training_seed: the gap closed by each training
    seed. lead: how much more of the gap MAKD closes than each other method, paired by prompt; the MAKD of the same
    steps and seeds (`makd_short`) if it is there. Without a ceiling there is no gap: these four are empty.
    """

    consistency: dict[str, dict[str, Mean]]
    gain_percent: dict[str, Mean]
    gap_closed: dict[str, Mean] = field(default_factory=dict)
    by_judge: dict[str, dict[str, Mean]] = field(default_factory=dict)
    by_training_seed: dict[str, list[float]] = field(default_factory=dict)
    lead: dict[str, Mean] = field(default_factory=dict)


def draw(generator: Generator, prompts: Sequence[str], seeds: Sequence[int]) -> Image:
    """Every prompt with every seed, prompt by prompt; on the CPU."""
    texts = [prompt for prompt in prompts for _ in seeds]
    return generator.decode(generator(texts, seeds=list(seeds) * len(prompts))).cpu()


def leading_judges(names: Sequence[str]) -> tuple[str, ...]:
    """The judges whose sum counts: those of LEADING if both are there, the others then beside them; else all."""
    return LEADING if set(LEADING) <= set(names) else tuple(names)


def score_generation(
    drawn: Drawn,
    judges: Mapping[str, Judge],
    *,
    leading: Sequence[str] | None = None,
    seed: int = 0,
) -> GenerationScores:
    """Score every method with every judge, of any names; intervals are over prompts.

    `drawn.by_method` must have `no_ka`.

    The values of a method's training seeds are averaged for each image. The floor pairs cloud images of different
    prompts. `leading` names the judges whose sum counts, by default those of `leading_judges`. `seed` drives the
    bootstrap.
    Raises InputError if a method or a judge that is needed is not there.
    """
    leaders = tuple(leading or leading_judges(list(judges)))
    if not judges or not set(leaders) <= judges.keys():
        raise InputError(f"the judges are {', '.join(judges) or 'none'}, but {', '.join(leaders)} must lead")
    if BASELINE not in drawn.by_method:
        raise InputError(f"the methods must have {BASELINE}, got {', '.join(drawn.by_method)}")
    cosines = _Cosines(drawn=drawn, leaders=leaders, seed=seed, values=_judged(drawn, judges))
    return GenerationScores(
        consistency={
            method: {name: mean_interval(_mean(v), drawn.prompts) for name, v in by_judge.items()}
            for method, by_judge in cosines.values.items()
        },
        gain_percent={
            method: paired_relative_gain(
                cosines.total(BASELINE), cosines.total(method), clusters=drawn.prompts, seed=seed
            )
            for method in cosines.methods
        },
        **({} if drawn.ceiling is None else _gap(cosines)),
    )


def _judged(drawn: Drawn, judges: Mapping[str, Judge]) -> dict[str, dict[str, list[PerImage]]]:
    """Cosine with the cloud by method and judge, for each training seed; ceiling and floor count as methods."""
    shift = int((drawn.prompts == drawn.prompts[0]).sum())
    ceiling = {} if drawn.ceiling is None else {CEILING: [drawn.ceiling]}
    against = {**drawn.by_method, **ceiling, FLOOR: [drawn.cloud.roll(shift, 0)]}
    # the cosine of `consistency`, with the cloud's images encoded once
    cloud = {name: judge(drawn.cloud) for name, judge in judges.items()}
    return {
        method: {
            name: [(cloud[name] * judge(images)).sum(1) for images in drawings]
            for name, judge in judges.items()
        }
        for method, drawings in against.items()
    }


@dataclass(frozen=True, kw_only=True)
class _Cosines:
    """Cosines with the cloud by method, judge and training seed."""

    drawn: Drawn
    leaders: tuple[str, ...]
    seed: int
    values: Mapping[str, Mapping[str, Sequence[PerImage]]]

    @property
    def methods(self) -> list[str]:
        """The methods that are compared with the baseline."""
        return [method for method in self.drawn.by_method if method != BASELINE]

    def total(self, method: str) -> PerImage:
        """Sum over the leading judges of a method's mean over its training seeds."""
        return _sum([_mean(self.values[method][name]) for name in self.leaders])

    def of_seed(self, method: str, number: int) -> PerImage:
        """As `total`, for one training seed."""
        return _sum([self.values[method][name][number] for name in self.leaders])

    def closed(self, before: PerImage, after: PerImage, ceiling: PerImage) -> Mean:
        return gap_closed(before, after, ceiling, clusters=self.drawn.prompts, seed=self.seed)

    def closed_for(self, method: str, judge: str) -> Mean:
        """The gap closed under one judge."""
        before, after, ceiling = (_mean(self.values[each][judge]) for each in (BASELINE, method, CEILING))
        return self.closed(before, after, ceiling)


def _gap(cosines: _Cosines) -> dict[str, Any]:
    """What GenerationScores has of the gap between the edge as it was and the ceiling."""
    plain, best = cosines.total(BASELINE), cosines.total(CEILING)
    room = float((best - plain).mean())
    methods = cosines.methods
    aligned = "makd_short" if "makd_short" in methods else "makd"
    others = [method for method in methods if method not in ("makd", aligned)] if aligned in methods else []
    return {
        "gap_closed": {method: cosines.closed(plain, cosines.total(method), best) for method in methods},
        "by_judge": {
            method: {judge: cosines.closed_for(method, judge) for judge in cosines.values[method]}
            for method in methods
        },
        "by_training_seed": {
            method: [
                float((cosines.of_seed(method, number) - plain).mean()) / room
                for number in range(len(cosines.drawn.by_method[method]))
            ]
            for method in methods
        },
        "lead": {
            method: mean_interval(
                (cosines.total(aligned) - cosines.total(method)) / room, cosines.drawn.prompts
            )
            for method in others
        },
    }


def _mean(values: Sequence[PerImage]) -> PerImage:
    return torch.stack(list(values)).mean(0)


def _sum(values: Sequence[PerImage]) -> PerImage:
    return torch.stack(list(values)).sum(0)
