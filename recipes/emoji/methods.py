"""Train MAKD and its rivals on the same cloud images: `python recipes/emoji/methods.py --runs RUNS makd-0 lora-0 ...`.

A name is a method, a rank if it is not the usual one, and a training seed: `lora@2-0`. `food-0` and the other domains
are MAKD on one group of prompts, and the names of ABLATIONS are MAKD with one number changed. Everything trained is
kept in RUNS/methods, so that a run that was interrupted goes on, and other sizes cost no new training. Guidance and
strength of each are chosen on the validation prompts.

Each update is written as a bundle, RUNS/bundles/NAME-QUANTISATION; with `--budgets` also cut to budgets of parameters
by `reduce_rank`, RUNS/bundles/NAME-BUDGET-QUANTISATION; with `--ship` into the package instead.
"""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers.models.attention_processor import AttnProcessor
from export import TARGET
from progress import progress_bar

from dekag.alignment.config import FewStepConfig, MakdConfig
from dekag.alignment.generation.bundles import save_generation
from dekag.alignment.generation.few_steps import distil_few_steps
from dekag.alignment.generation.makd import distil
from dekag.alignment.generation.method import DistillationData, OnStep, TrainingRun
from dekag.alignment.generation.methods import method_config
from dekag.alignment.generation.noise_map import shared_noise_map
from dekag.alignment.generation.update import GenerationUpdate, apply_update, remove_update
from dekag.bundle.manifest import Quantisation, Setting
from dekag.bundle.rank import reduce_rank
from dekag.generation.diffusers import DiffusersGenerator
from dekag.tasks.material import ImageSource, material
from dekag.tasks.validate import Extras, tuned, validation
from dekag.training.run import ALONE, Run
from dekag.world import load_world

DOMAINS = ("food", "animals", "faces")
CONFIG = MakdConfig(frozen_steps=500, batch=32)
"""Of the methods that are compared at equal steps."""
CONFIGS = {
    # what ships: longer, wider, larger batches
    "shipped": replace(CONFIG, rank=10, frozen_steps=3800, joint_rate=3e-3, batch=48),
    # a domain has a quarter of the pictures
    **{domain: replace(CONFIG, joint_steps=100, frozen_steps=300) for domain in DOMAINS},
}
"""MAKD again, with other numbers."""
ABLATIONS: dict[str, dict[str, Any]] = {
    "no-metaword-stage": {"metaword_steps": 0, "joint_steps": 300},
    "no-joint-stage": {"joint_steps": 0, "frozen_steps": 700},
    "no-frozen-stage": {"joint_steps": 700, "frozen_steps": 0},
    "one-vector": {"vectors": 1},
    "eight-vectors": {"vectors": 8},
    "rare-word": {"words": "sks"},
    "no-prior": {"prior_share": 0.0},
    "prior-without-word": {"prior_word": False},
    "prior-at-all-noise": {"prior_least": 0.0},
    "even-noise": {"emphasis": 1.0},
    "min-snr": {"gamma": 5.0},
    "no-ema": {"ema_decay": 0.0},
    "lora-plus": {"lora_plus": 8.0, "joint_rate": 1e-3},
    "half-rate": {"joint_rate": 1e-3},
}
"""What differs from the defaults of MAKD."""
EXTRAS = {"shipped": Extras(strengths=(0.8,))}
"""What validation chooses from, if not the usual. From 0.7 to 0.85 it found what ships equally good, to 0.001."""
Precision = Literal["no", "bf16"]
FEW_STEPS = FewStepConfig(steps=4, rank=2, train_steps=700)


def training_config(name: str, precision: Precision) -> MakdConfig:
    """The configuration of a method, rank and seed."""
    method, rank, seed = parts_of(name)
    config = replace(CONFIGS.get(method, CONFIG), rank=rank, seed=seed, precision=precision)
    if method in CONFIGS:
        return config
    return replace(config, **ABLATIONS[method]) if method in ABLATIONS else method_config(method, config)


def parts_of(name: str) -> tuple[str, int, int]:
    """Method, rank and training seed of METHOD-SEED or METHOD@RANK-SEED."""
    method, seed = name.rsplit("-", 1)
    method, _, rank = method.partition("@")
    return method, int(rank or CONFIGS.get(method, CONFIG).rank), int(seed)


