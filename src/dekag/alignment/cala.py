"""CALA: condition-aware low-rank adaptation of a codec (T-KA).

`W(c) x = W x + B diag(g(c)) A x` for every linear layer of the codec. The rank channels of A and B are shared
out among K groups, and `g(c)` in [0, 1]^K is a small network of the condition's features. The paper states a
low-rank update with a soft gate driven by the condition; this form of it is ours. For one condition the
update merges into `W` and costs nothing.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from dekag.channel import BlockFading
from dekag.codec.jscc import Encoded, JsccCodec
from dekag.training.loop import Progress, TrainConfig, train
from dekag.training.transmission import ConditionRange, transmission_loss
from dekag.types import Condition, InputError, Latent, Received, Symbols

GATE_WIDTH = 32


@dataclass(frozen=True, kw_only=True)
class CalaConfig:
    """Size of the update."""

    rank: int = 16
    groups: int = 8

    def __post_init__(self) -> None:
        if self.groups < 1 or self.rank < 1 or self.rank % self.groups:
            raise InputError(
                f"the rank must be a multiple of the groups, got rank {self.rank}, groups {self.groups}"
            )


class Gate(nn.Module):
    """Features of the condition to one opening in [0, 1] for each group; one gate serves all layers."""

    def __init__(self, features: int, config: CalaConfig) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(features, GATE_WIDTH), nn.SiLU(), nn.Linear(GATE_WIDTH, config.groups), nn.Sigmoid()
        )
        self.repeats = config.rank // config.groups

    def forward(self, features: Tensor) -> Tensor:
        """[batch, features] to the opening of each rank channel, [batch, rank]."""
        opening: Tensor = self.layers(features)
        return opening.repeat_interleave(self.repeats, dim=1)


class GatedLinear(nn.Module):
    """A frozen linear layer and its gated low-rank update; `opening` [batch, rank] is set before each pass."""

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__()
        self.base = base
        self.down = nn.Parameter(torch.randn(rank, base.in_features) / base.in_features**0.5)
        self.up = nn.Parameter(torch.zeros(base.out_features, rank))
        self.opening: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """[batch, cells, inputs] to [batch, cells, outputs]."""
        out: Tensor = self.base(x)
        if self.opening is None:
            return out
        return out + (x @ self.down.T * self.opening[:, None, :]) @ self.up.T


class CalaCodec(nn.Module):
    """A codec with its update; implements `dekag.types.Codec`. The codec it is made from is left alone."""

    def __init__(self, codec: JsccCodec, config: CalaConfig) -> None:
        super().__init__()
        self.cala = config
        self.codec = copy.deepcopy(codec).requires_grad_(False)
        features = Condition(uses=1, snr_db=0.0).features().shape[1]
        self.gate = Gate(features, config)
        for name, layer in list(self.codec.named_modules()):
            if isinstance(layer, nn.Linear):
                self.codec.set_submodule(name, GatedLinear(layer, config.rank))

    def encode(self, latent: Latent, condition: Condition) -> Symbols:
        """As JsccCodec.encode, adapted to each image's condition."""
        return self.transmit(latent, condition).symbols

    def transmit(self, latent: Latent, condition: Condition) -> Encoded:
        """As JsccCodec.transmit, adapted to each image's condition."""
        self._open(condition, latent.device)
        return self.codec.transmit(latent, condition)

    def decode(self, received: Received, condition: Condition) -> Latent:
        """As JsccCodec.decode, adapted to each image's condition."""
        self._open(condition, received.symbols.device)
        return self.codec.decode(received, condition)

    def update_tensors(self) -> dict[str, Tensor]:
        """The tensors of the update alone, by name."""
        return {name: p.detach() for name, p in self.named_parameters() if p.requires_grad}

    @torch.no_grad()
    def load_update(self, tensors: dict[str, Tensor]) -> None:
        """Take the tensors of an update; InputError if names or shapes are not those of this codec."""
        own = {name: p for name, p in self.named_parameters() if p.requires_grad}
        if own.keys() != tensors.keys():
            odd = sorted(own.keys() ^ tensors.keys())[0]
            raise InputError(f"the update does not fit the codec: {odd} is in one and not in the other")
        for name, parameter in own.items():
            if parameter.shape != tensors[name].shape:
                shapes = f"{list(tensors[name].shape)}, the codec needs {list(parameter.shape)}"
                raise InputError(f"the update does not fit the codec: {name} is {shapes}")
            parameter.copy_(tensors[name])

    @torch.no_grad()
    def merge(self, condition: Condition) -> JsccCodec:
        """The plain codec for one condition: W + B diag(g) A in every layer.

        Raises InputError if the condition is not that of one image.
        """
        if len(condition) != 1:
            raise InputError(f"an update merges for one condition, got {len(condition)}")
        opening = self.gate(condition.features())[0]
        merged = copy.deepcopy(self.codec)
        for name, layer in list(merged.named_modules()):
            if isinstance(layer, GatedLinear):
                layer.base.weight += layer.up * opening @ layer.down
                merged.set_submodule(name, layer.base)
        return merged

    def _open(self, condition: Condition, device: torch.device) -> None:
        opening = self.gate(condition.features().to(device))
        for layer in self.codec.modules():
            if isinstance(layer, GatedLinear):
                layer.opening = opening


def adapt(
    codec: JsccCodec,
    latents: Latent,
    conditions: ConditionRange,
    config: CalaConfig,
    training: TrainConfig,
    *,
    batch: int = 32,
    checkpoint: Path | None = None,
    on_step: Callable[[Progress], None] | None = None,
) -> CalaCodec:
    """Train an update of the codec on latents, unit scale, over a range of conditions.

    The codec is left as it was. With `checkpoint`, an interrupted run goes on where it was.
    """
    torch.manual_seed(training.seed)
    adapted = CalaCodec(codec, config)
    channel = BlockFading()

    def loss(rng: torch.Generator) -> Tensor:
        chosen = latents[torch.randint(len(latents), (batch,), generator=rng)].float()
        condition = conditions.draw(batch, rng)
        return transmission_loss(adapted, channel, chosen, condition, codec.importance, rng=rng)

    train(adapted, loss, training, checkpoint=checkpoint, on_step=on_step)
    return adapted
