"""Low-rank updates in a denoiser: PEFT's layers, put in, read out, loaded and taken out again."""

import copy
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from dekag.alignment.generation.adapter_kinds import (
    KINDS,
    AdapterKind,
    can_scale,
    config_for,
    config_of,
    kind_of,
    layers_of,
    scaled,
)
from dekag.bundle.container import plain_text
from dekag.types import InputError

__all__ = [
    "KINDS",
    "AdapterKind",
    "can_scale",
    "check_fit",
    "config_for",
    "fresh",
    "kind_of",
    "load",
    "merged",
    "merged_forward",
    "own_bytes",
    "plain_state",
    "remove",
    "scaled",
    "tensors",
    "train_only",
]

WIDE = 1024
"""Outputs of a layer from which on the low-rank path is less work than a merged weight."""
_PEFT_NAMES = {"lora_magnitude_vector.weight": "lora_magnitude_vector"}
"""Tensors that PEFT saves under another name than the one in its layers."""
_PROBE = "probe"
"""Name of the adapter that tells sizes."""


@contextmanager
def fresh(denoiser: Any, name: str, config: PeftConfig, *, seed: int) -> Iterator[None]:
    """Within, the denoiser has an adapter to train, and trains nothing else; it is fp32, whatever the denoiser is."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        _add(denoiser, name, config)
    for parameter in _parameters(denoiser, name).values():
        parameter.data = parameter.data.float()
    try:
        yield
    finally:
        remove(denoiser, name)


@contextmanager
def merged_forward(denoiser: Any, name: str) -> Iterator[None]:
    """Within, the layers of one LoRA compute (W + B A) x at once, which trains faster than PEFT's W x + B (A x).

    The result is the same. It pays where layers are small, since PEFT's way is many small operations; layers
    wider than WIDE keep it, as theirs is less arithmetic.
    """
    layers: list[Any] = [m for m in denoiser.modules() if isinstance(m, LoraLayer) and name in m.lora_A]
    narrow = [layer for layer in layers if layer.get_base_layer().weight.shape[0] <= WIDE]
    for layer in narrow:
        layer.forward = partial(_merged, layer.get_base_layer(), layer.lora_A[name], layer.lora_B[name])
    try:
        yield
    finally:
        for layer in narrow:
            del layer.forward


def _merged(base: Any, down: Any, up: Any, x: Tensor) -> Tensor:
    """A layer's output with its low-rank matrices added to its weight."""
    added = (up.weight.flatten(1) @ down.weight.flatten(1)).view_as(base.weight)
    weight = base.weight + added.to(base.weight.dtype)
    if isinstance(base, torch.nn.Conv2d):
        convolved: Tensor = base._conv_forward(x, weight, base.bias)
        return convolved
    return F.linear(x, weight, base.bias)


def tensors(denoiser: nn.Module, name: str) -> dict[str, Tensor]:
    """Copies of an adapter's tensors by PEFT's names."""
    return {key: parameter.detach().clone() for key, parameter in _parameters(denoiser, name).items()}


def train_only(denoiser: nn.Module, name: str) -> None:
    """Let an adapter's parameters ask for a gradient, and nothing else of the denoiser."""
    denoiser.requires_grad_(False)
    for parameter in _parameters(denoiser, name).values():
        parameter.requires_grad_(True)


def load(denoiser: Any, name: str, update: Mapping[str, Tensor]) -> None:
    """Put a trained adapter into a denoiser, switched off.

    Raises InputError, before anything is changed, if a layer of the update is not in the denoiser or has another
    shape, or the name is taken.
    """
    if name in getattr(denoiser, "peft_config", {}):
        raise InputError(f"an update named {name} is loaded already; remove it first")
    check_fit(denoiser, update)
    _add(denoiser, name, config_of(update))
    parameters = _parameters(denoiser, name)
    assert parameters.keys() == update.keys()
    with torch.no_grad():
        for key, parameter in parameters.items():
            parameter.copy_(update[key])
    denoiser.disable_adapters()


def remove(module: Any, name: str) -> None:
    """Take an adapter out of a denoiser or text encoder; with the last one it is exactly as before."""
    if module.peft_config.keys() == {name}:
        # diffusers leaves out every layer whose path has "lora" in it
        for path in sorted(_adapted_paths(module), reverse=True):
            module.set_submodule(path, module.get_submodule(path).get_base_layer())
        del module.peft_config
        module._hf_peft_config_loaded = False
        return
    with warnings.catch_warnings():
        # a generator sets the adapters that it draws with each time
        warnings.filterwarnings("ignore", message="Adapter .* was active which is now deleted")
        # models of diffusers, and those of transformers
        delete = module.delete_adapters if hasattr(module, "delete_adapters") else module.delete_adapter
        delete(name)
    module.disable_adapters()


def merged(module: Any, names: Sequence[str]) -> Any:
    """A copy that computes with some adapters added to its weights, and holds none.

    Only the weights that the adapters change are its own; it shares all others, which must stay as they are.
    """
    shared = {id(tensor): tensor for tensor in [*module.parameters(), *module.buffers()]}
    own = copy.deepcopy(module, shared)
    adapted = _adapted_paths(own)
    for path in sorted(adapted, reverse=True):
        layer: Any = own.get_submodule(path)
        own.set_submodule(path, _added(layer, [name for name in names if _layer_has(layer, name)]))
    if adapted:
        del own.peft_config
        own._hf_peft_config_loaded = False
    return own


