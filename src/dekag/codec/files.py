"""A codec on disk: `config.json` and `model.safetensors` in one directory."""

import json
from dataclasses import asdict, fields
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from dekag.codec.jscc import JsccCodec, JsccConfig
from dekag.types import InputError


def save_codec(codec: JsccCodec, folder: Path) -> None:
    """Write a codec in fp16."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(asdict(codec.config), indent=2) + "\n")
    tensors = {
        name: (t.half() if t.is_floating_point() else t.to(torch.int32)).contiguous()
        for name, t in codec.state_dict().items()
    }
    save_file(tensors, folder / "model.safetensors")


def load_codec(folder: Path) -> JsccCodec:
    """Read a codec to fp32, in evaluation mode.

    Raises InputError if the directory holds no codec or its weights do not fit its config.
    """
    try:
        settings = json.loads((folder / "config.json").read_text())
        tensors = load_file(folder / "model.safetensors")
    except (OSError, ValueError, SafetensorError) as error:
        raise InputError(f"{folder} holds no codec (config.json and model.safetensors): {error}") from error
    known = {field.name for field in fields(JsccConfig)}
    if settings.keys() != known:
        raise InputError(f"{folder}/config.json must have exactly the keys {', '.join(sorted(known))}")
    codec = JsccCodec(JsccConfig(**settings))
    try:
        codec.load_state_dict(tensors)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{folder}/model.safetensors does not fit its config.json: {reason}") from error
    return codec.eval()
