"""Every scheduler class of the installed diffusers, made with as little as it asks for."""

import functools
import importlib
import pkgutil
import re
from pathlib import Path
from typing import Any

import diffusers.schedulers as every
import torch
from diffusers import SchedulerMixin
from diffusers.schedulers import deprecated

NEEDED: dict[str, dict[str, Any]] = {
    "AmusedScheduler": {"mask_token_id": 7},
    "VQDiffusionScheduler": {"num_vec_classes": 8},
    "RFD4ProteinaScheduler": {
        "schedule_mode": "log",
        "noise_mode": "1/t",
        "tsr_k": 1.0,
        "tsr_sigma": 1.0,
    },
}
"""Arguments of the classes that have no defaults."""


@functools.cache
def class_names() -> dict[str, str]:
    """Module of each class of a scheduler, read from the sources: some modules ask for packages that are not there."""
    found = {}
    for package in (every, deprecated):
        for module in pkgutil.iter_modules(package.__path__):
            if module.ispkg:
                continue
            source = (Path(package.__path__[0]) / f"{module.name}.py").read_text()
            for name in re.findall(r"^class (\w+)\(SchedulerMixin\b", source, re.MULTILINE):
                found[name] = f"{package.__name__}.{module.name}"
    return found


def scheduler_class(name: str) -> type[SchedulerMixin] | None:
    """The class, None if its module cannot be imported here: no pipeline can be loaded with it either."""
    try:
        module = importlib.import_module(class_names()[name])
    except ModuleNotFoundError:
        return None
    kind: type[SchedulerMixin] = getattr(module, name)
    return kind


def made(name: str, **options: Any) -> Any:
    """A scheduler of that class."""
    kind: Any = scheduler_class(name)
    return kind(**NEEDED.get(name, {}), **options)


def latents() -> tuple[torch.Tensor, torch.Tensor]:
    """A latent within [-0.8, 0.8], which no sampler clips, and noise."""
    rng = torch.Generator().manual_seed(3)
    return 1.6 * torch.rand(1, 4, 8, 8, generator=rng) - 0.8, torch.randn(1, 4, 8, 8, generator=rng)
