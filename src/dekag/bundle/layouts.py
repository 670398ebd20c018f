"""The layouts that other programs load, each a function from what a bundle holds to files and how to load them.

All tensors are fp16, all metadata strings. A second update, for fewer steps, is a second LoRA.
"""

import json
import re
from collections import Counter
from collections.abc import Callable
from typing import Any, Final

from dekag.bundle.container import EMBEDDING, FEW_STEP, LORA
from dekag.bundle.exported import FEW, PLACES, Exported, Files, Layers, metadata_of, named, tensor_file
from dekag.bundle.kohya import a1111, comfyui
from dekag.types import InputError

PEFT_CONFIG: Final = "adapter_config.json"
PEFT_MODEL: Final = "adapter_model.safetensors"
_FILES: Final = {"": LORA, FEW: FEW_STEP}
_PEFT_FOLDERS: Final = {"": "", FEW: "few_step/"}
_FEWER: Final = "To draw in few steps, further:"


def _diffusers(update: Exported) -> tuple[Files, str]:
    if update.usual_layout != "diffusers":
        raise InputError("diffusers cannot load LoRA into PRX or PixArt-Sigma; export this bundle to peft")
    files, imports = {}, ["from diffusers import DiffusionPipeline"]
    usage = ['pipeline = DiffusionPipeline.from_pretrained("BASE")']
    for end in update.loras:
        metadata = metadata_of(update, "lora") | {"lora_adapter_metadata": _adapter_metadata(update, end)}
        files[_FILES[end]] = tensor_file(named(update.whole(end)), metadata)
    if "" in update.loras:
        usage += [f'pipeline.load_lora_weights("FOLDER", weight_name="{LORA}", adapter_name="dekag")']
    if update.vectors:
        files[EMBEDDING] = tensor_file(update.vectors, metadata_of(update, "textual-inversion"))
        more, lines = _load_vectors(update)
        imports, usage = imports + more, usage + lines
    usage += [_draw(update, "sampling")]
    text = ["```python", *imports, "", *usage, "```", ""]
    text += [PLACES]
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

    Several text encoders share one file. Pipelines of transformers may have no loader of textual inversions, and that
    of diffusers parts the vectors by spaces, which some of their tokenizers read as tokens: there the lines make
    one token a vector themselves, as dekag does.
    """
    if update.component == "unet" and len(update.vectors) == 1:
        return [], [f'pipeline.load_textual_inversion("FOLDER", weight_name="{EMBEDDING}")']
    imports = ["from safetensors.torch import load_file"]
    load = [f'vectors = load_file("FOLDER/{EMBEDDING}")']
    parts = list(zip(update.vectors, ("", "_2", "_3"), strict=False))
    if update.component == "transformer":
        return [*imports, "from tokenizers import AddedToken"], [*load, *_add_tokens(update, parts)]
    for part, number in parts:
        load += [
            "pipeline.load_textual_inversion(",
            f'    vectors["{part}"], token="{update.token}",',
            f"    text_encoder=pipeline.text_encoder{number}, tokenizer=pipeline.tokenizer{number},",
            ")",
        ]
    return imports, load


def _add_tokens(update: Exported, parts: list[tuple[str, str]]) -> list[str]:
    """Lines that add the vectors as tokens; `parts` are their names and the endings of the pipeline's parts."""
    count = len(next(iter(update.vectors.values())))
    return [
        f'words = [f"{update.token[:-1]}:{{number}}>" for number in range({count})]',
        "for part, number in " + repr(tuple(parts)).replace("'", '"') + ":",
        '    tokenizer, encoder = (getattr(pipeline, name + number) for name in ("tokenizer", "text_encoder"))',
        "    tokens = [AddedToken(word, normalized=False, lstrip=True, rstrip=True) for word in words]",
        "    tokenizer.add_tokens(tokens)",
        "    if len(tokenizer) > len(encoder.get_input_embeddings().weight):",
        "        encoder.resize_token_embeddings(len(tokenizer), mean_resizing=False)",
        "    weight = encoder.get_input_embeddings().weight.data",
        "    weight[tokenizer.convert_tokens_to_ids(words)] = vectors[part].to(weight)",
        'word = "".join(words)',
    ]


def _peft(update: Exported) -> tuple[Files, str]:
    if update.encoders:
        raise InputError("peft has no place for LoRA of text encoders; export this bundle to diffusers")
    files: Files = {}
    for end, layers in update.loras.items():
        folder = _PEFT_FOLDERS[end]
        matrices = named(layers, "base_model.model.")
        files[folder + PEFT_MODEL] = tensor_file(matrices, metadata_of(update, "lora"))
        files[folder + PEFT_CONFIG] = (json.dumps(_peft_config(layers), indent=2) + "\n").encode()
    denoiser, imports = f"pipeline.{update.component}", ["from diffusers import DiffusionPipeline"]
    usage = ['pipeline = DiffusionPipeline.from_pretrained("BASE")']
    if "" in update.loras:
        imports += ["from peft import PeftModel"]
        usage += [f'adapted = PeftModel.from_pretrained({denoiser}, "FOLDER")  # within the pipeline as well']
    if update.vectors:
        files[EMBEDDING] = tensor_file(update.vectors, metadata_of(update, "textual-inversion"))
        more, lines = _load_vectors(update)
        imports, usage = imports + more, usage + lines
    text = ["```python", *imports, "", *usage, _draw(update, "sampling"), "```", "", PLACES]
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


LAYOUTS: dict[str, Callable[[Exported], tuple[Files, str]]] = {
    "diffusers": _diffusers,
    "peft": _peft,
    "comfyui": comfyui,
    "a1111": a1111,
}
"""Layout -> the files, and how to load them."""
ONE_FILE: Final = ("comfyui", "a1111")
"""Layouts of programs that find a metaword in the file of a LoRA."""


def _ranks(layers: Layers) -> dict[str, Any]:
    """Ranks as PEFT's configuration says them; alpha is the rank, so that the scale is 1."""
    ranks = {path: len(down) for path, (down, _) in layers.items()}
    rank = Counter(ranks.values()).most_common(1)[0][0]
    # PEFT takes the keys of patterns for regular expressions of the path's end
    others = {f"^{path}": other for path, other in ranks.items() if other != rank}
    return {"r": rank, "lora_alpha": rank, "rank_pattern": others, "alpha_pattern": others}


def _adapter_metadata(update: Exported, end: str) -> str:
    """What PEFT needs to make the layers again, as diffusers keeps it."""
    parts = {update.component: update.loras[end], **({} if end else update.encoders)}
    configs = {part: {**_ranks(held), "target_modules": sorted(held)} for part, held in parts.items()}
    told = {f"{part}.{key}": value for part, config in configs.items() for key, value in config.items()}
    return json.dumps(told, sort_keys=True)


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
