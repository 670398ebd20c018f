"""The modules of a codec with a gated low-rank update beside their frozen parameters.

`gate_values` [batch, rank] is set before each pass; None leaves the module as it was. `merged` gives the plain
module for the values of one gate [rank]. The first dimension of what goes through a module is the image.
"""

import copy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dekag.codec import Gain
from dekag.types import InputError


class GatedLinear(nn.Module):
    """W x + b + B diag(g) (A x + a): a gated update of the weights, and of the bias within its range.

    content: whether the opening depends on the image as well, by the mean of A x + a over the image.
    """

    def __init__(self, base: nn.Linear, rank: int, *, bias: bool = True, content: bool = False) -> None:
        super().__init__()
        self.base = base
        self.lora_A = nn.Linear(base.in_features, rank, bias=bias and base.bias is not None)
        self.lora_B = _closed(rank, base.out_features)
        nn.init.normal_(self.lora_A.weight, std=base.in_features**-0.5)
        self.content = _closed(rank, rank) if content else None
        self.gate_values: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """[batch, ..., inputs] to [batch, ..., outputs]."""
        out: Tensor = self.base(x)
        if self.gate_values is None:
            return out
        low, gate_values = self.lora_A(x), self.gate_values
        if self.content is not None:
            seen = low.reshape(len(low), -1, low.shape[-1]).mean(1)
            gate_values = (gate_values.logit(eps=1e-6) + self.content(seen)).sigmoid()
        low = (low * _last(gate_values, x)).flatten(0, -2).to(out.dtype)
        # added in place, within the product: a pass over the outputs costs as much as the product itself
        out.view(-1, out.shape[-1]).addmm_(low, self.lora_B.weight.T.to(out.dtype))
        return out

    def merged(self, gate_values: Tensor) -> nn.Linear:
        """The linear layer for those values of the gate. Raises InputError if they depend on the image."""
        if self.content is not None:
            raise InputError("a gate that sees the image does not merge for a condition")
        layer = copy.deepcopy(self.base)
        layer.weight.add_(self.lora_B.weight * gate_values @ self.lora_A.weight)
        if self.lora_A.bias is not None:
            layer.bias.add_(self.lora_B.weight @ (gate_values * self.lora_A.bias))
        return layer


class _GatedKernels(nn.Module):
    """What both kinds of convolution have: A of `inputs` numbers a kernel, and a row of B for each output."""

    def __init__(self, base: nn.Conv2d | nn.ConvTranspose2d, inputs: int, rank: int, *, bias: bool) -> None:
        super().__init__()
        self.base = base
        self.lora_A = nn.Linear(inputs, rank, bias=bias and base.bias is not None)
        self.lora_B = _closed(rank, base.out_channels)
        nn.init.normal_(self.lora_A.weight, std=inputs**-0.5)
        self.gate_values: Tensor | None = None


class GatedConv(_GatedKernels):
    """As GatedLinear, of a convolution: A has the kernel's shape and `rank` outputs, B mixes them at each place.

    The rows of A are kernels laid flat, the same for every group of channels; each output has a row of B.
    """

    base: nn.Conv2d

    def __init__(self, base: nn.Conv2d, rank: int, *, bias: bool = True) -> None:
        super().__init__(base, base.weight[0].numel(), rank, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, inputs, rows, cols] to [batch, outputs, ...]."""
        out: Tensor = self.base(x)
        if self.gate_values is None:
            return out
        groups = self.base.groups
        kernels = self.lora_A.weight.unflatten(1, self.base.weight.shape[1:]).repeat(groups, 1, 1, 1)
        bias = None if self.lora_A.bias is None else self.lora_A.bias.repeat(groups)
        low: Tensor = self.base._conv_forward(x, kernels, bias)
        return out + _mixed(low, self.gate_values, self.lora_B.weight, groups)

    def merged(self, gate_values: Tensor) -> nn.Conv2d:
        """The convolution for those values of the gate."""
        layer = copy.deepcopy(self.base)
        layer.weight.add_((self.lora_B.weight * gate_values @ self.lora_A.weight).view_as(layer.weight))
        if layer.bias is not None and self.lora_A.bias is not None:
            layer.bias.add_(self.lora_B.weight @ (gate_values * self.lora_A.bias))
        return layer


class GatedConvTranspose(_GatedKernels):
    """As GatedConv, of a transposed convolution, called without an output size."""

    base: nn.ConvTranspose2d

    def __init__(self, base: nn.ConvTranspose2d, rank: int, *, bias: bool = True) -> None:
        super().__init__(base, base.weight[:, 0].numel(), rank, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, inputs, rows, cols] to [batch, outputs, ...]."""
        out: Tensor = self.base(x)
        if self.gate_values is None:
            return out
        base, bias = self.base, self.lora_A.bias
        assert not isinstance(base.padding, str)  # of convolutions alone
        low = F.conv_transpose2d(
            x,
            self._kernels(),
            None if bias is None else bias.repeat(base.groups),
            stride=base.stride,
            padding=base.padding,
            output_padding=base.output_padding,
            groups=base.groups,
            dilation=base.dilation,
        )
        return out + _mixed(low, self.gate_values, self.lora_B.weight, base.groups)

    def merged(self, gate_values: Tensor) -> nn.ConvTranspose2d:
        """The transposed convolution for those values of the gate."""
        layer = copy.deepcopy(self.base)
        outputs = (self.lora_B.weight * gate_values).unflatten(0, (layer.groups, -1))
        inputs = self._kernels().unflatten(0, (layer.groups, -1))
        layer.weight.add_(torch.einsum("gor,girhw->giohw", outputs, inputs).flatten(0, 1))
        if layer.bias is not None and self.lora_A.bias is not None:
            layer.bias.add_(self.lora_B.weight @ (gate_values * self.lora_A.bias))
        return layer

    def _kernels(self) -> Tensor:
        """The rows of A as kernels, [inputs, rank, height, width]."""
        kernels: Tensor = self.lora_A.weight.unflatten(1, (self.base.in_channels, *self.base.kernel_size))
        return kernels.transpose(0, 1)


