"""The layouts of ComfyUI and A1111, whose LoRA of a U-Net has kohya's names.

That is `lora_unet_`, or `lora_te_` for a text encoder, and the layer's path with underscores for dots, in SDXL the
path that Stability's own code has for it; then lora_down, lora_up and alpha: the layer's weight grows by
alpha / rank * up @ down. All layers of a file share one alpha, the largest rank, and lora_up makes up for it: diffusers
misreads alphas that differ (it looks attention layers up under another name), while every reader agrees on this form.
"""

import torch
from torch import Tensor

from dekag.bundle.exported import FEW, SDXL, Exported, Files, Layers, metadata_of, named, tensor_file
from dekag.bundle.sgm import sgm_path
from dekag.types import InputError


def comfyui(update: Exported) -> tuple[Files, str]:
    """The files for ComfyUI's folder `models`, and how they are used there."""
    files, usage = {}, ["Copy the folders into `models/` of ComfyUI."]
    joined = _is_joined(update)
    for end in update.loras:
        layers = update.whole(end)
        tensors = kohya_tensors(update, layers) if update.component == "unet" else named(layers)
        path = f"loras/{update.name}{end}.safetensors"
        word = _bundled(update) if joined and not end else {}
        files[path] = tensor_file(tensors | word, _kohya_metadata(update, end, layers))
        further = "To draw in few steps, add one" if end else "Add a LoraLoader"
        usage += [f"{further} with `{path}`, strength 1."]
    if update.component == "transformer":
        usage += [
            "The keys are PEFT's, `transformer.<layer>.lora_A.weight`: ComfyUI reads them for models whose names in"
            " diffusers it knows, as FLUX, Qwen-Image and Z-Image. If its log says `lora key not loaded`, it does not"
            " know those of yours."
        ]
    if joined:
        usage += [
            f"The file holds the metaword as well (`bundle_emb`): copy it into `embeddings` too, as"
            f" `embeddings/{update.name}.safetensors`."
        ]
    elif update.vectors:
        files[f"embeddings/{update.name}.safetensors"] = _embedding(update)
    if update.vectors:
        usage += [f"Write prompts as `{update.prompt(f'embedding:{update.name}')}`."]
    return files, "\n".join(usage)


def a1111(update: Exported) -> tuple[Files, str]:
    """The files for A1111 and its kin, and how they are used there. Raises InputError for LoRA of a transformer."""
    if update.component != "unet":
        raise InputError(
            f"A1111 has no names for LoRA of a {update.component}; export this bundle to diffusers or comfyui"
        )
    files: Files = {}
    prompt, joined = update.prompt(update.name), _is_joined(update)
    for end in update.loras:
        layers = update.whole(end)
        tensors = kohya_tensors(update, layers) | ({} if end else _bundled(update))
        path = f"Lora/{update.name}{end}.safetensors"
        files[path] = tensor_file(tensors, _kohya_metadata(update, end, layers))
        prompt += "" if end else f" <lora:{update.name}:1>"
    if update.vectors and not joined:
        files[f"embeddings/{update.name}.safetensors"] = _embedding(update)
    copied = "" if joined else " and what is in `embeddings` to `embeddings`"
    usage = [f"Copy what is in `Lora` to `models/Lora`{copied}.", f"Write prompts as `{prompt}`."]
    if FEW in update.loras:
        usage += [f"To draw in few steps, add `<lora:{update.name}{FEW}:1>`."]
    if update.vectors and "" in update.loras:
        usage += [
            "The LoRA file holds the metaword as well (`bundle_emb`): programs that read it do without `embeddings`."
            " For the same reason diffusers refuses the file; there is a layout for it."
        ]
    return files, "\n".join(usage)


def _is_joined(update: Exported) -> bool:
    """Whether the metaword is in the file of the LoRA alone."""
    return update.one_file and bool(update.vectors) and "" in update.loras


def kohya_tensors(update: Exported, layers: Layers) -> dict[str, Tensor]:
    """The tensors of one LoRA of a U-Net by kohya's names."""
    alpha, tensors = _largest_rank(layers), {}
    for path, (down, up) in layers.items():
        key = _key(update, path)
        tensors[f"{key}.lora_down.weight"] = down
        tensors[f"{key}.lora_up.weight"] = up * (len(down) / alpha)
        tensors[f"{key}.alpha"] = torch.tensor(float(alpha))
    return tensors


def _key(update: Exported, path: str) -> str:
    """Kohya's name of a layer, of which the path begins with the pipeline's component."""
    part, _, inner = path.partition(".")
    sdxl = update.family is not None and update.family[1] == SDXL
    if part.startswith("text_encoder"):
        # transformers once wrapped every text model of CLIP, and the names are those of then
        wrapped = inner if inner.startswith(("text_model.", "text_projection")) else f"text_model.{inner}"
        several = sdxl or "text_encoder_2" in update.encoders
        number = (part.removeprefix("text_encoder").strip("_") or "1") if several else ""
        return f"lora_te{number}_{wrapped.replace('.', '_')}"
    # A1111 knows every layer of SDXL by the names of SGM, but not the first upsampler by that of diffusers
    own = sgm_path(inner) if sdxl else None
    return f"lora_unet_{(own or inner).replace('.', '_')}"


def _largest_rank(layers: Layers) -> int:
    return max(len(down) for down, _ in layers.values())


def _bundled(update: Exported) -> dict[str, Tensor]:
    """The metaword as OneTrainer puts it into a LoRA file, where A1111, its kin and ComfyUI look for it."""
    one = len(update.vectors) == 1
    return {
        f"bundle_emb.{update.name}.{'string_to_param.*' if one else part}": rows
        for part, rows in update.vectors.items()
    }


def _embedding(update: Exported) -> bytes:
    """A file of one tensor for one text encoder, of clip_l, clip_g and so on for several."""
    one = len(update.vectors) == 1
    rows_by_name = {"emb_params" if one else part: rows for part, rows in update.vectors.items()}
    return tensor_file(rows_by_name, metadata_of(update, "textual-inversion"))


def _kohya_metadata(update: Exported, end: str, layers: Layers) -> dict[str, str]:
    """`metadata_of` and the keys by which A1111 names a LoRA and decides which base it is for."""
    rank = str(_largest_rank(layers))
    fields = metadata_of(update, "lora") | {
        "ss_network_module": "networks.lora",
        "ss_network_dim": rank,
        "ss_network_alpha": rank,
        "ss_output_name": update.name + end,
    }
    if update.family:
        fields |= {"ss_base_model_version": update.family[1], "ss_v2": str(update.family[1] == "sd_v2")}
    return fields
