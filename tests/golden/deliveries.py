"""Fixed deliveries and their PSNR: `python tests/golden/deliveries.py` prints them, `--write` keeps them.

Write them anew only where a change of numbers is meant, and name it under Numerics in CHANGELOG.md.
"""

import argparse
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from dekag.evaluation.metrics import psnr_db
from dekag.types import Condition
from dekag.world import load

KEPT = Path(__file__).with_suffix(".json")
PROMPTS = (
    "a red apple on a blue background",
    "a fox on a green background, on the left",
    "a rocket on a gray background",
)
CONDITIONS = {
    "awgn 64 uses -5 dB": Condition(uses=64, snr_db=-5.0),
    "awgn 192 uses 3.7 dB": Condition(uses=192, snr_db=3.7),
    "awgn 512 uses 20 dB": Condition(uses=512, snr_db=20.0),
    "rayleigh 128 uses 1 block 10 dB": Condition(uses=128, snr_db=10.0, rayleigh=True),
    "rayleigh 256 uses 4 blocks 5 dB": Condition(uses=256, snr_db=5.0, rayleigh=True, blocks=4),
    "rayleigh 256 uses 8 blocks 2 pilots correlation 0.9 10 dB": Condition(
        uses=256, snr_db=10.0, rayleigh=True, blocks=8, pilots=2, correlation=0.9
    ),
    "rayleigh 512 uses 512 blocks 8.7 dB": Condition(uses=512, snr_db=8.7, rayleigh=True, blocks=512),
}


def measured() -> dict[str, Any]:
    """PSNR in dB of every prompt under every condition, with both alignments and with none, and what made it."""
    found: dict[str, Any] = {}
    for name, align in (("aligned", True), ("no_ka", False)):
        system = load("emoji", align=align)
        found[name] = {}
        for cell, condition in CONDITIONS.items():
            delivery = system.deliver(PROMPTS, condition, seeds=[7, 8, 9], channel_seed=5)
            values = psnr_db(delivery.drawn, delivery.image)
            found[name][cell] = [round(value, 4) for value in values.tolist()]
            found.setdefault("bundles", {}).update(delivery.bundles)
    return {
        "made_by": "python tests/golden/deliveries.py --write",
        "versions": {name: version(name) for name in ("torch", "diffusers", "transformers", "peft")},
        "threads": torch.get_num_threads(),
        **found,
    }


def main() -> None:
    """Print or keep."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true")
    text = json.dumps(measured(), indent=1) + "\n"
    if parser.parse_args().write:
        KEPT.write_text(text)
    else:
        print(text, end="")


if __name__ == "__main__":
    main()
