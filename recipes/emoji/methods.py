"""Train MAKD and its rivals on the same cloud images: `python recipes/emoji/methods.py --runs RUNS makd-0 lora-0 ...`.

A name is a method and a training seed; `food-0` and the other domains are MAKD on one group of prompts. Everything
trained is kept in RUNS/methods, so that a run that was interrupted goes on, and other sizes cost no new training.
Each update is cut to a budget of parameters by `reduce_rank`, and written as a bundle, RUNS/bundles/BUDGET/NAME.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import torch
from diffusers.models.attention_processor import AttnProcessor
from progress import progress_bar

from dekag import presets, zoo
from dekag.alignment.bundle import Quantisation
from dekag.alignment.makd import MakdConfig, OnStep, distil
from dekag.alignment.noise import fit_noise_map
from dekag.alignment.rank import reduce_rank
from dekag.alignment.rivals import method_config
from dekag.alignment.update import GenerationUpdate
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


def train(name: str, edge: DiffusersGenerator, runs: Path) -> GenerationUpdate:
    """The update of a method and seed at full rank, trained now or earlier, with the guidance that validation chose."""
    path = runs / "methods" / f"{name}.pt"
    if path.exists():
        update: GenerationUpdate = torch.load(path, weights_only=False)
        return update
    method, seed = name.rsplit("-", 1)
    domain = method if method in DOMAINS else None
    chosen = presets.emoji()
    source = Source(draws=2, domain=domain)
    data = cloud_images(chosen, source, resume=runs / "methods" / (domain or ""))
    config = replace(CONFIGS.get(method, CONFIG), seed=int(seed))
    if method not in CONFIGS:
        config = method_config(method, config)
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


def write(
    name: str,
    update: GenerationUpdate,
    edge: DiffusersGenerator,
    folder: Path,
    budget: int,
    quantisation: Quantisation,
) -> int:
    """A bundle of the update within a budget of parameters; returns its bytes as it draws, compressed."""
    if any("lora_A" in key for key in update.adapter):
        update = replace(update, adapter=reduce_rank(update.adapter, parameters=budget))
    settings: dict[str, int | float | str] = {"name": name, "budget": budget}
    return save_generation(folder, edge, update, settings=settings, quantisation=quantisation).drawn_bytes()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="+")
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--budgets", default="", help="parameters, separated by commas")
    parser.add_argument("--quantisation", default="int8")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    edge = presets.edge(presets.emoji())
    for name in options.names:
        update = train(name, edge, options.runs)
        for budget in filter(None, options.budgets.split(",")):
            folder = options.runs / "bundles" / f"{budget}-{options.quantisation}" / name
            size = write(name, update, edge, folder, int(budget), options.quantisation)
            print(f"{name} {budget} parameters {size} bytes guidance {update.sampling}", flush=True)


if __name__ == "__main__":
    main()
