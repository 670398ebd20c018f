"""A joint source-channel codec on latents: latent -> symbols -> latent, one for all rates.

```
latent -> less mean, times weight -> Stack -> Transform -> first `payload` -> gain -> spread -> power -> QAM -> s
                                                                                                              |
latent <- over weight, plus mean <- Stack <- Transform <- scale <- shrink by prior power <- despread <- equaliser
```
The transforms are separable and start as the Karhunen-Loeve transform of the latents (`codec.klt`), components
by falling variance: what fewer uses carry is a prefix of what more do, and holds what matters most. The stacks,
which see the cells of the grid as tokens, start near the identity and learn the rest.
"""

import copy
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from dekag.codec.constellation import commitment_loss, constellation_named, quantise
from dekag.codec.contract import Encoded, Pairs, check_latent, check_payload
from dekag.codec.klt import Klt
from dekag.codec.power import normalise_power, truncate
from dekag.codec.recognition import EnergyProfile
from dekag.codec.spreading import despread, despread_pairs, rudin_shapiro, spread
from dekag.types import Condition, InputError, Latent, Received, Symbols


@dataclass(frozen=True, kw_only=True)
class JsccConfig:
    """Sizes of the codec.

    Raises InputError if the latent has fewer numbers than the highest rate has amplitudes.
    """

    channels: int = 32
    rows: int = 8
    cols: int = 8
    width: int = 160
    encoder_depth: int = 1
    decoder_depth: int = 2
    heads: int = 4
    patch: int = 1
    """Side of the squares of cells that are seen as one, their numbers being its channels; more is faster on large
    grids. Attention is over (rows / patch) (cols / patch) cells."""
    max_uses: int = 512
    """Payload symbols at the highest rate."""
    constellation: str = "256qam"
    spread: bool = True
    """Whether every component goes over all uses; if not, symbol k is component k."""

    def __post_init__(self) -> None:
        numbers = self.channels * self.rows * self.cols
        if 2 * self.max_uses > numbers:
            raise InputError(f"latents of {numbers} numbers fill {numbers // 2} uses, got {self.max_uses}")
        if self.patch < 1 or self.rows % self.patch or self.cols % self.patch:
            raise InputError(
                f"the patch must divide rows and columns, got {self.patch} for {self.rows} x {self.cols}"
            )

    @property
    def grid(self) -> tuple[int, int, int]:
        """Channels, rows and columns of what the codec computes with."""
        return self.channels * self.patch**2, self.rows // self.patch, self.cols // self.patch


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

    def __init__(self, config: JsccConfig, depth: int, inputs: int) -> None:
        super().__init__()
        self.enter = nn.Linear(inputs, config.width)
        channels, rows, cols = config.grid
        self.position = nn.Parameter(0.02 * torch.randn(rows * cols, config.width))
        self.blocks = nn.ModuleList(Block(config.width, config.heads) for _ in range(depth))
        self.norm = nn.LayerNorm(config.width)
        self.leave = nn.Linear(config.width, channels)
        self.straight = nn.Linear(inputs, channels, bias=False)
        nn.init.normal_(self.leave.weight, std=0.02)
        nn.init.zeros_(self.leave.bias)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, cells, inputs] to [batch, cells, channels]."""
        hidden = self.enter(x) + self.position
        for block in self.blocks:
            hidden = block(hidden)
        out: Tensor = self.leave(self.norm(hidden)) + self.straight(x)
        return out


class Transform(nn.Module):
    """Linear map of the rows and one of the columns of the grid, for each channel."""

    def __init__(self, config: JsccConfig) -> None:
        super().__init__()
        channels, rows, cols = config.grid
        self.grid = (rows, cols)
        self.rows = nn.Parameter(torch.eye(rows).repeat(channels, 1, 1))
        self.cols = nn.Parameter(torch.eye(cols).repeat(channels, 1, 1))

    def analyse(self, cells: Tensor) -> Tensor:
        """[batch, cells, channels] to components, [batch, channels * cells]."""
        grid = cells.transpose(1, 2).unflatten(2, self.grid)
        components: Tensor = self.rows.transpose(1, 2) @ grid @ self.cols
        return components.flatten(1)

    def synthesise(self, components: Tensor) -> Tensor:
        """Components, [batch, channels * cells], to [batch, cells, channels]."""
        grid = components.unflatten(1, (len(self.rows), *self.grid))
        cells: Tensor = self.rows @ grid @ self.cols.transpose(1, 2)
        return cells.flatten(2).transpose(1, 2)


class Gain(nn.Module):
    """A positive factor for each symbol, kept as its logarithm."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.log = nn.Parameter(torch.zeros(count))

    def forward(self) -> Float[Tensor, "*batch symbols"]:
        """The factors, [symbols]; under CALA [batch, symbols]."""
        return self.log.exp()


