"""The kinds of low-rank updates: how PEFT configures each, and what an update's tensors tell.

An update is a mapping from `<layer>.<tensor>`, by PEFT's names, to a tensor. A further kind is one more
entry of `KINDS`.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from peft import LoHaConfig, LoKrConfig, LoraConfig, PeftConfig
from torch import Tensor

from dekag.bundle.container import plain_text
from dekag.types import InputError

LOKR_FACTOR = 4
"""Side of LoKr's first factor: W is updated by w1 (x) w2 with w1 of 4 x 4, where the sizes allow."""
MakeConfig = Callable[[int, str, Mapping[str, int]], PeftConfig]
"""(rank, targets, ranks) -> PEFT's configuration of an adapter of scale 1 (alpha equal to the rank).

targets is a regular expression that the whole path of a layer matches; ranks are regular expressions of the layers
that have another rank than the rest.
"""
FindRank = Callable[[Mapping[str, Tensor]], int]
"""The rank of one layer, given its tensors by their names within the layer."""


@dataclass(frozen=True, kw_only=True)
class AdapterKind:
    """What is particular to a kind of adapter.

    tensors: names of a layer's tensors, each below the path of its layer; an update is of the first kind that knows
        all of its names. rank: of a layer, from these; sizes are then those that PEFT gives a layer of that rank.
    scaled: the tensors that all which the adapter adds is proportional to; empty if there are none.
    merged: whether the update is B A, so that `merged_forward` computes it.
    """

    config: MakeConfig
    tensors: tuple[str, ...]
    rank: FindRank
    scaled: tuple[str, ...] = ()
    merged: bool = False


def _lora(rank: int, targets: str, ranks: Mapping[str, int], *, dora: bool = False) -> PeftConfig:
    return LoraConfig(
        r=rank,
        lora_alpha=rank,
        init_lora_weights="gaussian",
        target_modules=targets,
        rank_pattern=dict(ranks),
        alpha_pattern=dict(ranks),
        use_dora=dora,
    )


def _lokr(rank: int, targets: str, ranks: Mapping[str, int]) -> PeftConfig:
    return LoKrConfig(
        r=rank,
        alpha=rank,
        target_modules=targets,
        decompose_factor=LOKR_FACTOR,
        rank_pattern=dict(ranks),
        alpha_pattern=dict(ranks),
    )


def _loha(rank: int, targets: str, ranks: Mapping[str, int]) -> PeftConfig:
    return LoHaConfig(
        r=rank, alpha=rank, target_modules=targets, rank_pattern=dict(ranks), alpha_pattern=dict(ranks)
    )


def _rank_of_lora(tensors: Mapping[str, Tensor]) -> int:
    return tensors["lora_A.weight"].shape[0]


def _rank_of_lokr(tensors: Mapping[str, Tensor]) -> int:
    # a second factor that is no product stands for every rank of at least half its longer side
    return tensors["lokr_w2_b"].shape[0] if "lokr_w2_b" in tensors else max(tensors["lokr_w2"].shape[:2])


def _rank_of_loha(tensors: Mapping[str, Tensor]) -> int:
    return tensors["hada_w1_b"].shape[0]


KINDS: dict[str, AdapterKind] = {
    # Hu et al. 2022
    "lora": AdapterKind(
        config=_lora,
        tensors=("lora_A.weight", "lora_B.weight"),
        rank=_rank_of_lora,
        scaled=("lora_B.weight",),
        merged=True,
    ),
    # Yeh et al. 2024
    "lokr": AdapterKind(
        config=_lokr,
        tensors=("lokr_w1", "lokr_w2", "lokr_w2_a", "lokr_w2_b"),
        rank=_rank_of_lokr,
        scaled=("lokr_w1",),
    ),
    # Liu et al. 2024; each row's length is learned apart from its direction, so that no factor scales the sum
    "dora": AdapterKind(
        config=partial(_lora, dora=True),
        tensors=("lora_A.weight", "lora_B.weight", "lora_magnitude_vector"),
        rank=_rank_of_lora,
    ),
    # Hyeon-Woo et al. 2022
    "loha": AdapterKind(
        config=_loha,
        tensors=("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"),
        rank=_rank_of_loha,
        scaled=("hada_w1_a",),
    ),
}
"""The adapters by name, an update of LoRA before those that have its tensors and more."""


def kind_of(update: Mapping[str, Tensor]) -> AdapterKind:
    """The kind whose names an update's tensors have.

    Raises InputError if there is none.
    """
    for kind in KINDS.values():
        if all(_split(kind, key) for key in update):
            return kind
    strange = next((key for key in update if not any(_split(kind, key) for kind in KINDS.values())), None)
    reason = "mixes several kinds" if strange is None else f"has a tensor {plain_text(strange)!r}"
    raise InputError(f"the update {reason}; known kinds of adapters are {', '.join(KINDS)}")


def config_for(kind: str, *, rank: int, targets: str) -> PeftConfig:
    """PEFT's configuration of a fresh adapter of scale 1, in all layers whose path `targets` matches.

    Raises InputError for an unknown kind.
    """
    if kind not in KINDS:
        raise InputError(f"unknown adapter {kind!r}; known are {', '.join(KINDS)}")
    return KINDS[kind].config(rank, targets, {})


def can_scale(update: Mapping[str, Tensor]) -> bool:
    """Whether an update can be drawn with at another strength than that of its training."""
    return not update or bool(kind_of(update).scaled)


def scaled(update: Mapping[str, Tensor], strength: float) -> dict[str, Tensor]:
    """An adapter's tensors with all that they add to the denoiser multiplied by `strength`.

    Raises InputError for another strength than 1 if the kind of adapter has none.
    """
    if strength == 1 or not update:
        return dict(update)
    endings = tuple(f".{name}" for name in kind_of(update).scaled)
    if not endings:
        raise InputError(f"an update of this kind has no strength but 1, got {strength:g}")
    return {key: tensor * strength if key.endswith(endings) else tensor for key, tensor in update.items()}


def _split(kind: AdapterKind, key: str) -> tuple[str, str] | None:
    """Path of the layer and name within it of a tensor of this kind."""
    found = [name for name in kind.tensors if key.endswith(f".{name}")]
    return (key.removesuffix(f".{found[0]}"), found[0]) if found else None


def layers_of(update: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The tensors of each layer by their names within it."""
    kind, layers = kind_of(update), defaultdict[str, dict[str, Tensor]](dict)
    for key, tensor in update.items():
        split = _split(kind, key)
        assert split is not None
        layers[split[0]][split[1]] = tensor
    return layers


def config_of(update: Mapping[str, Tensor]) -> PeftConfig:
    """The configuration that an update's tensors belong to."""
    kind = kind_of(update)
    layers = layers_of(update)
    ranks = {layer: _layer_rank(kind, layer, held) for layer, held in layers.items()}
    usual = Counter(ranks.values()).most_common(1)[0][0]
    others = {f"^{re.escape(layer)}$": rank for layer, rank in ranks.items() if rank != usual}
    return kind.config(usual, "|".join(re.escape(layer) for layer in layers), others)


def _layer_rank(kind: AdapterKind, layer: str, held: Mapping[str, Tensor]) -> int:
    try:
        rank = kind.rank(held)
    except (KeyError, IndexError, ValueError) as error:
        raise InputError(
            f"the update lacks a tensor of layer {plain_text(layer)} that its rank shows in"
        ) from error
    if rank < 1:
        raise InputError(f"the update has rank {rank} in layer {plain_text(layer)}; it must be at least 1")
    return rank
