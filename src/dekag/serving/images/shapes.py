"""Batch sizes that give the same bytes on this machine, found by drawing.

What a library computes for one image can depend on how many others are in its batch, since it chooses its code by the
shape. It depends neither on the mates nor on the place among them. Which sizes agree is a property of machine, engine
and model, and is measured.
"""

import warnings
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from dekag.errors import PromptTruncatedWarning
from dekag.generation.diffusers import DiffusersGenerator

SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
"""Those that are tried; a batch between two of them is filled up."""
STEPS = 2
"""Of the sampler; each calls the denoiser in the same shapes."""
PROMPTS = ("a red apple on a blue background", "a dog", "a yellow star", "a green tree on a pink background")
Draw = Callable[[DiffusersGenerator, list[str], list[int]], tuple[Tensor | None, ...]]
"""Of a generator, prompts and seeds: tensors with a row for each image, or None."""


def equal_sizes(generator: DiffusersGenerator, most: int, draw: Draw) -> tuple[int, ...]:
    """Numbers of images, rising, each of which has the bytes that it has in a batch of `most`; the last is `most`."""
    generator = replace(generator, sampling=replace(generator.sampling, steps=STEPS, batch=most))

    def drawn(places: range) -> tuple[Tensor | None, ...]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PromptTruncatedWarning)
            return draw(generator, [PROMPTS[place % len(PROMPTS)] for place in places], list(places))

    whole = drawn(range(most))

    def agrees(size: int) -> bool:
        # the last images too: they have other places here
        return all(
            few is None or many is None or torch.equal(few, many[places.start : places.stop])
            for places in (range(size), range(most - size, most))
            for few, many in zip(drawn(places), whole, strict=True)
        )

    return (*(size for size in SIZES if size < most and agrees(size)), most)