class GatedNorm(nn.Module):
    """A norm whose factors are multiplied by 1 + U g, of the last dimension (layers) or of the channels (groups)."""

    def __init__(self, base: nn.LayerNorm | nn.GroupNorm, rank: int) -> None:
        super().__init__()
        self.base = base
        self.lora_B = _closed(rank, len(base.weight))
        self.gate_values: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """[batch, ..., width] to the same; of groups [batch, width, ...]."""
        out: Tensor = self.base(x)
        if self.gate_values is None:
            return out
        factor: Tensor = 1 + self.lora_B(self.gate_values)
        out.mul_(_last(factor, x) if isinstance(self.base, nn.LayerNorm) else _second(factor, x))
        return out

    def merged(self, gate_values: Tensor) -> nn.LayerNorm | nn.GroupNorm:
        """The norm for those values of the gate."""
        norm, factor = copy.deepcopy(self.base), 1 + self.lora_B(gate_values)
        norm.weight.mul_(factor)
        if norm.bias is not None:
            norm.bias.mul_(factor)
        return norm


class GatedGain(nn.Module):
    """Gains whose logarithms are moved by U g."""

    def __init__(self, base: Gain, rank: int) -> None:
        super().__init__()
        self.base = base
        self.lora_B = _closed(rank, len(base.log))
        self.gate_values: Tensor | None = None

    def forward(self) -> Tensor:
        """The factors, [batch, amplitudes]."""
        if self.gate_values is None:
            factors: Tensor = self.base()
            return factors
        moved: Tensor = self.base.log + self.lora_B(self.gate_values)
        return moved.exp()

    def merged(self, gate_values: Tensor) -> Gain:
        """The gains for those values of the gate."""
        gain = copy.deepcopy(self.base)
        gain.log.add_(self.lora_B(gate_values))
        return gain


KINDS = "nn.Linear, nn.Conv2d, nn.ConvTranspose2d, nn.LayerNorm, nn.GroupNorm, codec.Gain"
"""What can be gated, as messages say it."""
Gated = GatedLinear | GatedConv | GatedConvTranspose | GatedNorm | GatedGain


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """Rank channels of the weights, norms and gains of an update, 0 for none.

    biases: whether they are moved too. content: whether the openings of linear layers depend on the image.
    """

    weights: int
    norms: int
    gains: int
    biases: bool
    content: bool = False


def gateable(module: nn.Module) -> bool:
    """Whether a module is of a kind that can be gated.

    Kinds are exact: what derives from a linear layer may be read in other ways than by a call.
    """
    if type(module) is nn.LayerNorm:
        return module.elementwise_affine and len(module.normalized_shape) == 1
    if type(module) is nn.GroupNorm:
        return module.affine
    return type(module) in (nn.Linear, nn.Conv2d, nn.ConvTranspose2d, Gain)


def gated(module: nn.Module, ranks: Ranks) -> Gated | None:
    """A gateable module with an update that is none yet; None if modules of its kind are to have none."""
    if isinstance(module, nn.Linear):
        return GatedLinear(module, ranks.weights, bias=ranks.biases, content=ranks.content)
    if isinstance(module, nn.Conv2d):
        return GatedConv(module, ranks.weights, bias=ranks.biases)
    if isinstance(module, nn.ConvTranspose2d):
        return GatedConvTranspose(module, ranks.weights, bias=ranks.biases)
    if isinstance(module, nn.LayerNorm | nn.GroupNorm) and ranks.norms:
        return GatedNorm(module, ranks.norms)
    if isinstance(module, Gain) and ranks.gains:
        return GatedGain(module, ranks.gains)
    return None


def _closed(rank: int, outputs: int) -> nn.Linear:
    """A matrix of zeros: an update starts as none."""
    layer = nn.Linear(rank, outputs, bias=False)
    nn.init.zeros_(layer.weight)
    return layer


def _last(values: Tensor, x: Tensor) -> Tensor:
    """Values of each image, [batch, width], for the last dimension of what is alike to `x`."""
    _check_images(values, x)
    return values.reshape(len(values), *[1] * (x.dim() - 2), -1)


def _second(values: Tensor, x: Tensor) -> Tensor:
    """Values of each image, [batch, width], for the second dimension of what is alike to `x`."""
    _check_images(values, x)
    return values.reshape(len(values), -1, *[1] * (x.dim() - 2))


def _mixed(low: Tensor, gate_values: Tensor, weight: Tensor, groups: int) -> Tensor:
    """B diag(g) of the outputs of A, [batch, groups * rank, rows, cols], at each place."""
    opened = low * _second(gate_values.repeat(1, groups), low)
    return F.conv2d(opened, weight[:, :, None, None], groups=groups)


def _check_images(values: Tensor, x: Tensor) -> None:
    if len(values) not in (1, len(x)):
        raise InputError(
            f"a gated module was given {len(x)} rows of {len(values)} images; the first dimension must be the image"
        )
