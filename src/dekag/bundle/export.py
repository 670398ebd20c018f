"""A generation bundle in the layouts that other programs load, to be used without dekag.

diffusers   pytorch_lora_weights.safetensors with PEFT's names, learned_embeds.safetensors
comfyui     loras/NAME.safetensors, embeddings/NAME.safetensors
a1111       Lora/NAME.safetensors, which holds the metaword as well, embeddings/NAME.safetensors (Forge, SD.Next)

A second update, for fewer steps, is a second LoRA file. All tensors are fp16, all metadata strings, and a
README.md says how to load them. Outside diffusers the update of a U-Net has kohya's names: `lora_unet_` and the
layer's path with underscores for dots, then lora_down, lora_up and alpha; the layer's weight grows by
alpha / rank * up @ down. All layers of a file share one alpha, the largest rank, and lora_up makes up for it:
diffusers misreads alphas that differ (it looks attention layers up under another name), while every reader agrees
on this form.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from dekag.bundle.bundle import Bundle
from dekag.bundle.container import EMBEDDING, FEW_STEP, LORA, plain_text
from dekag.bundle.digest import canonical_safetensors
from dekag.bundle.manifest import Manifest
from dekag.types import InputError
from dekag.wire.files import write_folder

README: Final = "README.md"

Layers = Mapping[str, tuple[Tensor, Tensor]]
"""Down [rank, in, ...] and up [out, rank, ...] by the layer's path."""
Files = dict[str, bytes]
"""By path below the folder."""
_FEW: Final = "_few_step"
_FILES: Final = {"": LORA, _FEW: FEW_STEP}
_TITLE: Final = "# Export of a dekag bundle"
_MARK: Final = "dekag.bundle"
_EXAMPLE: Final = "a red apple"
_HEADER_BYTES: Final = 1 << 24
_FAMILIES: Final = {
    768: ("stable-diffusion-v1", "sd_v1"),
    1024: ("stable-diffusion-v2", "sd_v2"),
    2048: ("stable-diffusion-xl-v1-base", "sdxl_base_v1-0"),
}
"""What ModelSpec and kohya call the U-Nets, by the width of the text states that they attend to."""


@dataclass(frozen=True, kw_only=True)
class _Update:
    """What of a bundle is exported.

    component: "unet" or "transformer". loras: by ending of the name, "" and "_few_step", with paths below the
    component. vectors: the metaword, [vectors, width], by its token or by clip_l and clip_g.
    """

    name: str
    manifest: Manifest
    component: str
    loras: Mapping[str, Layers]
    vectors: Mapping[str, Tensor]

    @property
    def token(self) -> str:
        """The metaword, or nothing."""
        return self.manifest.metaword.token if self.manifest.metaword else ""

    @property
    def family(self) -> tuple[str, str] | None:
        """ModelSpec's and kohya's name of the base's family, or None if it is no Stable Diffusion."""
        layers = (item for lora in self.loras.values() for item in lora.items())
        attended = [
            down.shape[1] for path, (down, _) in layers if path.endswith(("attn2.to_k", "attn2.to_v"))
        ]
        # SDXL attends to the states of both its text encoders, side by side
        width = attended[0] if attended else sum(rows.shape[1] for rows in self.vectors.values())
        return _FAMILIES.get(width) if self.component == "unet" else None

    def advised(self, kind: str) -> dict[str, int | float]:
        """Steps and guidance of `kind`, "sampling" or "few_step"; a stranger's text must not become Python."""
        given = {key: self.manifest.settings.get(f"{kind}_{key}") for key in ("steps", "guidance")}
        return {key: value for key, value in given.items() if isinstance(value, int | float)}

    def prompt(self, word: str) -> str:
        """An example of a prompt with the metaword as the program spells it."""
        if self.manifest.metaword is None:
            return _EXAMPLE
        prefix = self.manifest.metaword.position == "prefix"
        return f"{word} {_EXAMPLE}" if prefix else f"{_EXAMPLE} {word}"


