"""LoRA of other trainers as an update of an edge: names of kohya, diffusers and PEFT, in one safetensors file.

Every layer of the edge is looked up under all the names that these give it. What has no such name, another size or
another form than LoRA is left out and named. The scale alpha / rank goes into the matrices, so that it is 1.
"""

import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import torch
from diffusers.utils.state_dict_utils import (
    StateDictType,
    convert_state_dict_to_peft,
    convert_unet_state_dict_to_peft,
)
from peft import LoraConfig
from peft.utils.other import get_pattern_key
from torch import Tensor, nn

from dekag.alignment.generation.update import GenerationUpdate
from dekag.bundle.container import plain_text
from dekag.bundle.manifest import CLIPS
from dekag.bundle.sgm import plain_blocks, sgm_path
from dekag.errors import InputError
from dekag.generation.diffusers import DiffusersGenerator
from dekag.generation.metaword import Metaword

Layer = tuple[str, str]
"""Component of a pipeline, and path of a layer below it."""
_TENSOR = re.compile(
    r"(?P<layer>.+?)\.(?:(?P<down>lora_down|lora_A)|(?P<up>lora_up|lora_B))(?:\.default)?\.weight"
    r"|(?P<scaled>.+?)\.(?P<alpha>alpha)"
)
_OTHER = re.compile(r"\.(?=(lora|hada|lokr|dora|oft|diff|on_input|w_norm|b_norm|alpha)[_.\w]*$)")
_WORD = re.compile(r"bundle_emb\.(?P<name>[^.]+)\.(?P<part>string_to_param\.\*|clip_l|clip_g|t5xxl)")
_SHOWN = 3
"""Names in the line of a refusal."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ForeignLora:
    """What a file held. unread: what was left out, by its name in the file, and why. rank: the most frequent one."""

    update: GenerationUpdate
    unread: Mapping[str, str]
    layers: int
    rank: int
    licence: str | None = None


@dataclass
class _Found:
    """The tensors of one layer of a file; `other` are names of those that LoRA has not."""

    down: Tensor | None = None
    up: Tensor | None = None
    alpha: Tensor | None = None
    other: list[str] = field(default_factory=list)


def read_lora(generator: DiffusersGenerator, file: Path) -> ForeignLora:
    """The LoRA of a file for this generator; nothing of the generator changes.

    Raises InputError in one line if it is no safetensors file, or nothing in it fits.
    """
    tensors, metadata = _read(file)
    words = {name: tensor for name, tensor in tensors.items() if _WORD.fullmatch(name)}
    found = _grouped({name: tensor for name, tensor in tensors.items() if name not in words})
    known, modules = _spellings(generator), _modules(generator)
    scales = _Scales(_configs(file, metadata))
    unread: dict[str, str] = {}
    pairs: dict[Layer, tuple[Tensor, Tensor]] = {}
    for name, layer in found.items():
        place = known.get(name)
        reason = _misfit(layer, place, modules) or ("it is there twice" if place in pairs else "")
        if reason or place is None:
            unread[name] = reason
        else:
            pairs[place] = _scaled(layer, scales.of(layer, place), modules[place])
    word = _metaword(generator, words, unread)
    if not pairs and word is None:
        raise _nothing(file, unread, metadata)
    return ForeignLora(
        update=_update(generator, pairs, word),
        unread=unread,
        layers=len(pairs),
        rank=Counter(len(down) for down, _ in pairs.values()).most_common(1)[0][0] if pairs else 0,
        licence=metadata.get("modelspec.license"),
    )


def _read(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safetensors.safe_open(file, "pt") as opened:
            names = opened.keys()
            return {name: opened.get_tensor(name) for name in names}, opened.metadata() or {}
    except (OSError, safetensors.SafetensorError, ValueError) as error:
        raise InputError(f"{file} is no safetensors file that can be read: {plain_text(error)}") from error


def _grouped(tensors: Mapping[str, Tensor]) -> dict[str, _Found]:
    """The tensors of each layer, by the layer's name in the file as PEFT would write it."""
    found: dict[str, _Found] = defaultdict(_Found)
    for name, tensor in tensors.items():
        match = _TENSOR.fullmatch(_peft_name(name))
        if match is None:
            found[_OTHER.split(name, maxsplit=1)[0]].other.append(name)
        elif match["alpha"]:
            found[match["scaled"]].alpha = tensor
        elif match["down"]:
            found[match["layer"]].down = tensor
        else:
            found[match["layer"]].up = tensor
    return found


