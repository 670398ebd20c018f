"""A joint source-channel codec on latents: latent -> symbols -> latent, at every rate a prefix of the next.

```
latent --+--> Linear --> blocks --> Linear --> [symbol slot, cell] --> first `payload` --> power --> QAM --> s
         cells of the grid are tokens                                                                     |
latent <-- Linear <-- blocks <-- Linear <-- [s_hat, reliability] of every slot of a cell  <-- equaliser <-+
```
Symbol `k` belongs to cell `k mod cells` and slot `k // cells`, so a shorter transmission drops whole slots
and fewer uses are a prefix of more.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dekag.codec.constellation import commitment_loss, constellation_named, quantise
from dekag.codec.power import normalise_power, truncate
from dekag.types import Condition, InputError, Latent, PerImage, Received, Symbols


@dataclass(frozen=True, kw_only=True)
class JsccConfig:
    """Sizes of the codec."""

    channels: int = 32
    rows: int = 8
    cols: int = 8
    width: int = 128
    depth: int = 2
    heads: int = 4
    slots: int = 8
    """Complex symbols of each cell at the highest rate."""
    constellation: str = "256qam"

    @property
    def max_uses(self) -> int:
        """Payload symbols at the highest rate."""
        return self.rows * self.cols * self.slots


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


class Stack(nn.Module):
    """Linear, learned cell positions, blocks, norm, Linear, and a straight linear path beside them."""

    def __init__(self, config: JsccConfig, inputs: int, outputs: int) -> None:
        super().__init__()
        self.enter = nn.Linear(inputs, config.width)
        self.position = nn.Parameter(0.02 * torch.randn(config.rows * config.cols, config.width))
        self.blocks = nn.ModuleList(Block(config.width, config.heads) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width)
        self.leave = nn.Linear(config.width, outputs)
        self.straight = nn.Linear(inputs, outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, cells, inputs] to [batch, cells, outputs]."""
        hidden = self.enter(x) + self.position
        for block in self.blocks:
            hidden = block(hidden)
        out: Tensor = self.leave(self.norm(hidden)) + self.straight(x)
        return out


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """What training needs of an encoding: symbols sent, complex [batch, uses], and the commitment loss."""

    symbols: Symbols
    commitment: PerImage


class JsccCodec(nn.Module):
    """Implements `dekag.types.Codec`; every linear layer of it is a place for CALA."""

    def __init__(self, config: JsccConfig) -> None:
        super().__init__()
        self.constellation = constellation_named(config.constellation)
        self.config = config
        self.encoder = Stack(config, config.channels, 2 * config.slots)
        self.decoder = Stack(config, 3 * config.slots, config.channels)
        self.register_buffer("importance", torch.ones(config.channels))
        self.importance: Tensor
        """How much an error in each latent channel shows in the image, mean 1; weights the training error."""

    def encode(self, latent: Latent, condition: Condition) -> Symbols:
        """Latents, unit scale, to unit-power symbols; columns beyond an image's payload are zero."""
        return self.transmit(latent, condition).symbols

    def transmit(self, latent: Latent, condition: Condition) -> Encoded:
        """As `encode`, with the commitment loss of the quantiser (per image)."""
        self._check(latent, condition)
        cells = latent.flatten(2).transpose(1, 2)
        pairs = self.encoder(cells).unflatten(-1, (-1, 2))  # batch, cells, slots, IQ
        analogue = torch.view_as_complex(pairs.transpose(1, 2).float().contiguous()).flatten(1)
        payload = condition.payload.to(latent.device)
        sent = normalise_power(analogue[:, : int(payload.max())], payload)
        points = truncate(quantise(sent, self.constellation), payload)
        # points have unit energy on average, an image's own points have not
        return Encoded(
            symbols=normalise_power(points, payload), commitment=commitment_loss(sent, points, payload)
        )

    def decode(self, received: Received, condition: Condition) -> Latent:
        """Equalised symbols, complex [batch, uses], to latents, unit scale."""
        symbols, state = received.symbols, received.state
        payload = condition.payload.to(symbols.device)
        used = torch.arange(symbols.shape[1], device=symbols.device) < payload[:, None]
        features = torch.stack([symbols.real, symbols.imag, state.reliability], dim=-1) * used[..., None]
        missing = self.config.max_uses - symbols.shape[1]
        slots = F.pad(features, (0, 0, 0, missing)).unflatten(1, (self.config.slots, -1))
        cells: Tensor = self.decoder(slots.transpose(1, 2).flatten(2))
        latent: Tensor = cells.transpose(1, 2).unflatten(2, (self.config.rows, self.config.cols))
        return latent

    def _check(self, latent: Latent, condition: Condition) -> None:
        config = self.config
        if latent.shape[1:] != (config.channels, config.rows, config.cols):
            expected = f"[batch, {config.channels}, {config.rows}, {config.cols}]"
            raise InputError(f"the codec takes latents {expected}, got {list(latent.shape)}")
        if len(condition) != len(latent):
            raise InputError(f"the condition describes {len(condition)} images, but there are {len(latent)}")
        most = int(condition.payload.max())
        if most > config.max_uses:
            raise InputError(f"the codec sends at most {config.max_uses} payload uses an image, got {most}")