def export(bundle: Bundle, folder: Path | str, *, layout: str, name: str | None = None) -> list[Path]:
    """Write the bundle in another program's layout and return the files; the same bundle gives the same bytes.

    `layout` is one of LAYOUTS. `name` is that of the files and, outside diffusers, of the metaword in prompts; it
    is the metaword without its brackets if left out. The folder appears whole or not at all, and replaces an
    earlier export.
    Raises InputError if the layout is unknown or has no place for what the bundle holds, or if the folder
    holds anything but an earlier export; OSError if the disk refuses.
    """
    if layout not in LAYOUTS:
        raise InputError(f"unknown layout {layout!r}; known are {', '.join(LAYOUTS)}")
    update = _read(bundle, name)
    files, how = LAYOUTS[layout](update)
    readme = _readme(update, how, noise_map=bundle.noise_map() is not None)
    target = Path(folder)
    write_folder(target, {**files, README: readme.encode()}, ours=_is_export, noun="an earlier export")
    return [target / path for path in sorted([*files, README])]


def _read(bundle: Bundle, name: str | None) -> _Update:
    """What there is to export; raises InputError unless it is LoRA of one denoiser, a metaword, or both."""
    where, manifest = f"bundle {bundle.id[:12]}", bundle.manifest
    if manifest.kind != "generation":
        raise InputError(
            f"{where} is for {manifest.kind}, which no other program does; only a bundle for generation can be exported"
        )
    found = {"": _layers(where, bundle.lora()), _FEW: _layers(where, bundle.few_step())}
    components = {path.partition(".")[0] for layers in found.values() for path in layers}
    vectors = bundle.embedding()
    if not components and not vectors:
        raise InputError(f"{where} holds neither LoRA nor metaword, so there is nothing to export")
    if not components <= {"unet", "transformer"} or len(components) > 1:
        raise InputError(
            f"{where} updates {plain_text(', '.join(sorted(components)))}; only LoRA of one unet or one transformer"
            " can be exported"
        )
    return _Update(
        name=_file_name(manifest, name),
        manifest=manifest,
        component=next(iter(components), "unet"),
        loras={
            end: {path.partition(".")[2]: pair for path, pair in layers.items()}
            for end, layers in found.items()
            if layers
        },
        vectors=vectors,
    )


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


def _diffusers(update: _Update) -> tuple[Files, str]:
    if any(path.endswith("img_qkv_proj") for layers in update.loras.values() for path in layers):
        raise InputError("diffusers cannot load LoRA into PRX; draw with this bundle by dekag itself")
    files, imports = {}, ["from diffusers import DiffusionPipeline"]
    how = ['pipeline = DiffusionPipeline.from_pretrained("BASE")']
    for end, layers in update.loras.items():
        metadata = _metadata(update, "lora") | {"lora_adapter_metadata": _adapter_metadata(update, layers)}
        files[_FILES[end]] = _file(_peft(update, layers), metadata)
    if "" in update.loras:
        how += [f'pipeline.load_lora_weights("FOLDER", weight_name="{LORA}", adapter_name="dekag")']
    if update.vectors:
        files[EMBEDDING] = _file(update.vectors, _metadata(update, "textual-inversion"))
        more, lines = _load_vectors(update)
        imports, how = imports + more, how + lines
    how += [_draw(update, "sampling")]
    text = ["```python", *imports, "", *how, "```", ""]
    text += ["BASE is the model that the bundle was made for, FOLDER is this folder."]
    if _FEW in update.loras:
        names = ["dekag"] * ("" in update.loras) + ["few_step"]
        few = [
            f'pipeline.load_lora_weights("FOLDER", weight_name="{FEW_STEP}", adapter_name="few_step")',
            f"pipeline.set_adapters({json.dumps(names)})",
            _draw(update, "few_step"),
        ]
        text += ["", "To draw in few steps, further:", "", "```python", *few, "```"]
    return files, "\n".join(text)


def _draw(update: _Update, kind: str) -> str:
    names = {"steps": "num_inference_steps", "guidance": "guidance_scale"}
    options = "".join(f", {names[key]}={value}" for key, value in update.advised(kind).items())
    spelt = update.component == "transformer" and update.vectors
    prompt = f'f"{update.prompt("{word}")}"' if spelt else f'"{update.prompt(update.token)}"'
    return f"image = pipeline(prompt={prompt}{options}).images[0]"


