"""A codec on disk: `config.json` and `model.safetensors` in one directory.

`config.json` holds the codec's settings and, under `kind`, its name in `CODECS`; no kind is the shipped one.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from dekag.codec.contract import AdaptableCodec, CodecClass, require_adaptable
from dekag.codec.jscc import JsccCodec
from dekag.types import InputError

SHIPPED = "jscc"
"""The kind that `config.json` does not have to name."""
CODECS: dict[str, CodecClass] = {SHIPPED: JsccCodec}
"""Kind -> class of the codecs that can be loaded; add your own. Nothing else of a folder chooses what is run."""


def save_codec(codec: AdaptableCodec, folder: Path) -> None:
    """Write a codec in fp16.

    Raises InputError if its class is not in CODECS, its settings are no JSON, or a weight is too large for fp16.
    """
    kind = kind_of(codec)
    settings = {**({} if kind == SHIPPED else {"kind": kind}), **codec.settings()}
    if settings.get("kind", SHIPPED) != kind:
        raise InputError(f"settings of {type(codec).__name__} must not use the key kind")
    try:
        text = json.dumps(settings, indent=2)
    except (TypeError, ValueError) as error:
        raise InputError(f"settings of {type(codec).__name__} must be JSON values: {error}") from error
    tensors = {name: _stored(name, tensor) for name, tensor in codec.state_dict().items()}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(text + "\n", encoding="utf-8")
    save_file(tensors, folder / "model.safetensors")


def load_codec(folder: Path, *, kind: CodecClass | None = None) -> AdaptableCodec:
    """Read a codec to fp32, in evaluation mode.

    kind: its class; the one that `config.json` names in CODECS if None.
    Raises InputError if the directory holds no codec, its kind is not in CODECS, or its weights do not fit its
    config.
    """
    try:
        settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        tensors = load_file(folder / "model.safetensors")
    except (OSError, ValueError, SafetensorError) as error:
        raise InputError(f"{folder} holds no codec (config.json and model.safetensors): {error}") from error
    codec = _made(folder / "config.json", settings, kind)
    try:
        codec.load_state_dict(tensors)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{folder}/model.safetensors does not fit its config.json: {reason}") from error
    return codec.eval()


def kind_of(codec: AdaptableCodec) -> str:
    """The name of a codec's class in CODECS; raises InputError if it is not there."""
    for kind, known in CODECS.items():
        if type(codec) is known:
            return kind
    name = type(codec).__name__
    raise InputError(f"{name} has no kind to be saved under: add it, as dekag.codec.CODECS['mine'] = {name}")


def codec_class(settings: Mapping[str, Any]) -> CodecClass:
    """The class that the `kind` of a config names; raises InputError, listing the known ones, if there is none."""
    kind = settings.get("kind", SHIPPED)
    if not isinstance(kind, str) or kind not in CODECS:
        raise InputError(
            f"a codec of kind {kind!r} is not known here; known are {', '.join(CODECS)};"
            " add yours to dekag.codec.CODECS"
        )
    return CODECS[kind]


def _made(config: Path, settings: object, kind: CodecClass | None) -> AdaptableCodec:
    if not isinstance(settings, dict):
        raise InputError(f"{config} must hold a JSON object")
    try:
        codec_type = codec_class(settings) if kind is None else kind
        made = codec_type.from_settings({k: v for k, v in settings.items() if k != "kind"})
    except InputError as error:
        raise InputError(f"{config}: {error}") from error
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{config} has settings that describe no codec: {reason}") from error
    return require_adaptable(made)


def _stored(name: str, tensor: Tensor) -> Tensor:
    if tensor.is_floating_point():
        half = tensor.half()
        if not bool((half.isfinite() | ~tensor.isfinite()).all()):
            raise InputError(f"{name} holds {tensor.abs().max():g}, which is too large for fp16")
        return half.contiguous()
    return (tensor if tensor.is_complex() else tensor.to(torch.int32)).contiguous()
