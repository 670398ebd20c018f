"""Train MAKD and its rivals on the same cloud images: `python recipes/emoji/methods.py --runs RUNS makd-0 lora-0 ...`.

A name is a method and a training seed; `food-0` and the other domains are MAKD on one group of prompts. Everything
trained is kept in RUNS/methods, so that a run that was interrupted goes on, and other sizes cost no new training.
With `--budgets` each update is cut to a budget of parameters by `reduce_rank` and written as a bundle,
RUNS/bundles/NAME-BUDGET-QUANTISATION; with `--ship` it is written whole into the package.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import torch
from diffusers.models.attention_processor import AttnProcessor
from export import TARGET
from progress import progress_bar

from dekag import presets, zoo
from dekag.alignment.bundle import Quantisation, Setting
from dekag.alignment.few_steps import FewStepConfig, distil_few_steps
from dekag.alignment.makd import MakdConfig, OnStep, distil
from dekag.alignment.noise import fit_noise_map
from dekag.alignment.rank import reduce_rank
from dekag.alignment.rivals import method_config
from dekag.alignment.update import GenerationUpdate, apply_update, remove_update
from dekag.alignment.updates import save_generation
from dekag.distillation import GUIDANCE, NOISE_IMAGES, Source, cloud_images, validation
from dekag.generation.diffusers import DiffusersGenerator

DOMAINS = ("food", "animals", "faces")
CONFIG = MakdConfig()
"""The defaults are what ships."""
CONFIGS = {
    # what ships, trained for three times as long and with its checkpoint chosen on the validation prompts
    "shipped": replace(CONFIG, frozen_steps=1900, joint_rate=3e-3),
    # a domain has a quarter of the pictures
    **{domain: replace(CONFIG, joint_steps=100, frozen_steps=300) for domain in DOMAINS},
}
"""MAKD again, with other numbers."""
FEW_STEPS = FewStepConfig(steps=4, rank=4, train_steps=500)


def training_config(name: str) -> MakdConfig:
    """The configuration of a method and seed."""
    method, seed = name.rsplit("-", 1)
    config = replace(CONFIGS.get(method, CONFIG), seed=int(seed))
    return config if method in CONFIGS else method_config(method, config)


def train(name: str, edge: DiffusersGenerator, runs: Path) -> GenerationUpdate:
    """The update of a method and seed at full rank, trained now or earlier, with the guidance that validation chose."""
    path = runs / "methods" / f"{name}.pt"
    if path.exists():
        update: GenerationUpdate = torch.load(path, weights_only=False)
        return update
    method = name.rsplit("-", 1)[0]
    domain = method if method in DOMAINS else None
    chosen = presets.emoji()
    source = Source(draws=2, domain=domain)
    data = cloud_images(chosen, source, resume=runs / "methods" / (domain or ""))
    config = training_config(name)
    check = validation(chosen)
    edge.denoiser.set_attn_processor(AttnProcessor())
    with progress_bar(name, every=200) as bar:
        on_step: OnStep = lambda _, progress: bar(progress)  # noqa: E731
        update = distil(
            edge,
            data.prompts,
            data.images,
            config,
            prior=zoo.prompts(chosen.world, "prior"),
            checkpoint=runs / "methods" / name,
            on_step=on_step,
            validate=check.during_training if method == "shipped" else None,
        )
    update = replace(update, sampling=check.best_sampling(edge, update, GUIDANCE))
    some = data.images[:: max(1, len(data.images) // NOISE_IMAGES)]
    both = [presets.cloud(chosen).encode(some), edge.encode(some)]
    update = replace(update, noise_map=fit_noise_map(*both))
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
            zoo.prompts("emoji", "distill"),
            FEW_STEPS,
            checkpoint=runs / "methods" / name,
            on_step=lambda _, progress: bar(progress),
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
    method = name.rsplit("-", 1)[0]
    if method == "shipped":
        return "makd"
    return method if method in DOMAINS else f"rivals/{name}"


def settings_of(name: str) -> dict[str, Setting]:
    """The numbers of a training, for its bundle."""
    method = name.rsplit("-", 1)[0]
    return {**training_config(name).settings(), "method": "makd" if method in CONFIGS else method}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="+")
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--budgets", default="", help="parameters, separated by commas")
    parser.add_argument("--ship", action="store_true")
    parser.add_argument("--quantisation", default="int8")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    edge = presets.edge(presets.emoji())
    for name in options.names:
        update = train(name, edge, options.runs)
        if name.startswith("shipped"):
            update = with_few_steps(name, update, edge, options.runs)
        settings = settings_of(name)
        if options.ship:
            write(update, edge, TARGET / shipped_name(name), settings, options.quantisation)
        for budget in filter(None, options.budgets.split(",")):
            cut = replace(update, adapter=reduce_rank(update.adapter, parameters=int(budget)))
            folder = options.runs / "bundles" / f"{name}-{budget}-{options.quantisation}"
            write(cut, edge, folder, {**settings, "budget": int(budget)}, options.quantisation)


if __name__ == "__main__":
    main()