class JsccCodec(nn.Module):
    """Implements `codec.AdaptableCodec`, `PairDecoder` and `QamCodec`; CALA gates its linear layers, norms, gains."""

    importance: Float[Tensor, " channels"]
    """How much an error in each latent channel shows in the image, mean 1."""
    mean: Float[Tensor, "grid_channels grid_rows grid_cols"]
    weight: Float[Tensor, " grid_channels"]
    order: Int64[Tensor, " amplitudes"]
    """Component that each amplitude carries; symbol k has the amplitudes 2 k and 2 k + 1."""
    signs: Float[Tensor, " uses"]
    """Of the spreading."""

    def __init__(self, config: JsccConfig) -> None:
        super().__init__()
        self.constellation = constellation_named(config.constellation)
        self.config = config
        channels = config.grid[0]
        self.encoder = Stack(config, config.encoder_depth, channels)
        self.analysis = Transform(config)
        self.gain = Gain(config.max_uses)
        self.power = Gain(config.max_uses)
        self.scale = Gain(config.max_uses)
        self.synthesis = Transform(config)
        self.decoder = Stack(config, config.decoder_depth, channels + 1)
        self.register_buffer("importance", torch.ones(config.channels))
        self.register_buffer("mean", torch.zeros(config.grid))
        self.register_buffer("weight", torch.ones(channels))
        self.register_buffer("order", torch.arange(2 * config.max_uses))
        self.register_buffer("signs", rudin_shapiro(config.max_uses), persistent=False)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, rows and columns of the latents."""
        return self.config.channels, self.config.rows, self.config.cols

    @property
    def max_uses(self) -> int:
        """Payload symbols of an image at the highest rate."""
        return self.config.max_uses

    @property
    def attention_modules(self) -> dict[str, int]:
        """The blocks of both stacks, all of the same width."""
        blocks = [name for name, module in self.named_modules() if isinstance(module, Block)]
        return dict.fromkeys(blocks, self.config.width)

    def settings(self) -> dict[str, Any]:
        """The fields of its config; a patch of 1 is left out, as before there were patches."""
        values = asdict(self.config)
        return {name: value for name, value in values.items() if (name, value) != ("patch", 1)}

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> "JsccCodec":
        """A codec of new weights; raises InputError for other settings than the fields of a config.

        One without `patch` is of before there were patches.
        """
        known = {field.name for field in fields(JsccConfig)}
        if settings.keys() | {"patch"} != known:
            raise InputError(f"it must have exactly the keys {', '.join(sorted(known))}")
        return cls(JsccConfig(**settings))

    def with_constellation(self, name: str) -> "JsccCodec":
        """The same codec with another constellation; raises InputError, listing the known ones."""
        other = copy.deepcopy(self)
        other.constellation = constellation_named(name)
        other.config = replace(self.config, constellation=name)
        return other

    @torch.no_grad()
    def start_from(self, klt: Klt) -> None:
        """Take mean, weight and bases of a transform of patches (`to_patches`).

        What is sent is then linear but for the start of the stacks. Gains are those of Lee and Petersen 1976,
        amplitudes to the power 1/4 of the variances, which is the best linear code wherever noise is small.
        """
        self.importance.copy_(klt.importance.unflatten(0, (-1, self.config.patch**2)).mean(1))
        self.mean.copy_(klt.mean)
        self.weight.copy_(klt.weight)
        variance, order = klt.variance.sort(descending=True)
        self.order.copy_(order[: len(self.order)])
        self.encoder.straight.weight.copy_(klt.channel_basis.T)
        self.decoder.straight.weight.zero_()
        self.decoder.straight.weight[:, :-1] = klt.channel_basis
        for transform in (self.analysis, self.synthesis):
            transform.rows.copy_(klt.row_basis)
            transform.cols.copy_(klt.col_basis)
        retained = variance[: len(self.order)].clamp(min=variance[0] * 1e-6).unflatten(0, (-1, 2)).mean(1)
        self.gain.log.copy_(-retained.log() / 4)
        # undoes the gain, and the power constraint of 1/2 an amplitude on the mean over the symbols
        self.scale.log.copy_((retained.log() / 2 + (2 * retained.sqrt().mean()).log()) / 2)

    def encode(self, latent: Latent, condition: Condition) -> Symbols:
        """Latents, unit scale, to unit-power symbols; columns beyond an image's payload are zero."""
        return self.transmit(latent, condition).symbols

    def transmit(self, latent: Latent, condition: Condition) -> Encoded:
        """As `encode`, with the commitment loss of the quantiser (per image)."""
        check_latent(self, latent, condition)
        payload = condition.payload.to(latent.device)
        grid = to_patches(latent, self.config.patch)
        cells = ((grid - self.mean) * self.weight[:, None, None]).flatten(2).transpose(1, 2)
        components = self.analysis.analyse(self.encoder(cells)).float()
        pairs = components[:, self.order].unflatten(1, (-1, 2)) * self.gain()[..., None]
        retained = torch.view_as_complex(pairs.contiguous())[:, : int(payload.max())]
        analogue = spread(retained, payload) if self.config.spread else retained
        sent = self.constellation.load * normalise_power(analogue, payload)
        points = truncate(quantise(sent, self.constellation), payload)
        # the grid as a whole has unit energy, an image's own points have not
        return Encoded(
            symbols=normalise_power(points, payload), commitment=commitment_loss(sent, points, payload)
        )

    def decode(self, received: Received, condition: Condition) -> Latent:
        """Equalised symbols, complex [batch, uses], to latents, unit scale."""
        check_payload(self, condition)
        payload, uses = condition.payload.to(received.symbols.device), int(condition.payload.max())
        symbols = truncate(received.symbols[:, :uses], payload)
        sent = torch.arange(uses, device=payload.device) < payload[:, None]
        known = received.state.reliability[:, :uses].float() * sent
        overall = known.sum(1, keepdim=True) / payload[:, None]
        retained = despread(symbols, payload) if self.config.spread else symbols
        pairs = torch.view_as_real(retained.contiguous())
        return self.reconstruct(pairs, overall if self.config.spread else known, overall)

    def energy_profile(self, symbols: Symbols, condition: Condition) -> EnergyProfile:
        """Energy of the components of received symbols, and what it is on average in what is sent.

        The gains of Lee and Petersen 1976 are amplitudes to the power 1/4 of the variances, and leave a power of their
        square root: the inverse square of the gain, which training moves little.
        """
        payload, uses = condition.payload.to(symbols.device), int(condition.payload.max())
        arrived = truncate(symbols[:, :uses], payload)
        components = despread(arrived, payload) if self.config.spread else arrived
        sent = torch.arange(uses, device=payload.device) < payload[:, None]
        share = self.gain()[..., :uses].detach().pow(-2) * sent
        return EnergyProfile(
            energy=components.real.square() + components.imag.square(),
            share=share / share.sum(1, keepdim=True) * payload[:, None],
            alike=self.config.spread,
        )

    def decode_pairs(
        self, symbols: Pairs, reliability: Float[Tensor, "batch uses"], condition: Condition
    ) -> Latent:
        """As `decode`, of images of which every symbol is payload, in real numbers alone."""
        overall = reliability.mean(1, keepdim=True)
        if not self.config.spread:
            return self.reconstruct(symbols, reliability, overall)
        return self.reconstruct(despread_pairs(symbols, self.signs), overall, overall)

    def reconstruct(
        self,
        symbols: Pairs,
        reliability: Float[Tensor, "batch _"],
        overall: Float[Tensor, "batch 1"],
    ) -> Latent:
        """Latents of despread symbols, of each of which `reliability` survived, and `overall` of the payload."""
        uses = symbols.shape[1]
        power, scale = (gain()[..., :uses] for gain in (self.power, self.scale))
        # The equaliser takes symbols for unit energy; LMMSE with each component's own power instead.
        factor = scale * power / (power * reliability + 1 - reliability)
        amplitudes = (symbols * factor[..., None]).flatten(1)
        components = amplitudes.new_zeros(len(amplitudes), self.mean.numel())
        components = components.index_copy(1, self.order[: 2 * uses], amplitudes)
        cells = self.synthesis.synthesise(components)
        fidelity = overall[:, None, :].expand(-1, cells.shape[1], 1)
        decoded: Tensor = self.decoder(torch.cat([cells, fidelity], dim=2)).float()
        grid: Tensor = decoded.transpose(1, 2).unflatten(2, self.config.grid[1:])
        return from_patches(grid / self.weight[:, None, None] + self.mean, self.config.patch)


def to_patches(latent: Tensor, patch: int) -> Tensor:
    """[batch, channels, rows, cols] to [batch, channels patch^2, rows / patch, cols / patch]; 1 changes nothing."""
    return latent if patch == 1 else F.pixel_unshuffle(latent, patch)


def from_patches(grid: Tensor, patch: int) -> Tensor:
    """Undoes `to_patches`."""
    return grid if patch == 1 else F.pixel_shuffle(grid, patch)
