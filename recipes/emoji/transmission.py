"""CALA and its rivals at equal data, steps and seeds: `python recipes/emoji/transmission.py --runs RUNS`.

Needs the shipped codec. Each method is kept in RUNS by its name, and a run that is started again goes on where it
was. `--methods` names some of: cala, shared_lora, hard_gate, snr_groups, snr_attention, full, and cala_ and
ablation's name for those of ABLATIONS. `--references` trains one LoRA and one whole codec for each of CONDITIONS
alone, and the whole codec on its own nominal condition.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import torch
from progress import progress_bar

from dekag.alignment.config import CalaConfig
from dekag.alignment.transmission.train import ConditionRange
from dekag.tasks.align_transmission import (
    CALA_RANGE,
    TransmissionTask,
    align_transmission,
    edge_latents,
    transmission_training,
)
from dekag.training.run import Run
from dekag.world import load_world

SIZE = CalaConfig()
"""What ships."""
ABLATIONS = {
    "cala_shared_gate": replace(SIZE, shared_gate=True),
    "cala_no_biases": replace(SIZE, biases=False),
    "cala_no_norms": replace(SIZE, norm_rank=0),
    "cala_no_gains": replace(SIZE, gain_rank=0),
    "cala_rank_2": replace(SIZE, rank=2),
    "cala_rank_8": replace(SIZE, rank=8),
}
CONDITIONS = {
    "awgn_64_0": ConditionRange(uses=(64,), snrs_db=(0.0,), blocks=(0,)),
    "awgn_512_20": ConditionRange(uses=(512,), snrs_db=(20.0,), blocks=(0,)),
    "rayleigh1_128_10": ConditionRange(uses=(128,), snrs_db=(10.0,), blocks=(1,)),
    "rayleigh8_256_5": ConditionRange(uses=(256,), snrs_db=(5.0,), blocks=(8,)),
}
METHODS = ("cala", "shared_lora", "hard_gate", "snr_groups", "snr_attention", "full")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--methods", default=",".join(METHODS), help="names separated by commas")
    parser.add_argument("--references", action="store_true")
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--reference-steps", type=int, default=1500)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--precision", default="bf16")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    world = load_world("emoji")
    latents = edge_latents(world, Run(resume=options.runs, on_stage=print), draws=options.draws)

    def make(name: str, method: str, size: CalaConfig, conditions: ConditionRange, steps: int) -> None:
        out = options.runs / name
        if out.exists():
            return
        task = TransmissionTask(
            method=method,
            size=size,
            conditions=conditions,
            training=transmission_training(method, steps, options.seed, precision=options.precision),
            batch=options.batch,
        )
        with progress_bar(name) as on_step:
            run = Run(resume=options.runs / f"{name}.resume", on_step=lambda _, progress: on_step(progress))
            align_transmission(world, latents, task, out, run)

    for name in filter(None, options.methods.split(",")):
        size = ABLATIONS.get(name, SIZE)
        make(f"{name}-{options.seed}", "cala" if name in ABLATIONS else name, size, CALA_RANGE, options.steps)
    if options.references:
        nominal = world.nominal
        at_nominal = ConditionRange(uses=(int(nominal.uses),), snrs_db=(float(nominal.snr_db),), blocks=(0,))
        make("full@nominal", "full", SIZE, at_nominal, options.reference_steps)
        for name, conditions in CONDITIONS.items():
            make(f"lora@{name}", "shared_lora", SIZE, conditions, options.reference_steps)
            make(f"full@{name}", "full", SIZE, conditions, options.reference_steps)


if __name__ == "__main__":
    main()
