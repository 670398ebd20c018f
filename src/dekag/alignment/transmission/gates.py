"""What opens a low-rank update: the gate of CALA, and those of the methods it is compared with.

A gate maps the features of each image's condition to openings in [0, 1], one for each rank channel of each
gated module.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

Openings = Float[Tensor, "batch openings"]


class SoftGate(nn.Module):
    """A small network of the condition: what CALA has.

    groups: rank channels that share an opening within a module; 1 gives each its own. shared: one set of
    openings for all modules in place of one for each.
    """

    def __init__(
        self, features: int, ranks: Sequence[int], *, width: int, group: int = 1, shared: bool = False
    ) -> None:
        super().__init__()
        places = [torch.arange(rank) // group for rank in ranks]
        counts = [int(place.max()) + 1 for place in places]
        starts = [0] * len(ranks) if shared else [sum(counts[:k]) for k in range(len(ranks))]
        index = torch.cat([start + place for start, place in zip(starts, places, strict=True)])
        self.register_buffer("index", index, persistent=False)
        self.index: Tensor
        self.layers = nn.Sequential(
            nn.Linear(features, width), nn.SiLU(), nn.Linear(width, int(index.max()) + 1), nn.Sigmoid()
        )

    def forward(self, features: Tensor) -> Openings:
        """Openings of all rank channels, module after module."""
        openings: Tensor = self.layers(features)
        return openings[:, self.index]


class OpenGate(nn.Module):
    """Always open: one LoRA for all conditions."""

    def __init__(self, ranks: Sequence[int]) -> None:
        super().__init__()
        self.total = sum(ranks)

    def forward(self, features: Tensor) -> Openings:
        """Ones."""
        return features.new_ones(len(features), self.total)


class HardGate(nn.Module):
    """One of `experts` equal parts of the rank channels, chosen by a small network; the rest is shut.

    The gradient is that of the soft choice (straight-through).
    """

    def __init__(self, features: int, ranks: Sequence[int], *, width: int, experts: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(features, width), nn.SiLU(), nn.Linear(width, experts))
        self.register_buffer("index", _expert_of(ranks, experts), persistent=False)
        self.index: Tensor

    def forward(self, features: Tensor) -> Openings:
        """One for the chosen expert's channels, zero for the others."""
        soft = self.layers(features).softmax(-1)
        hard = nn.functional.one_hot(soft.argmax(-1), soft.shape[1]).to(soft.dtype)
        # soft less itself is exactly 0
        openings: Tensor = (hard + (soft - soft.detach()))[:, self.index]
        return openings


class SnrGroupGate(nn.Module):
    """The part of the rank channels of the SNR range that the condition lies in (after VGSA).

    edges: between ranges, in units of the first feature, which is SNR / 10 dB.
    """

    def __init__(self, ranks: Sequence[int], edges: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("edges", torch.tensor(edges), persistent=False)
        self.register_buffer("index", _expert_of(ranks, len(edges) + 1), persistent=False)
        self.edges: Tensor
        self.index: Tensor

    def forward(self, features: Tensor) -> Openings:
        """One for the channels of the condition's range, zero for the others."""
        group = torch.bucketize(features[:, 0].contiguous(), self.edges, right=True)
        return (group[:, None] == self.index).to(features.dtype)


def _expert_of(ranks: Sequence[int], experts: int) -> Tensor:
    """Expert of each rank channel: each module's channels are dealt out in turn."""
    return torch.cat([torch.arange(rank) * experts // rank for rank in ranks])