def _load_vectors(update: _Update) -> tuple[list[str], list[str]]:
    """The imports and the lines that load the metaword.

    Two text encoders share one file. Pipelines of transformers may have no loader of textual inversions, and that
    of diffusers parts the vectors by spaces, which some of their tokenizers read as tokens: there the lines make
    one token a vector themselves, as dekag does.
    """
    if update.component == "unet" and len(update.vectors) == 1:
        return [], [f'pipeline.load_textual_inversion("FOLDER", weight_name="{EMBEDDING}")']
    imports = ["from safetensors.torch import load_file"]
    load = [f'vectors = load_file("FOLDER/{EMBEDDING}")']
    if update.component == "transformer":
        return [*imports, "from tokenizers import AddedToken"], [
            *load,
            f'words = [f"{update.token[:-1]}:{{number}}>" for number in range(len(vectors["{update.token}"]))]',
            "tokens = [AddedToken(word, normalized=False, lstrip=True, rstrip=True) for word in words]",
            "pipeline.tokenizer.add_tokens(tokens)",
            "if len(pipeline.tokenizer) > len(pipeline.text_encoder.get_input_embeddings().weight):",
            "    pipeline.text_encoder.resize_token_embeddings(len(pipeline.tokenizer), mean_resizing=False)",
            "weight = pipeline.text_encoder.get_input_embeddings().weight.data",
            "places = pipeline.tokenizer.convert_tokens_to_ids(words)",
            f'weight[places] = vectors["{update.token}"].to(weight)',
            'word = "".join(words)',
        ]
    for part, number in (("clip_l", ""), ("clip_g", "_2")):
        load += [
            "pipeline.load_textual_inversion(",
            f'    vectors["{part}"], token="{update.token}",',
            f"    text_encoder=pipeline.text_encoder{number}, tokenizer=pipeline.tokenizer{number},",
            ")",
        ]
    return imports, load


def _comfyui(update: _Update) -> tuple[Files, str]:
    files, how = {}, ["Copy the folders into `models/` of ComfyUI."]
    for end, layers in update.loras.items():
        tensors = _kohya(layers) if update.component == "unet" else _peft(update, layers)
        path = f"loras/{update.name}{end}.safetensors"
        files[path] = _file(tensors, _kohya_metadata(update, end, layers))
        further = "To draw in few steps, add one" if end else "Add a LoraLoader"
        how += [f"{further} with `{path}`, strength 1."]
    if update.component == "transformer":
        how += [
            "The keys are PEFT's, `transformer.<layer>.lora_A.weight`: ComfyUI reads them for models whose names in"
            " diffusers it knows, as FLUX, Qwen-Image and Z-Image. If its log says `lora key not loaded`, it does not"
            " know those of yours."
        ]
    if update.vectors:
        files[f"embeddings/{update.name}.safetensors"] = _embedding(update)
        how += [f"Write prompts as `{update.prompt(f'embedding:{update.name}')}`."]
    return files, "\n".join(how)


def _a1111(update: _Update) -> tuple[Files, str]:
    if update.component != "unet":
        raise InputError(
            f"A1111 has no names for LoRA of a {update.component}; export this bundle to diffusers or comfyui"
        )
    files, how = {}, ["Copy what is in `Lora` to `models/Lora` and what is in `embeddings` to `embeddings`."]
    prompt = update.prompt(update.name)
    for end, layers in update.loras.items():
        tensors = _kohya(layers) | ({} if end else _bundled(update))
        path = f"Lora/{update.name}{end}.safetensors"
        files[path] = _file(tensors, _kohya_metadata(update, end, layers))
        prompt += "" if end else f" <lora:{update.name}:1>"
    how += [f"Write prompts as `{prompt}`."]
    if _FEW in update.loras:
        how += [f"To draw in few steps, add `<lora:{update.name}{_FEW}:1>`."]
    if update.vectors:
        files[f"embeddings/{update.name}.safetensors"] = _embedding(update)
    if update.vectors and "" in update.loras:
        how += [
            "The LoRA file holds the metaword as well (`bundle_emb`): programs that read it do without `embeddings`."
            " For the same reason diffusers refuses the file; there is a layout for it."
        ]
    return files, "\n".join(how)


LAYOUTS: dict[str, Callable[[_Update], tuple[Files, str]]] = {
    "diffusers": _diffusers,
    "comfyui": _comfyui,
    "a1111": _a1111,
}
"""Layout -> the files, and how to load them."""


