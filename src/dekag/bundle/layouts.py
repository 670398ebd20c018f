"""The layouts that other programs load, each a function from what a bundle holds to files and how to load them.

All tensors are fp16, all metadata strings. A second update, for fewer steps, is a second LoRA. Outside diffusers
and PEFT the update of a U-Net has kohya's names: `lora_unet_` and the layer's path with underscores for dots, then
lora_down, lora_up and alpha; the layer's weight grows by alpha / rank * up @ down. All layers of a file share one
alpha, the largest rank, and lora_up makes up for it: diffusers misreads alphas that differ (it looks attention
layers up under another name), while every reader agrees on this form.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from dekag.bundle.container import EMBEDDING, FEW_STEP, LORA, plain_text
from dekag.bundle.digest import canonical_safetensors
from dekag.bundle.manifest import Manifest
from dekag.types import InputError

Layers = Mapping[str, tuple[Tensor, Tensor]]
"""Down [rank, in, ...] and up [out, rank, ...] by the layer's path."""
Files = dict[str, bytes]
"""By path below the folder."""
FEW: Final = "_few_step"
"""Ending of the name of a second LoRA, for fewer steps."""
MARK: Final = "dekag.bundle"
"""The key of a file's metadata that tells the bundle it came from."""
PEFT_CONFIG: Final = "adapter_config.json"
PEFT_MODEL: Final = "adapter_model.safetensors"
_FILES: Final = {"": LORA, FEW: FEW_STEP}
_PEFT_FOLDERS: Final = {"": "", FEW: "few_step/"}
_PLACES: Final = "BASE is the model that the bundle was made for, FOLDER is this folder."
_FEWER: Final = "To draw in few steps, further:"
_EXAMPLE: Final = "a red apple"
_FAMILIES: Final = {
    768: ("stable-diffusion-v1", "sd_v1"),
    1024: ("stable-diffusion-v2", "sd_v2"),
    2048: ("stable-diffusion-xl-v1-base", "sdxl_base_v1-0"),
}
"""What ModelSpec and kohya call the U-Nets, by the width of the text states that they attend to."""


@dataclass(frozen=True, kw_only=True)
class Exported:
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

    @property
    def usual_layout(self) -> str:
        """`diffusers`, or `peft` where diffusers has no loader of LoRA for the family, as for PRX."""
        paths = [path for layers in self.loras.values() for path in layers]
        return "peft" if any(path.endswith("img_qkv_proj") for path in paths) else "diffusers"

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


def _diffusers(update: Exported) -> tuple[Files, str]:
    if update.usual_layout != "diffusers":
        raise InputError("diffusers cannot load LoRA into PRX; export this bundle to peft")
    files, imports = {}, ["from diffusers import DiffusionPipeline"]
    usage = ['pipeline = DiffusionPipeline.from_pretrained("BASE")']
    for end, layers in update.loras.items():
        metadata = _metadata(update, "lora") | {"lora_adapter_metadata": _adapter_metadata(update, layers)}
        files[_FILES[end]] = _file(_named(layers, update.component), metadata)
    if "" in update.loras:
        usage += [f'pipeline.load_lora_weights("FOLDER", weight_name="{LORA}", adapter_name="dekag")']
    if update.vectors:
        files[EMBEDDING] = _file(update.vectors, _metadata(update, "textual-inversion"))
        more, lines = _load_vectors(update)
        imports, usage = imports + more, usage + lines
    usage += [_draw(update, "sampling")]
    text = ["```python", *imports, "", *usage, "```", ""]
    text += [_PLACES]
    if FEW in update.loras:
        names = ["dekag"] * ("" in update.loras) + ["few_step"]
        few = [
            f'pipeline.load_lora_weights("FOLDER", weight_name="{FEW_STEP}", adapter_name="few_step")',
            f"pipeline.set_adapters({json.dumps(names)})",
            _draw(update, "few_step"),
        ]
        text += ["", _FEWER, "", "```python", *few, "```"]
    return files, "\n".join(text)


