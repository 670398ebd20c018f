"""Train the codec at one nominal condition: `python recipes/emoji/codec.py --runs RUNS`.

AWGN at 10 dB and the highest rate. It learns on what the aligned edge draws for the distillation prompts.
"""

import argparse
from pathlib import Path

import torch
from progress import progress_bar

from dekag.alignment.transmission.train import ConditionRange, TransmissionData, channel_importance, fit
from dekag.codec import JsccCodec, JsccConfig, fit_klt, save_codec
from dekag.tasks.align_transmission import edge_latents
from dekag.training.loop import TrainConfig
from dekag.training.run import Run
from dekag.world import load_world

PROBES = 60
"""Latents at which the importance of the channels is measured."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--draws", type=int, default=10, help="drawings of each prompt")
    parser.add_argument("--steps", type=int, default=14000)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--precision", default="bf16")
    parser.add_argument(
        "--plain", action="store_true", help="for comparison: neither the transform's start nor spreading"
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    folder = options.runs / ("plain" if options.plain else "codec")
    world = load_world("emoji")
    latents = edge_latents(world, Run(resume=options.runs, on_stage=print), draws=options.draws)
    some = latents[:: max(1, len(latents) // PROBES)].float()
    importance = channel_importance(world.edge().decode, some, rng=torch.Generator().manual_seed(0))

    torch.manual_seed(5)
    codec = JsccCodec(JsccConfig(spread=not options.plain))
    if options.plain:
        codec.importance.copy_(importance)
    else:
        codec.start_from(fit_klt(latents.float(), importance))
    uses, snr_db = int(world.nominal.uses), float(world.nominal.snr_db)
    data = TransmissionData(
        latents=latents,
        conditions=ConditionRange(uses=(uses,), snrs_db=(snr_db,), blocks=(0,)),
        batch=options.batch,
        importance=importance,
    )
    config = TrainConfig(
        steps=options.steps,
        learning_rate=1e-3,
        decay_fraction=0.5,
        weight_decay=0.01,
        ema_decay=0.998,
        seed=5,
        precision=options.precision,
        checkpoint_every=500,
    )
    with progress_bar("codec") as on_step:
        fit(codec, data, config, checkpoint=folder / "resume.pt", on_step=on_step)
    save_codec(codec, folder / "model")


if __name__ == "__main__":
    main()