def own_bytes(module: nn.Module, other: nn.Module) -> int:
    """Bytes of the weights of a module that another one does not share."""
    shared = {tensor.data_ptr() for tensor in other.parameters()}
    own = {p.data_ptr(): p.nbytes for p in module.parameters() if p.data_ptr() not in shared}
    return sum(own.values())


def _layer_has(layer: Any, name: str) -> bool:
    return any(name in getattr(layer, attribute, {}) for attribute in layer.adapter_layer_names)


def _added(layer: Any, names: Sequence[str]) -> nn.Module:
    """The plain layer under some adapters, with their sum in its weight, computed in fp32."""
    plain: nn.Module = layer.get_base_layer()
    if not names:
        return plain
    weight = cast(Tensor, plain.weight)
    with torch.no_grad():
        changed = weight.float() + sum(layer.get_delta_weight(name).float() for name in names)
    plain.weight = nn.Parameter(changed.to(weight), requires_grad=False)
    return plain


def plain_state(module: nn.Module) -> dict[str, Tensor]:
    """Weights of a module by the names that they have without adapters."""
    adapted = _adapted_paths(module)
    named = ((_plain_path(key, adapted), tensor) for key, tensor in module.state_dict().items())
    return {key: tensor for key, tensor in named if key is not None}


def check_fit(denoiser: nn.Module, update: Mapping[str, Tensor]) -> None:
    """Check that every layer of the update is in the denoiser, with all its tensors in the right sizes.

    Raises InputError for the first that is not. Nothing of the denoiser changes.
    """
    if not update:
        return
    config = config_of(update)
    twin = _twin(denoiser, layers_of(update))
    try:
        inject_adapter_in_model(config, twin, _PROBE, low_cpu_mem_usage=True)
    except (ValueError, TypeError, NotImplementedError) as error:
        reason = plain_text(str(error).strip().splitlines()[0])
        raise InputError(f"the update is for another base: {reason}") from error
    expected = _parameters(twin, _PROBE)
    for key in [*update, *(key for key in expected if key not in update)]:
        given, right = (tuple(t[key].shape) if key in t else None for t in (update, expected))
        if given != right:
            raise InputError(
                f"the update is for another base: {plain_text(key)} is {_shown(given)} there, {_shown(right)} here"
            )


def _shown(shape: tuple[int, ...] | None) -> str:
    if shape is None:
        return "absent"
    return " x ".join(map(str, shape)) or "a single number"


def _twin(denoiser: nn.Module, layers: Mapping[str, object]) -> nn.Module:
    """A module that has those layers of a denoiser and nothing else, without storage."""
    known = dict(_plain_modules(denoiser))
    twin = nn.Module()
    for path in layers:
        if path not in known:
            raise InputError(f"the update is for another base: the denoiser has no layer {plain_text(path)}")
        if list(known[path].children()):
            raise InputError(
                f"the update is for another base: {plain_text(path)} is no single layer of the denoiser"
            )
        *parents, last = path.split(".")
        place = twin
        for parent in parents:
            if parent not in place._modules:
                place.add_module(parent, nn.Module())
            place = place.get_submodule(parent)
        empty = {id(p): nn.Parameter(p.detach().to("meta")) for p in known[path].parameters()}
        # the copy takes the empty parameters in place of the layer's
        place.add_module(last, copy.deepcopy(known[path], empty))
    return twin


def _plain_modules(module: nn.Module, path: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Every part of a module, without adapters, by the path that it has without them."""
    base = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module
    yield path, base
    for name, child in base.named_children():
        yield from _plain_modules(child, f"{path}.{name}" if path else name)


def _adapted_paths(module: nn.Module) -> frozenset[str]:
    """Paths of the layers that hold adapters."""
    named = module.named_modules(remove_duplicate=False)
    return frozenset(path for path, part in named if isinstance(part, BaseTunerLayer))


def _plain_path(path: str, adapted: frozenset[str]) -> str | None:
    """A path as it is without adapters, or None if it leads into one."""
    plain: list[str] = []
    parts = path.split(".")
    for at, part in enumerate(parts):
        if ".".join(parts[:at]) not in adapted:
            plain.append(part)
        elif part != "base_layer":
            return None
    return ".".join(plain)


def _parameters(denoiser: nn.Module, name: str) -> dict[str, nn.Parameter]:
    """The parameters of an adapter by the names that an update has for them."""
    adapted = _adapted_paths(denoiser)
    found: dict[str, nn.Parameter] = {}
    for path, layer in denoiser.named_modules():
        if not isinstance(layer, BaseTunerLayer):
            continue
        for attribute in layer.adapter_layer_names:
            held = getattr(layer, attribute, {})
            if name not in held:
                continue
            part = held[name]
            inside = {"": part} if isinstance(part, nn.Parameter) else dict(part.named_parameters())
            for key, parameter in inside.items():
                inner = f"{attribute}.{key}" if key else attribute
                found[f"{_plain_path(path, adapted)}.{_PEFT_NAMES.get(inner, inner)}"] = parameter
    return found


def _add(denoiser: Any, name: str, config: PeftConfig) -> None:
    """Put an adapter in; PEFT puts any kind around LoRA, but LoRA around no other."""
    if isinstance(config, LoraConfig):
        held = [part for part in denoiser.modules() if isinstance(part, BaseTunerLayer)]
        if not all(isinstance(part, LoraLayer) for part in held):
            raise InputError("LoRA cannot be added to an update of another kind; load it first or alone")
    with warnings.catch_warnings():
        # several adapters are what is wanted here
        warnings.filterwarnings("ignore", message="Already found a `peft_config`")
        denoiser.add_adapter(config, name)
