"""The model card of an export as the Hugging Face hub reads it: metadata in YAML, pictures, and how to load it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from huggingface_hub import ModelCardData

from dekag.bundle.exported import PLACES, SDXL, Exported, Files
from dekag.types import InputError

_HUB_ID: Final = r"[A-Za-z0-9][\w.-]*/[\w.-]+"
_LICENCES: Final = (
    *("apache-2.0", "mit", "openrail", "openrail++", "creativeml-openrail-m", "bsd-2-clause", "bsd-3-clause"),
    *("cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0", "gpl-3.0", "agpl-3.0"),
)
"""Licences that the hub knows by name, most of them SPDX in lower case."""
_FAMILY_TAGS: Final = {"sd_v1": "stable-diffusion", "sd_v2": "stable-diffusion", SDXL: "stable-diffusion-xl"}


@dataclass(frozen=True, kw_only=True)
class Card:
    """What a folder for the hub says beyond an export.

    base_model: hub id of the model that the bundle was made for. previews: pictures, PNG, by what was to be drawn.
    Raises InputError for what is no hub id.
    """

    base_model: str
    previews: Mapping[str, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not re.fullmatch(_HUB_ID, self.base_model):
            raise InputError(
                f"a folder for the hub names its base model as OWNER/NAME, got {self.base_model!r}"
            )


def for_hub(card: Card, update: Exported, readme: str) -> tuple[Files, str]:
    """The pictures as files, and a README that the hub reads as a model card."""
    pictures = {f"images/preview-{number}.png": raw for number, raw in enumerate(card.previews.values())}
    shown = [
        {"text": update.with_word(prompt), "output": {"url": file}}
        for file, prompt in zip(pictures, card.previews, strict=True)
    ]
    licence, own_name = _licence(update.manifest.licence)
    data = ModelCardData(
        base_model=card.base_model,
        library_name=update.usual_layout,
        pipeline_tag="text-to-image",
        tags=_tags(update),
        instance_prompt=update.token or None,
        widget=shown or None,
        license=licence,
        license_name=own_name,
    )
    gallery = "<Gallery />\n\n" if shown else ""
    title, _, text = readme.partition("\n\n")
    text = text.replace(PLACES, "").replace('"BASE"', f'"{card.base_model}"')
    where = "FOLDER is a copy of this repository, as `hf download OWNER/NAME --local-dir FOLDER` makes it.\n"
    return pictures, f"---\n{data.to_yaml()}\n---\n\n{title}\n\n{gallery}{where}\n{text}"


def _tags(update: Exported) -> list[str]:
    family = [] if update.family is None else [_FAMILY_TAGS[update.family[1]]]
    kinds = ["lora", "template:sd-lora"] if update.loras else []
    return [
        "text-to-image",
        "diffusers",
        *kinds,
        *(["textual_inversion"] if update.vectors else []),
        *family,
        "dekag",
    ]


def _licence(licence: str) -> tuple[str, str | None]:
    """A licence as the hub spells it, and its own name where the hub knows none."""
    name = licence.lower()
    return (name, None) if name in _LICENCES else ("other", name.replace(" ", "-"))
