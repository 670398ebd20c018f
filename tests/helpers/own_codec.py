"""A codec of one's own: a small convolutional pair. `docs/own_codec.md` shows this file."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dekag.codec import Encoded, Pairs, check_latent, check_payload, normalise_power, truncate
from dekag.types import Condition, Latent, Received, Symbols


class ConvCodec(nn.Module):
    """Half the rows and columns, two numbers a symbol; fewer symbols are a prefix of more."""

    def __init__(self, latent_shape: tuple[int, int, int], max_uses: int, width: int = 16) -> None:
        super().__init__()
        channels, rows, cols = latent_shape
        self.latent_shape, self.max_uses, self.width = latent_shape, max_uses, width
        self.grid = (2 * max_uses // (rows * cols // 4), rows // 2, cols // 2)
        self.encoder = nn.Sequential(
            nn.Conv2d(channels, width, 3, stride=2, padding=1),
            nn.GroupNorm(4, width),
            nn.SiLU(),
            nn.Conv2d(width, self.grid[0], 3, padding=1),
        )
        self.decoder = nn.Sequential(
            nn.Conv2d(self.grid[0] + 1, width, 3, padding=1),
            nn.SiLU(),
            nn.ConvTranspose2d(width, channels, 4, stride=2, padding=1),
        )
        self.attention_modules = {"encoder.0": width, "decoder.0": width}

    def settings(self) -> dict[str, Any]:
        return {"latent_shape": list(self.latent_shape), "max_uses": self.max_uses, "width": self.width}

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> "ConvCodec":
        channels, rows, cols = settings["latent_shape"]
        return cls((channels, rows, cols), settings["max_uses"], settings["width"])

    def encode(self, latent: Latent, condition: Condition) -> Symbols:
        return self.transmit(latent, condition).symbols

    def transmit(self, latent: Latent, condition: Condition) -> Encoded:
        check_latent(self, latent, condition)
        numbers: Tensor = self.encoder(latent).float()
        symbols = torch.view_as_complex(numbers.flatten(1).unflatten(1, (-1, 2)).contiguous())
        sent = normalise_power(symbols, condition.payload.to(latent.device))
        return Encoded(symbols=sent, commitment=numbers.new_zeros(len(latent)))

    def decode(self, received: Received, condition: Condition) -> Latent:
        check_payload(self, condition)
        symbols = truncate(received.symbols, condition.payload.to(received.symbols.device))
        return self.decode_pairs(torch.view_as_real(symbols), received.state.reliability, condition)

    def decode_pairs(self, symbols: Pairs, reliability: Tensor, condition: Condition) -> Latent:
        numbers = F.pad(symbols.flatten(1), (0, 2 * (self.max_uses - symbols.shape[1])))
        fidelity = (reliability.sum(1) / self.max_uses)[:, None, None, None].expand(-1, 1, *self.grid[1:])
        decoded: Latent = self.decoder(torch.cat([numbers.unflatten(1, self.grid), fidelity], dim=1)).float()
        return decoded
