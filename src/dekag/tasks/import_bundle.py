"""Importing: LoRA that another trainer wrote, as a bundle for one edge."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dekag.alignment.generation.bundles import save_generation
from dekag.alignment.generation.foreign import read_lora
from dekag.bundle.container import plain_text
from dekag.bundle.manifest import Quantisation
from dekag.errors import InputError
from dekag.training.run import OnStage
from dekag.world.world import Model

UNKNOWN_LICENCE = "unknown"
"""Of a file that does not say it, unless the caller does."""


@dataclass(frozen=True, kw_only=True)
class ImportTask:
    """A file of LoRA, and how the bundle of it is to be stored. licence: what the file says if None."""

    file: Path
    licence: str | None = None
    quantisation: Quantisation = "fp16"


@dataclass(frozen=True, kw_only=True)
class Imported:
    """What an import wrote. layers: that were read. unread: names in the file that were not, and why."""

    bundle: str
    layers: int
    metaword: str | None
    licence: str
    unread: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return {
            "bundle": self.bundle,
            "layers": self.layers,
            "metaword": self.metaword,
            "licence": self.licence,
            "unread": dict(self.unread),
        }


def import_bundle(
    base: Model, task: ImportTask, out: Path, *, device: str | torch.device, on_stage: OnStage
) -> Imported:
    """Write the LoRA of a file as a bundle for a model, and say what could not be read.

    Raises InputError in one line if nothing of the file fits the model.
    """
    if not task.file.is_file():
        raise InputError(f"there is no file {task.file}")
    on_stage("load")
    generator = base.load(device=device)
    on_stage("read")
    found = read_lora(generator, task.file)
    licence = task.licence or plain_text(found.licence or UNKNOWN_LICENCE)[:200]
    settings: dict[str, int | float | str] = {"imported": plain_text(task.file.name)}
    if found.rank:
        settings["rank"] = found.rank
    bundle = save_generation(
        out, generator, found.update, settings=settings, quantisation=task.quantisation, licence=licence
    )
    word = found.update.metaword
    return Imported(
        bundle=bundle.id,
        layers=found.layers,
        metaword=None if word is None else word.token,
        licence=licence,
        unread=found.unread,
    )
