"""Runs one of the two trainings and writes when each of its optimiser steps ended; `makd_speed.py` starts it.

Both are clocked by the same hook of torch's optimisers, so neither has to be changed to be measured.
"""

import argparse
import importlib.util
import json
import runpy
import sys
import time
from pathlib import Path
from typing import Any

import torch
from small_diffusion import PIXELS
from torch.optim.optimizer import register_optimizer_step_post_hook

HERE = Path(__file__).parent
MODULES = ("to_k", "to_q", "to_v", "to_out.0")
"""What the script trains; it has no option for them."""


def main() -> None:
    args = _arguments()
    torch.set_num_threads(args.threads)
    wall: list[float] = []
    work: list[float] = []

    def ended(*_: Any) -> None:
        wall.append(time.perf_counter())
        work.append(time.process_time())

    register_optimizer_step_post_hook(ended)
    started = time.perf_counter()
    more = run_dekag(args) if args.name == "dekag" else run_diffusers(args)
    total = time.perf_counter() - started
    stages = more.pop("stages", ["script"] * len(wall))
    args.out.write_text(json.dumps({"stages": stages, "wall": wall, "work": work, "total": total, **more}))


def run_dekag(args: argparse.Namespace) -> dict[str, Any]:
    """MAKD's joint and frozen stages, `steps` of each; the stage of the metaword alone is one step."""
    import numpy as np
    from PIL import Image

    from dekag.alignment.config import MakdConfig
    from dekag.alignment.generation.makd import distil
    from dekag.alignment.generation.method import DistillationData, TrainingRun
    from dekag.generation.diffusers import load_generator

    rows = [json.loads(line) for line in (args.world / "data" / "metadata.jsonl").read_text().splitlines()]
    pictures = [np.array(Image.open(args.world / "data" / row["file_name"])) for row in rows]
    images = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2) / 255
    config = MakdConfig(
        rank=args.rank,
        targets=r".*\.(" + "|".join(MODULES).replace(".", r"\.") + ")$",
        metaword_steps=1,
        joint_steps=args.steps,
        frozen_steps=args.steps,
        batch=args.batch,
    )
    stages: list[str] = []
    generator, prompts = load_generator(args.world / "model"), [row["text"] for row in rows]
    run = TrainingRun(on_step=lambda stage, _: stages.append(stage))
    distil(generator, DistillationData(prompts=prompts, images=images), config, run)
    return {"stages": stages}


def run_diffusers(args: argparse.Namespace) -> dict[str, Any]:
    """The script, unmodified, through its own command line."""
    # these look for torchvision once, when they are imported, and must not take the stand-in for it
    import datasets  # noqa: F401
    import diffusers  # noqa: F401
    import transformers  # noqa: F401

    standin = importlib.util.find_spec("torchvision") is None
    if standin:
        sys.path.insert(0, str(HERE / "standin"))
    options = {
        "pretrained_model_name_or_path": args.world / "model",
        "train_data_dir": args.world / "data",
        "cache_dir": args.world / "cache",
        "output_dir": args.out.with_suffix(""),
        "resolution": PIXELS,
        "train_batch_size": args.batch,
        "max_train_steps": args.steps,
        "rank": args.rank,
        "mixed_precision": "no",
        "seed": 0,
    }
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    sys.argv = [str(args.script), *words, "--center_crop"]
    runpy.run_path(str(args.script), run_name="__main__")
    if not standin:
        return {}
    from torchvision import transforms

    return {"transforms": transforms.Compose.seconds}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=("dekag", "diffusers"))
    parser.add_argument("--world", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--script", type=Path)
    for name in ("steps", "batch", "rank", "threads"):
        parser.add_argument(f"--{name}", type=int, required=True)
    return parser.parse_args()


if __name__ == "__main__":
    main()
