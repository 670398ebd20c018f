"""SNR attention: every channel of a codec's blocks weighted by a small network of the condition and the content.

After ADJSCC (Xu et al. 2021, IEEE Trans. Circuits Syst. Video Technol.), as a method to compare CALA with: the
codec is frozen, the weights depend on what the cells hold, so that it does not merge.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from dekag.codec.jscc import Block, Encoded, JsccCodec
from dekag.types import Condition, Latent, Received, Symbols


class AttendedBlock(nn.Module):
    """A frozen block, its output channels weighted between 0 and 2; `features` is set for each pass."""

    def __init__(self, base: Block, width: int, features: int, hidden: int) -> None:
        super().__init__()
        self.base = base
        last = nn.Linear(hidden, width)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.layers = nn.Sequential(nn.Linear(width + features, hidden), nn.ReLU(), last, nn.Sigmoid())
        self.features: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """[batch, cells, width] to the same."""
        assert self.features is not None
        out: Tensor = self.base(x)
        weight: Tensor = 2 * self.layers(torch.cat([out.mean(1), self.features], dim=1))
        return out * weight[:, None, :]


class SnrAttentionCodec(nn.Module):
    """A codec with attention after each block; implements `dekag.types.Codec`. The codec it is made from stays."""

    def __init__(self, codec: JsccCodec, hidden: int) -> None:
        super().__init__()
        self.hidden = hidden
        self.codec = copy.deepcopy(codec).requires_grad_(False)
        features = Condition(uses=1, snr_db=0.0).features().shape[1]
        for name, module in list(self.codec.named_modules()):
            if isinstance(module, Block):
                attended = AttendedBlock(module, codec.config.width, features, hidden)
                self.codec.set_submodule(name, attended)

    def encode(self, latent: Latent, condition: Condition) -> Symbols:
        """As JsccCodec.encode, adapted to each image's condition and content."""
        return self.transmit(latent, condition).symbols

    def transmit(self, latent: Latent, condition: Condition) -> Encoded:
        """As JsccCodec.transmit, adapted to each image's condition and content."""
        with self.adapted(condition, latent.device):
            return self.codec.transmit(latent, condition)

    def decode(self, received: Received, condition: Condition) -> Latent:
        """As JsccCodec.decode, adapted to each image's condition and content."""
        with self.adapted(condition, received.symbols.device):
            return self.codec.decode(received, condition)

    @contextmanager
    def adapted(self, condition: Condition, device: torch.device) -> Iterator[None]:
        """Within, the blocks inside see the features of each image's condition."""
        features = condition.features().to(device)
        blocks = [module for module in self.codec.modules() if isinstance(module, AttendedBlock)]
        for block in blocks:
            block.features = features
        try:
            yield
        finally:
            for block in blocks:
                block.features = None
