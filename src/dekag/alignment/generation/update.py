"""What generation alignment learns, and how it is put on an edge and taken off again."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from jaxtyping import Float
from torch import Tensor

from dekag.alignment.generation import adapters
from dekag.bundle.container import plain_text
from dekag.errors import StepError
from dekag.generation.diffusers import DiffusersGenerator, Sampling
from dekag.generation.metaword import Metaword, prepare_metaword
from dekag.types import InputError

NAME = "dekag"
"""Adapter of an update unless the caller gives it a name."""
FEW = "_few"
"""Ending of the name of a second adapter, for fewer steps."""


@dataclass(frozen=True, kw_only=True, eq=False)
class GenerationUpdate:
    """An update of an edge-GAI; what a method does not use is empty.

    adapter: low-rank tensors of the denoiser by PEFT's names, scale 1. encoders: those of text encoders, by component.
    few_step: further ones of the denoiser, for drawing with `few_step_sampling`. weights: the denoiser's
    weights as a whole, after full fine-tuning.
    noise_map: orthogonal map of the cloud's initial noise. sampling: what to draw with, the generator's own if None.
    """

    metaword: Metaword | None = None
    adapter: Mapping[str, Tensor] = field(default_factory=dict)
    encoders: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    few_step: Mapping[str, Tensor] = field(default_factory=dict)
    weights: Mapping[str, Tensor] = field(default_factory=dict)
    noise_map: Float[Tensor, "channels channels"] | None = None
    sampling: Sampling | None = None
    few_step_sampling: Sampling | None = None


def apply_update(
    generator: DiffusersGenerator,
    update: GenerationUpdate,
    *,
    name: str = NAME,
    few_steps: bool = False,
    shared_noise: bool = False,
) -> DiffusersGenerator:
    """A generator that draws with the update; the given one goes on drawing without it.

    Both share the pipeline: several updates can be loaded under different names and each is used by its own
    generator. `few_steps` draws with the update's second adapter and its sampling; `shared_noise` maps the initial
    noise, so that a seed means the cloud's picture of that seed.
    Raises InputError if the update is for another base, the metaword is a word already, or it lacks what is asked for.
    """
    if few_steps and not update.few_step:
        raise StepError("the update has nothing for fewer steps", "train one that has it")
    if shared_noise and update.noise_map is None:
        raise StepError("the update has no noise map", "train one that has it")
    metaword = None
    if update.metaword is not None:
        metaword = prepare_metaword(generator.pipeline, update.metaword, generator.family.encoders)
    wanted = _wanted(generator, update, name, few_steps=few_steps)
    for _, part, tensors in wanted:
        adapters.check_fit(generator.part(part), tensors)
    if update.weights:
        generator = _with_weights(generator, update.weights)
    for key, part, tensors in wanted:
        adapters.load(generator.part(part), key, tensors)
    names = tuple(dict.fromkeys(key for key, _, _ in wanted))
    sampling = update.few_step_sampling if few_steps else update.sampling
    return replace(
        generator,
        metaword=metaword,
        adapters=names,
        sampling=generator.sampling
        if sampling is None
        else replace(sampling, batch=generator.sampling.batch),
        noise_map=update.noise_map if shared_noise else None,
    )


def remove_update(generator: DiffusersGenerator) -> DiffusersGenerator:
    """Take a generator's update out of the pipeline; with the last one the pipeline is exactly as before.

    The generator that comes back draws without the update, but with its sampling.
    """
    for name in generator.adapters:
        for part in generator.parts_with(name):
            adapters.remove(part, name)
    return replace(generator, metaword=None, adapters=(), noise_map=None)


def merge_update(generator: DiffusersGenerator) -> DiffusersGenerator:
    """A generator that draws as this one does, with the update in weights of its own, at the speed of a plain pipeline.

    Layers without an update are shared, and so is the rest of the pipeline; this generator's adapters may be removed.
    """
    pipeline = copy.copy(generator.pipeline)
    for name in (generator.family.denoiser, *generator.family.encoders):
        part = generator.part(name)
        if any(adapter in getattr(part, "peft_config", {}) for adapter in generator.adapters):
            setattr(pipeline, name, adapters.merged(part, generator.adapters))
    return replace(generator, pipeline=pipeline, adapters=())


def _wanted(
    generator: DiffusersGenerator, update: GenerationUpdate, name: str, *, few_steps: bool
) -> list[tuple[str, str, Mapping[str, Tensor]]]:
    """The adapters to load: their name, the component that each is of, and its tensors."""
    denoiser, known = generator.family.denoiser, generator.family.encoders
    if foreign := sorted(update.encoders.keys() - known.keys()):
        raise InputError(f"the update is for another base: there is no text encoder {plain_text(foreign[0])}")
    wanted = [
        (name, denoiser, update.adapter),
        *((name, part, held) for part, held in update.encoders.items()),
    ]
    if few_steps:
        wanted.append((name + FEW, denoiser, update.few_step))
    return [(key, part, tensors) for key, part, tensors in wanted if tensors]


def _with_weights(generator: DiffusersGenerator, weights: Mapping[str, Tensor]) -> DiffusersGenerator:
    """A generator with a denoiser of its own; the pipeline's other parts are shared."""
    known = generator.denoiser.state_dict()
    if {k: t.shape for k, t in weights.items()} != {k: t.shape for k, t in known.items()}:
        raise InputError("the update is for another base: it holds other weights than the denoiser")
    pipeline = copy.copy(generator.pipeline)
    denoiser = copy.deepcopy(generator.denoiser)
    denoiser.load_state_dict(dict(weights))
    setattr(pipeline, generator.family.denoiser, denoiser)
    return replace(generator, pipeline=pipeline)
