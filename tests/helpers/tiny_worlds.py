"""Worlds in folders: the shipped miniature with few prompts and few denoising steps."""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dekag.world.shipped import WEIGHTS

PROMPTS = {
    "distill": ["a red apple on a blue background", "a cat face on a pink background"],
    "validation": ["a green frog on a white background", "a blue fish on a red background"],
    "prior": ["a yellow banana on a black background", "a pink pig on a green background"],
    "heldout": ["a red fish on a blue background", "a green apple on a white background"],
}
PARTS = {
    "edge": "edge",
    "cloud": "cloud",
    "codec": "codec",
    "mini-dino": "mini-dino",
    "mini-clip": "mini-clip",
    "makd": "makd",
    "cala": "cala",
}


def miniature(
    folder: Path, *, steps: int = 2, prompts: Mapping[str, Sequence[str]] = PROMPTS, **changes: Any
) -> Path:
    """Write a world of the shipped parts, which draws in few steps; `changes` replace entries of its world.json."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, part in PARTS.items():
        shutil.copytree(WEIGHTS / "emoji" / part, folder / name)
    (folder / "prompts.json").write_text(json.dumps(prompts))
    drawn = {"steps": steps, "guidance": 2.0}
    content = {
        "format": 1,
        "name": "tiny",
        "pixels": 64,
        "edge": {"source": "edge", **drawn},
        "cloud": {"source": "cloud", **drawn},
        "codec": "codec",
        "updates": {"generation": "makd", "transmission": "cala"},
        "judges": {"dino": "mini-dino", "clip": "mini-clip"},
        "prompts": "prompts.json",
        **changes,
    }
    given = {name: value for name, value in content.items() if value is not None}
    (folder / "world.json").write_text(json.dumps(given))
    return folder
