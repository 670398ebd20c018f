"""What an alignment would take, said before it starts: parameters, steps, memory, disk and what is bought."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from dekag.alignment.config import MakdConfig
from dekag.alignment.generation.makd import trained_parameters
from dekag.alignment.generation.methods import MakdMethod, find_method
from dekag.data.entries import Faults
from dekag.data.images import find_pictures
from dekag.data.pictures import PictureSet
from dekag.generation.diffusers import DiffusersGenerator
from dekag.tasks.align_generation import GenerationTask
from dekag.tasks.material import ImageSource
from dekag.tasks.purchases import purchases
from dekag.world import World

FLOAT = 4
"""Bytes of a number that is trained, and of one of a latent."""
COPIES = 5
"""Of each trained number: itself, its gradient, AdamW's two moments and the moving average."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What an alignment would take; sizes in bytes. What is None does not apply, or nobody can know it."""

    method: str
    edge_parameters: int
    trained_parameters: int | None
    steps: dict[str, int]
    images_a_step: int | None
    pairs: int
    prompts: int
    weights_bytes: int
    training_bytes: int | None
    latents_bytes: int
    text_bytes: int
    to_buy: int

    @property
    def draws(self) -> float | None:
        """How often each pair is met in all steps, at most: what the edge draws itself has a share of a batch."""
        if self.images_a_step is None:
            return None
        return sum(self.steps.values()) * self.images_a_step / max(1, self.pairs)


def plan_generation(world: World, source: ImageSource, task: GenerationTask) -> Plan:
    """What `align_generation` would take; the edge is loaded, and nothing is drawn, bought, trained or written.

    Latents are counted for every pair, though a picture of several captions is encoded once. Memory is that of weights
    and of what is trained; activations come on top, in proportion to the batch. The latents and the text states are
    files. Raises InputError as `check_generation`.
    """
    edge = world.edge()
    method = find_method(task.method)
    prompts = _prompts(world, source)
    config = method.change(task.config) if isinstance(method, MakdMethod) else task.config
    trained = trained_parameters(edge, config) if isinstance(config, MakdConfig) else None
    texts = len(set(prompts)) + 1
    return Plan(
        method=task.method,
        edge_parameters=_count(edge),
        trained_parameters=trained,
        steps=method.stages(task.config),
        images_a_step=config.batch * config.accumulation if isinstance(config, MakdConfig) else None,
        pairs=len(prompts),
        prompts=texts - 1,
        weights_bytes=_weights(edge),
        training_bytes=None if trained is None else trained * FLOAT * COPIES,
        latents_bytes=len(prompts) * math.prod(edge.latent_shape) * FLOAT,
        text_bytes=texts * sum(t.numel() * t.element_size() for t in edge.read([""]).values()),
        to_buy=purchases(world, source).count,
    )


def _prompts(world: World, source: ImageSource) -> Sequence[str]:
    """The prompts of all pairs, those that are held back included."""
    place = source.folder if source.endpoint is None else None
    if place is None and not source.elsewhere and world.images is not None and not world.has_cloud:
        pictures = PictureSet(folder=world.images, pixels=world.side)
        return [
            text for text in dict.fromkeys(source.prompts(world)) for _ in pictures.by_prompt.get(text, ())
        ]
    if place is None:
        return source.prompts(world)
    _, entries = find_pictures(place, Faults(skip=source.skip_broken))
    return [caption for entry in entries for caption in entry.captions]


def _modules(edge: DiffusersGenerator) -> list[nn.Module]:
    parts: dict[str, Any] = edge.pipeline.components
    return [part for part in parts.values() if isinstance(part, nn.Module)]


def _count(edge: DiffusersGenerator) -> int:
    return sum(p.numel() for part in _modules(edge) for p in part.parameters())


def _weights(edge: DiffusersGenerator) -> int:
    return sum(p.numel() * p.element_size() for part in _modules(edge) for p in part.parameters())