def _peft_name(name: str) -> str:
    """A tensor's name with PEFT's endings, if diffusers wrote it with one of its older ones; others as they are."""
    if name.startswith("text_encoder"):
        converted = convert_state_dict_to_peft({name: None}, original_type=StateDictType.DIFFUSERS_OLD)
    else:
        converted = convert_unet_state_dict_to_peft({name: None})
    return str(next(iter(converted)))


def _modules(generator: DiffusersGenerator) -> dict[Layer, nn.Linear | nn.Conv2d]:
    """Every layer that LoRA can update, by its component and path."""
    family, pipeline = generator.family, generator.pipeline
    return {
        (part, path): layer
        for part in (family.denoiser, *family.encoders)
        for path, layer in _plain_layers(getattr(pipeline, part))
    }


def _plain_layers(module: nn.Module) -> Iterator[tuple[str, nn.Linear | nn.Conv2d]]:
    for path, layer in module.named_modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            yield path, layer


def _spellings(generator: DiffusersGenerator) -> dict[str, Layer]:
    """Every name that a layer may have in a file."""
    family, pipeline, names = generator.family, generator.pipeline, dict[str, Layer]()
    denoiser = family.denoiser
    module = getattr(pipeline, denoiser)
    paths = [path for path, _ in _plain_layers(module)]
    layers, plain = module.config.get("layers_per_block"), plain_blocks(paths)
    for path in paths:
        sgm = sgm_path(path, layers=layers, plain=plain) if isinstance(layers, int) else None
        spelt = {f"lora_unet_{kohya.replace('.', '_')}" for kohya in (path, sgm) if kohya}
        spelt |= {f"diffusion_model.{sgm}"} if sgm else set()
        spelt |= {f"{prefix}{path}" for prefix in ("", f"{denoiser}.", "base_model.model.")}
        spelt |= {f"base_model.model.{denoiser}.{path}", f"{denoiser}.base_model.model.{path}"}
        names |= dict.fromkeys(spelt, (denoiser, path))
    for number, part in enumerate(family.encoders, start=1):
        encoder = getattr(pipeline, part)
        prefixes = ["lora_te", f"lora_te{number}"] if number == 1 else [f"lora_te{number}"]
        for path, _ in _plain_layers(encoder):
            # transformers once wrapped every text model of CLIP, and files have the names of then
            wrapped = path if hasattr(encoder, "text_model") else f"text_model.{path}"
            spelt = {f"{prefix}_{wrapped.replace('.', '_')}" for prefix in prefixes}
            spelt |= {f"{part}.{path}", f"{part}.{wrapped}", f"{part}.base_model.model.{path}"}
            names |= dict.fromkeys(spelt, (part, path))
    return names


def _misfit(found: _Found, place: Layer | None, modules: Mapping[Layer, nn.Linear | nn.Conv2d]) -> str:
    """Why a layer of a file cannot be read, or nothing."""
    if found.other:
        return f"{plain_text(found.other[0].rpartition('.')[2])} is no part of LoRA"
    if found.down is None or found.up is None:
        return "one of its two matrices is missing"
    if place is None:
        return "the model has no layer of this name"
    alpha = torch.ones(()) if found.alpha is None else found.alpha
    if not all(bool(tensor.isfinite().all()) for tensor in (found.down, found.up, alpha)):
        return "it holds NaN or infinite values"
    return _misshapen(found.down, found.up, alpha, modules[place].weight)


def _misshapen(down: Tensor, up: Tensor, alpha: Tensor, weight: Tensor) -> str:
    """Why matrices have no product of a weight's size, or nothing; 1 x 1 convolutions may be written as matrices."""
    rank = len(down) if down.ndim else 0
    sizes = (rank * weight[0].numel(), len(weight) * rank)
    if not rank or (down.numel(), up.numel()) != sizes or up.ndim < 2 or up.shape[:2] != (len(weight), rank):
        return f"it is {list(down.shape)} and {list(up.shape)}, for a weight of {list(weight.shape)}"
    return "" if alpha.numel() == 1 else f"its alpha is {list(alpha.shape)}, and it must be one number"


def _scaled(found: _Found, scale: float, layer: nn.Linear | nn.Conv2d) -> tuple[Tensor, Tensor]:
    """Both matrices in the shapes of the layer's adapter, their product multiplied by the scale.

    A power of two moves between them, so that neither is too small for fp16.
    """
    assert found.down is not None
    assert found.up is not None
    down = found.down.float().reshape(-1, *layer.weight.shape[1:])
    up = found.up.float().reshape(*found.up.shape[:2], *(1,) * (down.ndim - 2)) * scale
    sizes = [float(matrix.square().mean().sqrt()) for matrix in (down, up)]
    if min(sizes) > 0:
        balance = 2.0 ** round(math.log2(sizes[1] / sizes[0]) / 2)
        down, up = down * balance, up / balance
    return down, up