def _draw(update: Exported, kind: str) -> str:
    names = {"steps": "num_inference_steps", "guidance": "guidance_scale"}
    options = "".join(f", {names[key]}={value}" for key, value in update.advised(kind).items())
    spelt = update.component == "transformer" and update.vectors
    prompt = f'f"{update.prompt("{word}")}"' if spelt else f'"{update.prompt(update.token)}"'
    return f"image = pipeline(prompt={prompt}{options}).images[0]"


def _load_vectors(update: Exported) -> tuple[list[str], list[str]]:
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


def _peft(update: Exported) -> tuple[Files, str]:
    files: Files = {}
    for end, layers in update.loras.items():
        folder = _PEFT_FOLDERS[end]
        matrices = _named(layers, "base_model.model")
        files[folder + PEFT_MODEL] = _file(matrices, _metadata(update, "lora"))
        files[folder + PEFT_CONFIG] = (json.dumps(_peft_config(layers), indent=2) + "\n").encode()
    denoiser, imports = f"pipeline.{update.component}", ["from diffusers import DiffusionPipeline"]
    usage = ['pipeline = DiffusionPipeline.from_pretrained("BASE")']
    if "" in update.loras:
        imports += ["from peft import PeftModel"]
        usage += [f'adapted = PeftModel.from_pretrained({denoiser}, "FOLDER")  # within the pipeline as well']
    if update.vectors:
        files[EMBEDDING] = _file(update.vectors, _metadata(update, "textual-inversion"))
        more, lines = _load_vectors(update)
        imports, usage = imports + more, usage + lines
    text = ["```python", *imports, "", *usage, _draw(update, "sampling"), "```", "", _PLACES]
    if FEW in update.loras:
        few = [
            "from peft import PeftModel",
            "",
            f'adapted = PeftModel.from_pretrained({denoiser}, "FOLDER/few_step", adapter_name="few_step")',
        ]
        if "" in update.loras:
            few = [
                'adapted.load_adapter("FOLDER/few_step", "few_step")',
                'adapted.base_model.set_adapter(["default", "few_step"], inference_mode=True)',
            ]
        text += ["", _FEWER, "", "```python", *few, _draw(update, "few_step"), "```"]
    return files, "\n".join(text)


def _comfyui(update: Exported) -> tuple[Files, str]:
    files, usage = {}, ["Copy the folders into `models/` of ComfyUI."]
    for end, layers in update.loras.items():
        tensors = _kohya(layers) if update.component == "unet" else _named(layers, update.component)
        path = f"loras/{update.name}{end}.safetensors"
        files[path] = _file(tensors, _kohya_metadata(update, end, layers))
        further = "To draw in few steps, add one" if end else "Add a LoraLoader"
        usage += [f"{further} with `{path}`, strength 1."]
    if update.component == "transformer":
        usage += [
            "The keys are PEFT's, `transformer.<layer>.lora_A.weight`: ComfyUI reads them for models whose names in"
            " diffusers it knows, as FLUX, Qwen-Image and Z-Image. If its log says `lora key not loaded`, it does not"
            " know those of yours."
        ]
    if update.vectors:
        files[f"embeddings/{update.name}.safetensors"] = _embedding(update)
        usage += [f"Write prompts as `{update.prompt(f'embedding:{update.name}')}`."]
    return files, "\n".join(usage)


def _a1111(update: Exported) -> tuple[Files, str]:
    if update.component != "unet":
        raise InputError(
            f"A1111 has no names for LoRA of a {update.component}; export this bundle to diffusers or comfyui"
        )
    files, usage = (
        {},
        ["Copy what is in `Lora` to `models/Lora` and what is in `embeddings` to `embeddings`."],
    )
    prompt = update.prompt(update.name)
    for end, layers in update.loras.items():
        tensors = _kohya(layers) | ({} if end else _bundled(update))
        path = f"Lora/{update.name}{end}.safetensors"
        files[path] = _file(tensors, _kohya_metadata(update, end, layers))
        prompt += "" if end else f" <lora:{update.name}:1>"
    usage += [f"Write prompts as `{prompt}`."]
    if FEW in update.loras:
        usage += [f"To draw in few steps, add `<lora:{update.name}{FEW}:1>`."]
    if update.vectors:
        files[f"embeddings/{update.name}.safetensors"] = _embedding(update)
    if update.vectors and "" in update.loras:
        usage += [
            "The LoRA file holds the metaword as well (`bundle_emb`): programs that read it do without `embeddings`."
            " For the same reason diffusers refuses the file; there is a layout for it."
        ]
    return files, "\n".join(usage)