def _peft(update: _Update, layers: Layers) -> dict[str, Tensor]:
    return {
        f"{update.component}.{path}.lora_{letter}.weight": tensor
        for path, pair in layers.items()
        for letter, tensor in zip("AB", pair, strict=True)
    }


def _kohya(layers: Layers) -> dict[str, Tensor]:
    alpha, tensors = _largest_rank(layers), {}
    for path, (down, up) in layers.items():
        key = f"lora_unet_{path.replace('.', '_')}"
        tensors[f"{key}.lora_down.weight"] = down
        tensors[f"{key}.lora_up.weight"] = up * (len(down) / alpha)
        tensors[f"{key}.alpha"] = torch.tensor(float(alpha))
    return tensors


def _largest_rank(layers: Layers) -> int:
    return max(len(down) for down, _ in layers.values())


def _bundled(update: _Update) -> dict[str, Tensor]:
    """The metaword as OneTrainer puts it into a LoRA file, where A1111 and its kin look for it."""
    one = len(update.vectors) == 1
    return {
        f"bundle_emb.{update.name}.{'string_to_param.*' if one else part}": rows
        for part, rows in update.vectors.items()
    }


def _embedding(update: _Update) -> bytes:
    """A file of one tensor for one text encoder, of clip_l and clip_g for two."""
    one = len(update.vectors) == 1
    named = {"emb_params" if one else part: rows for part, rows in update.vectors.items()}
    return _file(named, _metadata(update, "textual-inversion"))


def _file(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    halves = {name: tensor.half() for name, tensor in tensors.items()}
    for name, tensor in halves.items():
        if not bool(tensor.isfinite().all()):
            raise InputError(
                f"'{plain_text(name)}' must be within +-65504 to be exported, as fp16 holds no more"
            )
    return canonical_safetensors(halves, metadata)


def _adapter_metadata(update: _Update, layers: Layers) -> str:
    """What PEFT needs to make the layers again, as diffusers keeps it; alpha is the rank, so that the scale is 1."""
    ranks = {path: len(down) for path, (down, _) in layers.items()}
    rank = Counter(ranks.values()).most_common(1)[0][0]
    # PEFT takes the keys of patterns for regular expressions of the path's end
    others = {f"^{path}": other for path, other in ranks.items() if other != rank}
    config = {
        "r": rank,
        "lora_alpha": rank,
        "target_modules": sorted(ranks),
        "rank_pattern": others,
        "alpha_pattern": others,
    }
    return json.dumps({f"{update.component}.{key}": value for key, value in config.items()}, sort_keys=True)


def _metadata(update: _Update, part: str) -> dict[str, str]:
    """Whose file it is and what for, the latter as ModelSpec 1.0.1 (Stability AI) says it."""
    manifest = update.manifest
    family = update.family[0] if update.family else f"diffusers-{update.component}"
    said = {
        _MARK: manifest.id,
        "dekag.base_digest": manifest.base_digest,
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": f"{family}/{part}",
        "modelspec.implementation": "diffusers",
        "modelspec.title": update.name,
        "modelspec.license": manifest.licence,
    }
    if manifest.metaword is not None:
        said["modelspec.trigger_phrase"] = update.token
        said["modelspec.usage_hint"] = f"the trigger phrase is a {manifest.metaword.position} of every prompt"
    return said


def _kohya_metadata(update: _Update, end: str, layers: Layers) -> dict[str, str]:
    """`_metadata` and the keys by which A1111 names a LoRA and decides which base it is for."""
    rank = str(_largest_rank(layers))
    said = _metadata(update, "lora") | {
        "ss_network_module": "networks.lora",
        "ss_network_dim": rank,
        "ss_network_alpha": rank,
        "ss_output_name": update.name + end,
    }
    if update.family:
        said |= {"ss_base_model_version": update.family[1], "ss_v2": str(update.family[1] == "sd_v2")}
    return said


def _readme(update: _Update, how: str, *, noise_map: bool) -> str:
    manifest = update.manifest
    lines = [_TITLE, "", how, ""]
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
    with path.open("rb") as file:
        if path.name == README:
            return file.readline().strip() == _TITLE.encode()
        size = int.from_bytes(file.read(8), "little")
        return f'"{_MARK}"'.encode() in file.read(min(size, _HEADER_BYTES))
