"""The command line with the preset `tiny`: `torchrun --nproc_per_node 2 launched.py WORLD WORDS...`.

`tiny` is the shipped miniature with few prompts, those of WORLD/prompts.json, and few denoising steps.
"""

import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

from dekag import distillation, presets  # noqa: F401 - it must be imported before QUICK takes the class's place
from dekag.alignment import few_steps
from dekag.alignment.few_steps import FewStepConfig
from dekag.cli import main
from dekag.generation.diffusers import Sampling

PROMPTS = {
    "distill": ["a red apple on a blue background", "a cat face on a pink background"],
    "validation": ["a green frog on a white background", "a blue fish on a red background"],
    "prior": ["a yellow banana on a black background", "a pink pig on a green background"],
}
QUICK = partial(FewStepConfig, train_steps=2)


def tiny(world: Path) -> presets.Preset:
    return replace(presets.emoji(), world=str(world), sampling=Sampling(steps=2, guidance=2.0))


if __name__ == "__main__":
    presets.PRESETS["tiny"] = partial(tiny, Path(sys.argv.pop(1)))
    few_steps.FewStepConfig = QUICK  # type: ignore[misc, assignment]
    main()
