"""Low-rank updates in a denoiser: PEFT's layers, put in, read out, loaded and taken out again."""

import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from peft import LoKrConfig, LoraConfig, PeftConfig, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from torch import Tensor

from dekag.types import InputError

Kind = Literal["lora", "lokr"]
WIDE = 1024
"""Outputs of a layer from which on the low-rank path is less work than a merged weight."""
_SCALES = re.compile(r"\.(lora_B\.weight|lokr_w1|lokr_w1_a)$")
"""One factor of each layer's product."""
LOKR_FACTOR = 4
"""Side of LoKr's first factor: W is updated by w1 (x) w2 with w1 of 4 x 4, where the sizes allow."""


def config_for(kind: Kind, *, rank: int, targets: str | list[str]) -> PeftConfig:
    """PEFT's configuration of a fresh adapter of scale 1 (alpha equal to the rank)."""
    if kind == "lokr":
        return LoKrConfig(r=rank, alpha=rank, target_modules=targets, decompose_factor=LOKR_FACTOR)
    return LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=targets)


@contextmanager
def fresh(denoiser: Any, name: str, config: PeftConfig, *, seed: int) -> Iterator[None]:
    """Within, the denoiser has an adapter to train, and trains nothing else."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        _add(denoiser, name, config)
    try:
        yield
    finally:
        remove(denoiser, name)


@contextmanager
def lean(denoiser: Any, name: str) -> Iterator[None]:
    """Within, the layers of one LoRA compute (W + B A) x at once, which trains faster than PEFT's W x + B (A x).

    The result is the same. It pays where layers are small, since PEFT's way is many small operations; layers
    wider than WIDE keep it, as theirs is less arithmetic.
    """
    layers: list[Any] = [m for m in denoiser.modules() if isinstance(m, LoraLayer) and name in m.lora_A]
    chosen = [layer for layer in layers if layer.get_base_layer().weight.shape[0] <= WIDE]
    for layer in chosen:
        layer.forward = partial(_merged, layer.get_base_layer(), layer.lora_A[name], layer.lora_B[name])
    try:
        yield
    finally:
        for layer in chosen:
            del layer.forward


def _merged(base: Any, down: Any, up: Any, x: Tensor) -> Tensor:
    """A layer's output with its low-rank matrices added to its weight."""
    added = (up.weight.flatten(1) @ down.weight.flatten(1)).view_as(base.weight)
    weight = base.weight + added.to(base.weight.dtype)
    if isinstance(base, torch.nn.Conv2d):
        convolved: Tensor = base._conv_forward(x, weight, base.bias)
        return convolved
    return F.linear(x, weight, base.bias)


def tensors(denoiser: Any, name: str) -> dict[str, Tensor]:
    """Copies of an adapter's tensors by PEFT's names."""
    state = get_peft_model_state_dict(denoiser, adapter_name=name)
    return {key: tensor.detach().clone() for key, tensor in state.items()}


def load(denoiser: Any, name: str, update: Mapping[str, Tensor]) -> None:
    """Put a trained adapter into a denoiser, switched off.

    Raises InputError, before anything is changed, if a layer of the update is not in the denoiser or has another
    shape, or the name is taken.
    """
    if name in getattr(denoiser, "peft_config", {}):
        raise InputError(f"an update named {name} is loaded already; remove it first")
    check_fit(denoiser, update)
    _add(denoiser, name, _config_of(update))
    set_peft_model_state_dict(denoiser, dict(update), adapter_name=name)
    # loaders are known to leave out in silence what they do not understand
    assert tensors(denoiser, name).keys() == update.keys()
    denoiser.disable_adapters()


def remove(denoiser: Any, name: str) -> None:
    """Take an adapter out; with the last one the denoiser is exactly as before."""
    if denoiser.peft_config.keys() == {name}:
        denoiser.unload_lora()
    else:
        with warnings.catch_warnings():
            # who draws says anew which adapters it draws with
            warnings.filterwarnings("ignore", message="Adapter .* was active which is now deleted")
            denoiser.delete_adapters(name)
        denoiser.disable_adapters()


def plain_state(module: torch.nn.Module) -> dict[str, Tensor]:
    """Weights of a module by the names that they have without adapters."""
    return {
        key.replace(".base_layer", ""): tensor
        for key, tensor in module.state_dict().items()
        if not re.search(r"\.lo(ra|kr)_", key)
    }


def scaled(update: Mapping[str, Tensor], strength: float) -> dict[str, Tensor]:
    """An adapter's tensors with all that they add to the denoiser multiplied by `strength`."""
    return {key: tensor * strength if _SCALES.search(key) else tensor for key, tensor in update.items()}


def check_fit(denoiser: Any, update: Mapping[str, Tensor]) -> None:
    """Raise InputError unless every layer of the update is in the denoiser, with the same sizes."""
    weights = plain_state(denoiser)
    for key, tensor in update.items():
        layer, _, matrix = key.partition(".lo")
        weight = weights.get(f"{layer}.weight")
        if weight is None:
            raise InputError(f"the update is for another base: the denoiser has no layer {layer}")
        rows, cols = weight.shape[:2]
        size, expected = {
            "ra_A.weight": (tensor.shape[-1] if tensor.ndim == 2 else tensor.shape[1], cols),
            "ra_B.weight": (tensor.shape[0], rows),
        }.get(matrix, (0, 0))
        if size != expected:
            raise InputError(f"the update is for another base: {key} is for {size} channels, not {expected}")


def _add(denoiser: Any, name: str, config: PeftConfig) -> None:
    with warnings.catch_warnings():
        # several adapters are what is wanted here
        warnings.filterwarnings("ignore", message="Already found a `peft_config`")
        denoiser.add_adapter(config, name)


def _config_of(update: Mapping[str, Tensor]) -> PeftConfig:
    """The configuration that an update's tensors belong to."""
    if any(".lokr_" in key for key in update):
        ranks = {len(t) for key, t in update.items() if key.endswith("lokr_w2_b")}
        layers = sorted({key.partition(".lokr_")[0] for key in update})
        return config_for("lokr", rank=max(ranks, default=1), targets=layers)
    ranks_of = {k.partition(".lora_A")[0]: len(t) for k, t in update.items() if k.endswith("lora_A.weight")}
    patterns = {f"^{re.escape(layer)}$": rank for layer, rank in ranks_of.items()}
    most = max(patterns.values())
    return LoraConfig(
        r=most,
        lora_alpha=most,
        rank_pattern=patterns,
        alpha_pattern=patterns,
        target_modules=list(ranks_of),
    )
