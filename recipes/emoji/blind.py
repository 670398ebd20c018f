"""A learned pair that is told nothing of the physics: what "without T-KA" means in the paper, as far as it says.

Two transformers over the cells, symbols of unit power, the constellation, one-tap equalisation, and no more: no
transform, no order of what is sent, no energies, no prior, neither SNR nor reliability. It is trained at one rate and
one SNR. A codec like any other (`docs/own_codec.md`), so that CALA and its rivals adapt it.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dekag.codec import Encoded, Gain, Pairs, check_latent, check_payload, normalise_power, truncate
from dekag.codec.constellation import commitment_loss, constellation_named, quantise
from dekag.codec.networks import Block
from dekag.types import Condition, Latent, Received, Symbols


class Tokens(torch.nn.Module):
    """Numbers of each cell to others, through blocks over all cells."""

    def __init__(self, inputs: int, outputs: int, *, cells: int, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.enter = torch.nn.Linear(inputs, width)
        self.position = torch.nn.Parameter(0.02 * torch.randn(cells, width))
        self.blocks = torch.nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = torch.nn.LayerNorm(width)
        self.leave = torch.nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.enter(x) + self.position
        for block in self.blocks:
            hidden = block(hidden)
        out: Tensor = self.leave(self.norm(hidden))
        return out.float()


class BlindCodec(torch.nn.Module):
    """Implements `codec.AdaptableCodec`; sizes as of the world's own codec."""

    def __init__(self, latent_shape: tuple[int, int, int], max_uses: int, width: int = 128) -> None:
        super().__init__()
        channels, rows, cols = latent_shape
        self.latent_shape, self.max_uses, self.width = latent_shape, max_uses, width
        self.constellation = constellation_named("256qam")
        each = 2 * max_uses // (rows * cols)
        sizes = {"cells": rows * cols, "width": width, "heads": 4}
        self.encoder = Tokens(channels, each, depth=2, **sizes)
        self.decoder = Tokens(each, channels, depth=3, **sizes)
        # what CALA gates beside the layers, as in a codec with gains
        self.scale = Gain(max_uses)
        self.attention_modules = {
            name: width for name, module in self.named_modules() if isinstance(module, Block)
        }

    def settings(self) -> dict[str, Any]:
        return {"latent_shape": list(self.latent_shape), "max_uses": self.max_uses, "width": self.width}

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> "BlindCodec":
        channels, rows, cols = settings["latent_shape"]
        return cls((channels, rows, cols), settings["max_uses"], settings["width"])

    def encode(self, latent: Latent, condition: Condition) -> Symbols:
        return self.transmit(latent, condition).symbols

    def transmit(self, latent: Latent, condition: Condition) -> Encoded:
        check_latent(self, latent, condition)
        payload = condition.payload.to(latent.device)
        numbers = self.encoder(latent.flatten(2).transpose(1, 2)).flatten(1).unflatten(1, (-1, 2))
        symbols = torch.view_as_complex(numbers.contiguous())[:, : int(payload.max())]
        sent = self.constellation.load * normalise_power(symbols, payload)
        points = truncate(quantise(sent, self.constellation), payload)
        return Encoded(
            symbols=normalise_power(points, payload), commitment=commitment_loss(sent, points, payload)
        )

    def decode(self, received: Received, condition: Condition) -> Latent:
        check_payload(self, condition)
        payload = condition.payload.to(received.symbols.device)
        symbols = truncate(received.symbols[:, : int(payload.max())], payload)
        return self.decode_pairs(torch.view_as_real(symbols), received.state.reliability, condition)

    def decode_pairs(self, symbols: Pairs, reliability: Tensor, condition: Condition) -> Latent:
        scaled = symbols * self.scale()[..., : symbols.shape[1], None]
        numbers = F.pad(scaled.flatten(1), (0, 2 * (self.max_uses - symbols.shape[1])))
        cells = numbers.unflatten(1, (self.latent_shape[1] * self.latent_shape[2], -1))
        decoded: Latent = self.decoder(cells).transpose(1, 2).unflatten(2, self.latent_shape[1:])
        return decoded
