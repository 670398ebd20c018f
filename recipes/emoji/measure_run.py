"""Measure the autoencoder, the judges and the sizes of a run: `python recipes/emoji/measure_run.py --run DIR`.

Prints JSON. The autoencoder is measured on art of concepts that it never saw, beside the one that ships; judges on
real art in compositions, and texts of wordings, that they never trained on.
"""

import argparse
import json
from pathlib import Path

import torch
from diffusers import AutoencoderTiny
from stages import autoencoder, judges
from stages.grammar import TRAINED_PATTERNS, WORDINGS
from stages.lpips import load_lpips
from stages.pictures import ART, read_art, stack
from stages.plan import make_plan
from stages.run import Run
from stages.splits import HELD_OUT_COMPOSITIONS
from torch import Tensor

from dekag.evaluation.judges import load_clip, load_dino
from dekag.evaluation.statistics import mean_interval
from dekag.world import shipped

PICTURES = 256
CAPS_MB = {"cloud": 10, "edge": 7, "autoencoder": 3, "text encoders": 4, "judges": 6}
"""Room in the tree, in 10^6 bytes of fp16."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--pixels", type=int, choices=(64, 128), default=64)
    parser.add_argument(
        "--compositions", type=int, default=4, help="held-out ones that judges are measured on"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    run = Run(folder=options.run, data=options.data, plan=make_plan("cpu", options.pixels, minutes=1.0))
    report: dict[str, object] = {}
    if run.finished("autoencoder"):
        report["autoencoder"] = measure_autoencoders(run)
    if run.finished("mini-clip"):
        report["mini-clip"] = measure_clip(run, options.compositions)
    if run.finished("mini-dino"):
        report["mini-dino"] = measure_dino(run)
    report["megabytes"] = megabytes(run)
    print(json.dumps(report, indent=2))


def measure_autoencoders(run: Run) -> dict[str, object]:
    """PSNR, LPIPS (VGG, which was no loss) and quilting of the run's autoencoder and, at 64 pixels, the shipped one."""
    held_out = [c.id for c in run.concepts if c.split == "heldout"]
    art = stack([read_art(run.data, hand, held_out, run.plan.pixels) for hand in ART])
    rng = torch.Generator().manual_seed(1)
    pictures = autoencoder.sample(art, PICTURES, rng, pairs=0.0, plain=1.0)
    found = {"run": run.autoencoder()}
    if run.plan.pixels == 64:
        folder = shipped("emoji/edge") / "vae"
        found["shipped"] = AutoencoderTiny.from_pretrained(folder, dtype=torch.float32)
    return {name: measure_autoencoder(vae, pictures) for name, vae in found.items()}


def measure_autoencoder(vae: AutoencoderTiny, pictures: Tensor) -> dict[str, object]:
    again = autoencoder.reconstruct(vae, pictures)
    lpips = load_lpips("vgg16")
    distance = torch.cat([lpips(a, b) for a, b in zip(again.split(32), pictures.split(32), strict=True)])
    return {
        "psnr_db": mean_interval(autoencoder.psnr_db(again, pictures)).to_json(),
        "lpips_vgg": mean_interval(distance).to_json(),
        "quilting": {str(period): float(autoencoder.quilting(again, pictures, period)) for period in (8, 16)},
    }


def measure_clip(run: Run, compositions: int) -> dict[str, object]:
    """Retrieval among the captions of all core concepts, by pattern; intervals over concepts."""
    clip = load_clip(run.folder / "mini-clip" / "model")
    art = stack([run.art(hand, run.ids("core")) for hand in ART])
    held_out = HELD_OUT_COMPOSITIONS[:: 32 // compositions][:compositions]
    found: dict[str, object] = {"captions": len(run.ids("core")), "compositions": len(held_out)}
    patterns = [p for p in TRAINED_PATTERNS if p != "name"][:3]
    for pattern in (*patterns, *WORDINGS):
        right = judges.retrieval(clip, run.things["core"], art, held_out, pattern)
        kind = "held-out wording" if pattern in WORDINGS else "trained pattern"
        found[f"{pattern} ({kind})"] = mean_interval(right.mean(0)).to_json()
    return found


def measure_dino(run: Run) -> dict[str, object]:
    """Cosines of known pairs under the run's mini-dino and the shipped one; intervals over concepts."""
    art = stack([run.art(hand, run.ids("core")) for hand in ART])
    sources = {"run": run.folder / "mini-dino" / "model", "shipped": shipped("emoji/mini-dino")}
    found: dict[str, object] = {}
    for name, source in sources.items():
        cosines = judges.cosines(load_dino(source), run.things["core"], art)
        found[name] = {pair: mean_interval(values.mean(0)).to_json() for pair, values in cosines.items()}
    return found


def megabytes(run: Run) -> dict[str, object]:
    """Size in fp16 of what is there, beside its room in the tree."""
    parts = {
        "cloud": ["cloud/model/unet"],
        "edge": ["edge/model/unet"],
        "autoencoder": ["autoencoder/model"],
        "text encoders": ["cloud/model/text_encoder", "edge/model/text_encoder"],
        "judges": ["mini-clip/model", "mini-dino/model"],
    }
    found: dict[str, object] = {}
    for name, folders in parts.items():
        files = [p for folder in folders for p in (run.folder / folder).glob("*.safetensors")]
        # runs are kept in fp32
        found[name] = {"fp16": round(sum(p.stat().st_size for p in files) / 2e6, 2), "cap": CAPS_MB[name]}
    return found


if __name__ == "__main__":
    main()
