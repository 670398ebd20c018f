"""The layers of a codec that learn: transformers over the cells of a latent's grid."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class Attention(nn.Module):
    """Self-attention over the cells; written out because fused kernels have a slow backward on CPU."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, cells, width] to the same."""
        query, key, value = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        weights = (query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5).softmax(-1)
        mixed: Tensor = self.out((weights @ value).transpose(1, 2).flatten(2))
        return mixed


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.up = nn.Linear(width, 3 * width)
        self.down = nn.Linear(3 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, cells, width] to the same."""
        x = x + self.attention(self.norm1(x))
        down: Tensor = self.down(F.gelu(self.up(self.norm2(x))))
        return x + down


class Correction(nn.Module):
    """What is added to the numbers of each cell; nothing before training.

    Linear, learned cell positions and a linear map of what is known of the whole image, blocks, norm, Linear.
    """

    def __init__(
        self, *, inputs: int, known: int, outputs: int, cells: int, width: int, depth: int, heads: int
    ) -> None:
        super().__init__()
        self.enter = nn.Linear(inputs, width)
        self.known = nn.Linear(known, width, bias=False)
        self.position = nn.Parameter(0.02 * torch.randn(cells, width))
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.leave = nn.Linear(width, outputs)
        for parameter in (self.known.weight, self.leave.weight, self.leave.bias):
            nn.init.zeros_(parameter)

    def forward(
        self, cells: Float[Tensor, "batch cells inputs"], known: Float[Tensor, "batch known"]
    ) -> Float[Tensor, "batch cells outputs"]:
        """The correction of each cell."""
        hidden = self.enter(cells) + self.known(known)[:, None] + self.position
        for block in self.blocks:
            hidden = block(hidden)
        out: Tensor = self.leave(self.norm(hidden))
        return out.float()


class Gain(nn.Module):
    """A positive factor for each symbol, kept as its logarithm."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.log = nn.Parameter(torch.zeros(count))

    def forward(self) -> Float[Tensor, "*batch symbols"]:
        """The factors, [symbols]; under CALA [batch, symbols]."""
        return self.log.exp()