@dataclass(frozen=True)
class _Scales:
    """What a layer's product is multiplied by; `configs` are PEFT's of each component, if the file has them."""

    configs: Mapping[str, Mapping[str, Any]]

    def of(self, found: _Found, place: Layer) -> float:
        """The scale alpha / rank by the file's alpha, else by PEFT's configuration, else 1."""
        assert found.down is not None
        rank, (part, path) = len(found.down), place
        if found.alpha is not None:
            return float(found.alpha) / rank
        config = self.configs.get(part)
        if config is None:
            return 1.0
        pattern: dict[str, float] = config.get("alpha_pattern") or {}
        key = get_pattern_key(list(pattern), path)
        alpha = float(pattern[key] if key in pattern else config.get("lora_alpha", rank))
        return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _configs(file: Path, metadata: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """PEFT's configuration of each component, from diffusers' metadata or from adapter_config.json beside the file."""
    beside = file.with_name("adapter_config.json")
    try:
        if "lora_adapter_metadata" in metadata:
            fields: dict[str, Any] = json.loads(metadata["lora_adapter_metadata"])
            parts: dict[str, dict[str, Any]] = defaultdict(dict)
            for name, value in fields.items():
                part, _, key = name.partition(".")
                parts[part][key] = value
            return {part: _checked(config) for part, config in parts.items()}
        if file.name.startswith("adapter_model") and beside.is_file():
            config = _checked(json.loads(beside.read_text(encoding="utf-8")))
            return {"unet": config, "transformer": config}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise InputError(f"the configuration of {file} cannot be read: {plain_text(error)}") from error
    return {}


def _checked(config: dict[str, Any]) -> dict[str, Any]:
    """PEFT's configuration of LoRA, by its own fields; ValueError for another kind of adapter."""
    if config.get("peft_type", "LORA") != "LORA":
        raise ValueError(f"it is {config['peft_type']}, and LORA is read")
    known = ("lora_alpha", "alpha_pattern", "use_rslora")
    made = LoraConfig(**{name: config[name] for name in known if name in config})
    return {name: getattr(made, name) for name in known if name in config}


def _metaword(
    generator: DiffusersGenerator, words: Mapping[str, Tensor], unread: dict[str, str]
) -> Metaword | None:
    """The one metaword of a file, as OneTrainer puts it there; None if there is none that the edge can read."""
    encoders = list(generator.family.encoders)
    names = {match["name"] for name in words if (match := _WORD.fullmatch(name))}
    endings = ["string_to_param.*"] if len(encoders) == 1 else list(CLIPS[: len(encoders)])
    rows = [words.get(f"bundle_emb.{name}.{ending}") for name in names for ending in endings]
    widths = [getattr(generator.pipeline, part).get_input_embeddings().weight.shape[1] for part in encoders]
    token = f"<{next(iter(names), '').lower()}>"
    fits = (
        len(names) == 1
        and re.fullmatch(r"<[a-z0-9_-]{1,62}>", token)
        and all(
            row is not None and row.ndim == 2 and row.shape[1] == width
            for row, width in zip(rows, widths, strict=True)
        )
    )
    if not fits:
        unread |= dict.fromkeys(words, "it is no metaword for this model, or not the only one")
        return None
    return Metaword(
        token=token,
        vectors={part: row.float() for part, row in zip(encoders, rows, strict=True) if row is not None},
    )


def _update(
    generator: DiffusersGenerator, pairs: Mapping[Layer, tuple[Tensor, Tensor]], word: Metaword | None
) -> GenerationUpdate:
    held: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for (part, path), (down, up) in pairs.items():
        held[part] |= {f"{path}.lora_A.weight": down, f"{path}.lora_B.weight": up}
    adapter = held.pop(generator.family.denoiser, {})
    return GenerationUpdate(metaword=word, adapter=adapter, encoders=dict(held))


def _nothing(file: Path, unread: Mapping[str, str], metadata: Mapping[str, str]) -> InputError:
    """The line for a file of which nothing fits."""
    reasons = [f"{plain_text(name)} ({reason})" for name, reason in list(unread.items())[:_SHOWN]]
    more = f" and {len(unread) - _SHOWN} more" if len(unread) > _SHOWN else ""
    made_for = metadata.get("ss_base_model_version") or metadata.get("modelspec.architecture")
    told = f"; the file says it is for {plain_text(made_for)}" if made_for else ""
    held = f"{', '.join(reasons)}{more}" if reasons else "it is empty"
    return InputError(f"{file} holds no LoRA for this model: {held}{told}")
