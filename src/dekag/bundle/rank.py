"""Fewer rank directions for the same update: the truncated singular value decomposition of every layer's B A.

The truncation is the nearest update of its rank in the Frobenius norm (Eckart and Young, 1936). It is computed
from the QR factors of A and B, so no full matrix is ever formed.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from dekag.types import InputError

_A, _B = ".lora_A.weight", ".lora_B.weight"
_USE = "give one of energy in (0, 1], rank of at least 1, or parameters of at least 1"


@dataclass(frozen=True, kw_only=True, eq=False)
class _Layer:
    """The decomposition of one layer's B A and the two factors that it came from; values fall."""

    left: Float[Tensor, "outputs rank"]
    values: Float[Tensor, " rank"]
    right: Float[Tensor, "rank inputs"]
    down: Tensor
    up: Tensor

    @property
    def cost(self) -> int:
        """Parameters of one direction."""
        return len(self.left) + self.right.shape[1]


def reduce_rank(
    lora: Mapping[str, Tensor],
    *,
    energy: float | None = None,
    rank: int | None = None,
    parameters: int | None = None,
) -> dict[str, Tensor]:
    """The best low-rank update under one limit; singular values are split evenly between A and B.

    lora: PEFT's names, `<layer>.lora_A.weight` [rank, inputs] or [rank, inputs, kh, kw] and
        `<layer>.lora_B.weight` [outputs, rank] or [outputs, rank, 1, 1]; the LoRA scale is 1 (alpha == rank).
    energy: each layer keeps the least rank that holds this share of its ||B A||_F^2.
    rank: each layer keeps at most this rank.
    parameters: all layers together keep at most this many numbers, taken by squared singular value per number
        that the direction costs; ranks differ from layer to layer.

    Directions that carry nothing are left out, and so is a layer that has no other. dtype and device stay.
    Raises InputError unless exactly one limit of sense is given and every tensor is one of a pair that fits.
    """
    _check_limits(energy, rank, parameters)
    layers = {name: _decompose(name, lora) for name in _layer_names(lora)}
    if energy is not None:
        ranks = {name: _least_rank(layer.values, energy) for name, layer in layers.items()}
    elif rank is not None:
        ranks = {name: min(rank, len(layer.values)) for name, layer in layers.items()}
    else:
        ranks = _within_budget(layers, parameters or 0)
    reduced: dict[str, Tensor] = {}
    for name, layer in layers.items():
        if ranks[name]:
            reduced[name + _A], reduced[name + _B] = _factors(layer, ranks[name])
    return reduced


def _check_limits(energy: float | None, rank: int | None, parameters: int | None) -> None:
    given = {
        n: v for n, v in (("energy", energy), ("rank", rank), ("parameters", parameters)) if v is not None
    }
    counts = all(type(v) is int and v >= 1 for n, v in given.items() if n != "energy")
    if len(given) != 1 or not counts or (energy is not None and not 0 < energy <= 1):
        listed = ", ".join(f"{name} {value}" for name, value in given.items()) or "none"
        raise InputError(f"{_USE}, got {listed}")


def _layer_names(lora: Mapping[str, Tensor]) -> list[str]:
    names = sorted({name.removesuffix(_A).removesuffix(_B) for name in lora})
    if strays := sorted(lora.keys() ^ {name + part for name in names for part in (_A, _B)}):
        raise InputError(
            f"a LoRA is pairs of <layer>{_A} and <layer>{_B}, but {strays[0]} is alone or no part"
        )
    return names


def _decompose(name: str, lora: Mapping[str, Tensor]) -> _Layer:
    down, up = lora[name + _A].detach(), lora[name + _B].detach()
    deep = min(down.dim(), up.dim()) >= 2 and down.numel() > 0 and up.numel() > 0
    if not deep or up.shape[1] != len(down) or up.shape[2:].numel() != 1:
        raise InputError(
            f"{name}: A must be [rank, inputs, ...] and B [outputs, rank] or [outputs, rank, 1, 1],"
            f" got {list(down.shape)} and {list(up.shape)}"
        )
    if not all(t.is_floating_point() and bool(t.isfinite().all()) for t in (down, up)):
        raise InputError(f"{name}: A and B must hold finite floating-point numbers")
    rows, upper = torch.linalg.qr(up.flatten(1).double())
    columns, lower = torch.linalg.qr(down.flatten(1).double().T)
    left, values, right = torch.linalg.svd(upper @ lower.T, full_matrices=False)
    rank = int((values > values[0] * len(values) * torch.finfo(values.dtype).eps).sum())
    return _Layer(
        left=rows @ left[:, :rank],
        values=values[:rank],
        right=right[:rank] @ columns.T,
        down=down,
        up=up,
    )


def _least_rank(values: Tensor, energy: float) -> int:
    held = values.square().cumsum(0)
    return int((held < energy * held[-1:]).sum()) + 1 if len(values) else 0


def _within_budget(layers: Mapping[str, _Layer], parameters: int) -> dict[str, int]:
    """Ranks by greedy choice; within a layer all directions cost the same, so the largest values come first."""
    gains = sorted(
        ((value**2 / layer.cost, name) for name, layer in layers.items() for value in layer.values.tolist()),
        key=lambda gain: (-gain[0], gain[1]),
    )
    ranks = dict.fromkeys(layers, 0)
    for _, name in gains:
        if layers[name].cost <= parameters:
            parameters -= layers[name].cost
            ranks[name] += 1
    return ranks


def _factors(layer: _Layer, rank: int) -> tuple[Tensor, Tensor]:
    root = layer.values[:rank].sqrt()
    down = (root[:, None] * layer.right[:rank]).reshape(rank, *layer.down.shape[1:])
    up = (layer.left[:, :rank] * root).reshape(len(layer.up), rank, *layer.up.shape[2:])
    return down.to(layer.down.dtype).contiguous(), up.to(layer.up.dtype).contiguous()