def train(name: str, edge: DiffusersGenerator, runs: Path, precision: Precision) -> GenerationUpdate:
    """The update of a method and seed at full rank, trained now or earlier, with what validation chose."""
    path = runs / "methods" / f"{name}.pt"
    if path.exists():
        update: GenerationUpdate = torch.load(path, weights_only=False)
        return update
    method, _, _ = parts_of(name)
    domain = method if method in DOMAINS else None
    chosen = load_world("emoji")
    source = ImageSource(draws=2, domain=domain)
    drawn = material(chosen, source, Run(resume=runs / "methods" / (domain or "")))
    data = drawn.train
    config = training_config(name, precision)
    check = validation(chosen, edge, drawn, ALONE)
    assert check is not None
    edge.denoiser.set_attn_processor(AttnProcessor())
    with progress_bar(name, every=200) as bar:
        on_step: OnStep = lambda _, progress: bar(progress)  # noqa: E731
        pairs = DistillationData(prompts=data.prompts, images=data.images, prior=chosen.prompts("prior"))
        run = TrainingRun(checkpoint=runs / "methods" / name, on_step=on_step)
        update = distil(edge, pairs, config, run)
    update = tuned(update, *check.choose(edge, update, EXTRAS.get(method, Extras())))
    update = replace(update, noise_map=shared_noise_map(chosen.cloud(), edge, data.images))
    torch.save(update, path)
    return update


def with_few_steps(
    name: str, update: GenerationUpdate, edge: DiffusersGenerator, runs: Path
) -> GenerationUpdate:
    """The update with a second one, for drawing in four steps, trained now or earlier."""
    path = runs / "methods" / f"{name}-few.pt"
    if path.exists():
        kept: GenerationUpdate = torch.load(path, weights_only=False)
        return kept
    aligned = apply_update(edge, update)
    with progress_bar(f"{name} few steps", every=100) as bar:
        few, sampling = distil_few_steps(
            aligned,
            load_world("emoji").prompts("distill"),
            FEW_STEPS,
            TrainingRun(checkpoint=runs / "methods" / name, on_step=lambda _, progress: bar(progress)),
        )
    remove_update(aligned)
    update = replace(update, few_step=few, few_step_sampling=sampling)
    torch.save(update, path)
    return update


def write(
    update: GenerationUpdate,
    edge: DiffusersGenerator,
    folder: Path,
    settings: dict[str, Setting],
    quantisation: Quantisation,
) -> None:
    """A bundle of the update; says how many bytes it draws with, compressed."""
    bundle = save_generation(folder, edge, update, settings=settings, quantisation=quantisation)
    print(f"{folder} {bundle.size_bytes} bytes, {bundle.drawn_bytes()} to draw with", flush=True)


def shipped_name(name: str) -> str:
    """Where the package keeps an update."""
    method, _, seed = parts_of(name)
    if method == "shipped":
        return "makd"
    return method if method in DOMAINS else f"rivals/{method}-{seed}"


def settings_of(name: str, precision: Precision) -> dict[str, Setting]:
    """The numbers of a training, for its bundle."""
    method, _, _ = parts_of(name)
    ours = method in CONFIGS or method in ABLATIONS
    return {**training_config(name, precision).settings(), "method": "makd" if ours else method}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="+")
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--budgets", default="", help="parameters, separated by commas")
    parser.add_argument("--ship", action="store_true")
    parser.add_argument("--quantisation", default="int8")
    parser.add_argument("--precision", default="no", help="bf16 on a processor with units for it")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    edge = load_world("emoji").edge()
    for name in options.names:
        update = train(name, edge, options.runs, options.precision)
        if name.startswith("shipped"):
            update = with_few_steps(name, update, edge, options.runs)
        settings = settings_of(name, options.precision)
        home = options.runs / "bundles"
        folder = TARGET / shipped_name(name) if options.ship else home / f"{name}-{options.quantisation}"
        if update.weights:
            # a whole denoiser is no bundle
            continue
        write(update, edge, folder, settings, options.quantisation)
        for budget in filter(None, options.budgets.split(",")):
            cut = replace(update, adapter=reduce_rank(update.adapter, parameters=int(budget)))
            folder = home / f"{name}-{budget}-{options.quantisation}"
            write(cut, edge, folder, {**settings, "budget": int(budget)}, options.quantisation)


if __name__ == "__main__":
    main()