LAYOUTS: dict[str, Callable[[Exported], tuple[Files, str]]] = {
    "diffusers": _diffusers,
    "peft": _peft,
    "comfyui": _comfyui,
    "a1111": _a1111,
}
"""Layout -> the files, and how to load them."""


def _named(layers: Layers, prefix: str) -> dict[str, Tensor]:
    """The matrices by PEFT's names below a prefix."""
    return {
        f"{prefix}.{path}.lora_{letter}.weight": tensor
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


def _bundled(update: Exported) -> dict[str, Tensor]:
    """The metaword as OneTrainer puts it into a LoRA file, where A1111 and its kin look for it."""
    one = len(update.vectors) == 1
    return {
        f"bundle_emb.{update.name}.{'string_to_param.*' if one else part}": rows
        for part, rows in update.vectors.items()
    }


def _embedding(update: Exported) -> bytes:
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


def _ranks(layers: Layers) -> dict[str, Any]:
    """Ranks as PEFT's configuration says them; alpha is the rank, so that the scale is 1."""
    ranks = {path: len(down) for path, (down, _) in layers.items()}
    rank = Counter(ranks.values()).most_common(1)[0][0]
    # PEFT takes the keys of patterns for regular expressions of the path's end
    others = {f"^{path}": other for path, other in ranks.items() if other != rank}
    return {"r": rank, "lora_alpha": rank, "rank_pattern": others, "alpha_pattern": others}


def _adapter_metadata(update: Exported, layers: Layers) -> str:
    """What PEFT needs to make the layers again, as diffusers keeps it."""
    config = {**_ranks(layers), "target_modules": sorted(layers)}
    return json.dumps({f"{update.component}.{key}": value for key, value in config.items()}, sort_keys=True)


def _peft_config(layers: Layers) -> dict[str, Any]:
    """adapter_config.json; a regular expression takes these layers and no other that ends like one of them."""
    ranks = _ranks(layers)
    paths = "|".join(re.escape(path) for path in sorted(layers))
    return {
        "peft_type": "LORA",
        "inference_mode": True,
        **ranks,
        "target_modules": f"({paths})",
    }


def _metadata(update: Exported, part: str) -> dict[str, str]:
    """Whose file it is and what for, the latter as ModelSpec 1.0.1 (Stability AI) says it."""
    manifest = update.manifest
    family = update.family[0] if update.family else f"diffusers-{update.component}"
    fields = {
        MARK: manifest.id,
        "dekag.base_digest": manifest.base_digest,
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": f"{family}/{part}",
        "modelspec.implementation": "diffusers",
        "modelspec.title": update.name,
        "modelspec.license": manifest.licence,
    }
    if manifest.metaword is not None:
        fields["modelspec.trigger_phrase"] = update.token
        fields["modelspec.usage_hint"] = (
            f"the trigger phrase is a {manifest.metaword.position} of every prompt"
        )
    return fields


def _kohya_metadata(update: Exported, end: str, layers: Layers) -> dict[str, str]:
    """`_metadata` and the keys by which A1111 names a LoRA and decides which base it is for."""
    rank = str(_largest_rank(layers))
    fields = _metadata(update, "lora") | {
        "ss_network_module": "networks.lora",
        "ss_network_dim": rank,
        "ss_network_alpha": rank,
        "ss_output_name": update.name + end,
    }
    if update.family:
        fields |= {"ss_base_model_version": update.family[1], "ss_v2": str(update.family[1] == "sd_v2")}
    return fields
