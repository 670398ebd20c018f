"""Trains a tiny edge with its denoiser as it is and compiled, and prints the largest difference of the two updates.

A process of its own, since torch cannot compile code whose shapes are checked as the tests have them checked. The
denoiser is traced forwards and backwards as it is for training, but its code is not generated: that takes minutes.
"""

from dataclasses import replace
from functools import partial

import tiny_pipelines
import torch

from dekag.alignment.makd import MakdConfig, distil
from dekag.generation.diffusers import DiffusersGenerator, Sampling

PROMPTS = tiny_pipelines.CAPTIONS[:2]
QUICK = MakdConfig(
    vectors=2, rank=2, metaword_steps=1, joint_steps=2, frozen_steps=2, joint_rate=1.0, batch=2
)


def main() -> None:
    torch.compile = partial(torch.compile, backend="aot_eager")
    pipeline = tiny_pipelines.build(next(iter(tiny_pipelines.EDGES.values())))
    edge = DiffusersGenerator(pipeline=pipeline, sampling=Sampling(steps=2), pixels=tiny_pipelines.PIXELS)
    images = edge.images(PROMPTS, seeds=[5, 6]).flip(1)
    plain, compiled = (
        distil(edge, PROMPTS, images, replace(QUICK, compile=each)).adapter for each in (False, True)
    )
    moved = max(float(tensor.abs().max()) for name, tensor in plain.items() if "lora_B" in name)
    apart = max(float((plain[name] - compiled[name]).abs().max()) for name in plain)
    print(moved, apart)


if __name__ == "__main__":
    main()
