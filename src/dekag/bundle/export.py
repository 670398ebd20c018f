"""A generation bundle in the layouts that other programs load, to be used without dekag.

peft        adapter_config.json, adapter_model.safetensors, learned_embeds.safetensors, for any denoiser
diffusers   pytorch_lora_weights.safetensors with PEFT's names, learned_embeds.safetensors
comfyui     loras/NAME.safetensors, embeddings/NAME.safetensors
a1111       Lora/NAME.safetensors, which holds the metaword as well, embeddings/NAME.safetensors (Forge, SD.Next)

The layouts themselves are in `dekag.bundle.layouts`; each export has a README.md that says how to load it. The first
two can also be folders for the Hugging Face hub, where the README.md is a model card.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

from torch import Tensor

from dekag.bundle.bundle import Bundle
from dekag.bundle.card import Card, for_hub
from dekag.bundle.container import plain_text
from dekag.bundle.exported import FEW, MARK, Exported, Layers
from dekag.bundle.layouts import LAYOUTS, ONE_FILE, PEFT_CONFIG, PEFT_MODEL
from dekag.bundle.manifest import Manifest
from dekag.types import InputError
from dekag.wire.files import write_folder

README: Final = "README.md"
_TITLE: Final = "# Export of a dekag bundle"
_ENCODERS: tuple[str, ...] = ("text_encoder", "text_encoder_2", "text_encoder_3")
_HEADER_BYTES: Final = 1 << 24
_README_BYTES: Final = 1 << 20


def usual_layout(bundle: Bundle) -> str:
    """The layout that is written unless another is named: `diffusers`, or `peft` where diffusers cannot load it.

    Raises InputError if the bundle cannot be exported at all.
    """
    return _read(bundle, "dekag").usual_layout


def export_bundle(
    bundle: Bundle,
    folder: Path | str,
    *,
    layout: str | None = None,
    name: str | None = None,
    one_file: bool = False,
    card: Card | None = None,
) -> list[Path]:
    """Write the bundle in another program's layout and return the files; the same bundle gives the same bytes.

    `layout` is one of LAYOUTS, `usual_layout` of the bundle if left out. `name` is that of the files and, outside
    diffusers and PEFT, of the metaword in prompts; it is the metaword without its brackets if left out. `one_file`
    puts the metaword into the file of the LoRA and into no other. With a `card` the folder is one for the hub. The
    folder appears whole or not at all, and replaces an earlier export.
    Raises InputError if the layout is unknown or has no place for what the bundle holds, or if the folder
    holds anything but an earlier export; OSError if the disk refuses.
    """
    if layout is not None and layout not in LAYOUTS:
        raise InputError(f"unknown layout {layout!r}; known are {', '.join(LAYOUTS)}")
    update = replace(_read(bundle, name), one_file=one_file)
    chosen = layout or update.usual_layout
    if one_file and chosen not in ONE_FILE:
        known = " and ".join(ONE_FILE)
        raise InputError(f"{chosen} reads no metaword from the file of a LoRA; one file is for {known}")
    if card is not None and chosen != update.usual_layout:
        raise InputError(
            f"the hub's loaders read this bundle in the layout {update.usual_layout}, not {chosen};"
            " leave the layout out"
        )
    files, usage = LAYOUTS[chosen](update)
    readme = _readme(update, usage, noise_map=bundle.noise_map() is not None)
    if card is not None:
        pictures, readme = for_hub(card, update, readme)
        files |= pictures
    target = Path(folder)
    write_folder(target, {**files, README: readme.encode()}, is_own=_is_export, noun="an earlier export")
    return [target / path for path in sorted([*files, README])]


def _read(bundle: Bundle, name: str | None) -> Exported:
    """What there is to export; raises InputError unless it is LoRA of one denoiser, a metaword, or both."""
    where, manifest = f"bundle {bundle.id[:12]}", bundle.manifest
    if manifest.kind != "generation":
        raise InputError(
            f"{where} is for {manifest.kind}, which no other program does; only a bundle for generation can be exported"
        )
    found = {"": _layers(where, bundle.lora()), FEW: _layers(where, bundle.few_step())}
    components = {path.partition(".")[0] for layers in found.values() for path in layers}
    denoisers, vectors = sorted(components - set(_ENCODERS)), bundle.embedding()
    if not components and not vectors:
        raise InputError(f"{where} holds neither LoRA nor metaword, so there is nothing to export")
    component = next(iter(denoisers), "unet")
    loras = {end: _below(component, layers) for end, layers in found.items()}
    encoders = {part: _below(part, found[""]) for part in _ENCODERS if part in components}
    alone = bool(encoders) and not loras[""]
    if components and (alone or denoisers not in (["unet"], ["transformer"])):
        raise InputError(
            f"{where} updates {plain_text(', '.join(sorted(components)))}; only LoRA of one unet or one transformer,"
            " perhaps with text encoders, can be exported"
        )
    return Exported(
        name=_file_name(manifest, name),
        manifest=manifest,
        component=component,
        loras={end: layers for end, layers in loras.items() if layers},
        encoders=encoders,
        vectors=vectors,
    )


def _below(part: str, layers: Layers) -> Layers:
    """The layers of one component by their paths in it."""
    return {
        path.removeprefix(f"{part}."): pair for path, pair in layers.items() if path.startswith(f"{part}.")
    }


def _file_name(manifest: Manifest, given: str | None) -> str:
    word = manifest.metaword.token.strip("<>") if manifest.metaword else "dekag"
    name = (word if given is None else given).lower()
    if not re.fullmatch(r"[a-z0-9_-]{1,62}", name):
        raise InputError(f"the name of an export is 1 to 62 of a-z, 0-9, _ and -, got {given!r}")
    return name


def _layers(where: str, lora: Mapping[str, Tensor]) -> Layers:
    """Both matrices of each layer; raises InputError for what is no LoRA, as LoKr."""
    paths = sorted({name.rpartition(".lora_")[0] for name in lora})
    pairs = {path: (f"{path}.lora_A.weight", f"{path}.lora_B.weight") for path in paths}
    needed = {name for pair in pairs.values() for name in pair}
    if strange := sorted(needed ^ lora.keys()):
        raise InputError(
            f"{where} cannot be exported: it must hold lora_A.weight and lora_B.weight of each layer and nothing"
            f" else, but not so for '{plain_text(strange[-1])}'"
        )
    layers = {path: (lora[down], lora[up]) for path, (down, up) in pairs.items()}
    for path, (down, up) in layers.items():
        if down.ndim < 2 or down.ndim != up.ndim or len(down) != up.shape[1]:
            raise InputError(
                f"{where} cannot be exported: both matrices of {plain_text(path)} must have one rank, got shapes"
                f" {list(down.shape)} and {list(up.shape)}"
            )
    return layers


def _readme(update: Exported, usage: str, *, noise_map: bool) -> str:
    manifest = update.manifest
    lines = [_TITLE, "", usage, ""]
    if manifest.metaword is not None:
        lines += [f"The metaword is a {manifest.metaword.position}: every prompt has it there.", ""]
    for kind, when in (("sampling", "Recommended"), ("few_step", "In few steps")):
        if advised := [f"{key} {value}" for key, value in update.advised(kind).items()]:
            lines += [f"{when}: {', '.join(advised)}.", ""]
    if noise_map:
        lines += [
            "The bundle's map of the initial noise is left out: only dekag draws from the cloud's noise.",
            "",
        ]
    lines += [f"Bundle {manifest.id}, for the base {manifest.base_digest}. Licence: {manifest.licence}."]
    return "\n".join(lines) + "\n"


def _is_export(folder: Path) -> bool:
    """Whether a folder holds nothing but what an export wrote."""
    return all(_ours(path) for path in folder.rglob("*"))


def _ours(path: Path) -> bool:
    """Whether this is a folder, or a file that an export wrote."""
    if path.is_symlink() or not path.is_file():
        return path.is_dir() and not path.is_symlink()
    if path.name == PEFT_CONFIG:
        return path.with_name(PEFT_MODEL).is_file() and _ours(path.with_name(PEFT_MODEL))
    with path.open("rb") as file:
        if path.name == README:
            return _TITLE.encode() in file.read(_README_BYTES).splitlines()
        if path.match("images/preview-*.png"):
            return path.parent.with_name(README).is_file() and _ours(path.parent.with_name(README))
        size = int.from_bytes(file.read(8), "little")
        return f'"{MARK}"'.encode() in file.read(min(size, _HEADER_BYTES))
