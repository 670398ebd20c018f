"""The modules of a codec with a gated low-rank update beside their frozen parameters.

`opening` [batch, rank] is set before each pass; None leaves the module as it was. `merged` gives the plain
module for one opening [rank].
"""

import copy

from torch import Tensor, nn

from dekag.codec.jscc import Gain


class GatedLinear(nn.Module):
    """W x + b + B diag(g) (A x + a): a gated update of the weights, and of the bias within its range."""

    def __init__(self, base: nn.Linear, rank: int, *, bias: bool = True) -> None:
        super().__init__()
        self.base = base
        self.lora_A = nn.Linear(base.in_features, rank, bias=bias and base.bias is not None)
        self.lora_B = _closed(rank, base.out_features)
        nn.init.normal_(self.lora_A.weight, std=base.in_features**-0.5)
        self.opening: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """[batch, cells, inputs] to [batch, cells, outputs]."""
        out: Tensor = self.base(x)
        if self.opening is None:
            return out
        low = (self.lora_A(x) * self.opening[:, None, :]).flatten(0, -2).to(out.dtype)
        # added in place, within the product: a pass over the outputs costs as much as the product itself
        out.flatten(0, -2).addmm_(low, self.lora_B.weight.T.to(out.dtype))
        return out

    def merged(self, opening: Tensor) -> nn.Linear:
        """The linear layer for that opening."""
        layer = copy.deepcopy(self.base)
        layer.weight.add_(self.lora_B.weight * opening @ self.lora_A.weight)
        if self.lora_A.bias is not None:
            layer.bias.add_(self.lora_B.weight @ (opening * self.lora_A.bias))
        return layer


class GatedNorm(nn.Module):
    """A layer norm whose factors are multiplied by 1 + U g."""

    def __init__(self, base: nn.LayerNorm, rank: int) -> None:
        super().__init__()
        self.base = base
        self.lora_B = _closed(rank, len(base.weight))
        self.opening: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """[batch, cells, width] to the same."""
        out: Tensor = self.base(x)
        if self.opening is None:
            return out
        return out.mul_(1 + self.lora_B(self.opening)[:, None, :])

    def merged(self, opening: Tensor) -> nn.LayerNorm:
        """The norm for that opening."""
        norm, factor = copy.deepcopy(self.base), 1 + self.lora_B(opening)
        norm.weight.mul_(factor)
        norm.bias.mul_(factor)
        return norm


class GatedGain(nn.Module):
    """Gains whose logarithms are moved by U g."""

    def __init__(self, base: Gain, rank: int) -> None:
        super().__init__()
        self.base = base
        self.lora_B = _closed(rank, len(base.log))
        self.opening: Tensor | None = None

    def forward(self) -> Tensor:
        """The factors, [batch, amplitudes]."""
        if self.opening is None:
            factors: Tensor = self.base()
            return factors
        moved: Tensor = self.base.log + self.lora_B(self.opening)
        return moved.exp()

    def merged(self, opening: Tensor) -> Gain:
        """The gains for that opening."""
        gain = copy.deepcopy(self.base)
        gain.log.add_(self.lora_B(opening))
        return gain


Gated = GatedLinear | GatedNorm | GatedGain


def _closed(rank: int, outputs: int) -> nn.Linear:
    """A matrix of zeros: an update starts as none."""
    layer = nn.Linear(rank, outputs, bias=False)
    nn.init.zeros_(layer.weight)
    return layer
