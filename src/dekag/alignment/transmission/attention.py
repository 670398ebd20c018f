"""SNR attention: every channel of some modules of a codec weighted by a small network of the condition and the content.

After ADJSCC (Xu et al. 2021, IEEE Trans. Circuits Syst. Video Technol.), as a method to compare CALA with: the
codec is frozen, the weights depend on what the cells hold, so that it does not merge. Without the content it is
scaling by a network of the condition alone, after Hyper-AJSCC (Xie et al. 2024).
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from dekag.alignment.transmission.adapted import AdaptedCodec
from dekag.bundle.manifest import Setting
from dekag.codec import AdaptableCodec
from dekag.types import Condition, InputError


class AttendedBlock(nn.Module):
    """A frozen module, its output channels weighted between 0 and 2; `features` is set for each pass."""

    def __init__(self, base: nn.Module, width: int, features: int, hidden: int, *, content: bool) -> None:
        super().__init__()
        self.base = base
        self.content = content
        last = nn.Linear(hidden, width)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.layers = nn.Sequential(
            nn.Linear(features + (width if content else 0), hidden), nn.ReLU(), last, nn.Sigmoid()
        )
        self.features: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """As the module, whose outputs are [batch, cells, width] or [batch, width, rows, cols]."""
        assert self.features is not None
        out: Tensor = self.base(x)
        seen = self.features
        if self.content:
            cells = out.flatten(2).transpose(1, 2) if out.dim() == 4 else out
            seen = torch.cat([cells.mean(1), seen], dim=1)
        weight: Tensor = 2 * self.layers(seen)
        return out * (weight[:, :, None, None] if out.dim() == 4 else weight[:, None, :])


class SnrAttentionCodec(AdaptedCodec):
    """A codec with attention after each of its `attention_modules`; implements `codec.TrainableCodec`.

    The codec that it is made from is left alone. Raises InputError if that is no AdaptableCodec, or names no modules.
    """

    def __init__(self, codec: AdaptableCodec, hidden: int, *, content: bool = True) -> None:
        super().__init__(codec)
        self.hidden, self.content = hidden, content
        features = Condition(uses=1, snr_db=0.0).features().shape[1]
        modules = dict(self.codec.named_modules())
        for name, width in _places(self.codec).items():
            self.codec.set_submodule(
                name, AttendedBlock(modules[name], width, features, hidden, content=content)
            )

    @contextmanager
    def adapted(self, condition: Condition, device: torch.device) -> Iterator[None]:
        """Within, the blocks inside see the features of each image's condition."""
        features = condition.features().to(device)
        blocks = [m for _, m in self.codec.named_modules() if isinstance(m, AttendedBlock)]
        for block in blocks:
            block.features = features
        try:
            yield
        finally:
            for block in blocks:
                block.features = None

    def size(self) -> dict[str, Setting]:
        """The width of the networks, and whether they see the content."""
        return {"attention": self.hidden, "content": int(self.content)}


def _places(codec: AdaptableCodec) -> dict[str, int]:
    """Channels of each module that the codec names for attention."""
    name, modules = type(codec).__name__, dict(codec.named_modules())
    places: dict[str, int] = dict(getattr(codec, "attention_modules", {}))
    if not places:
        raise InputError(
            f"{name} names no attention_modules, whose outputs SNR attention would weigh; leave snr_attention out"
        )
    for place in places:
        if place not in modules:
            raise InputError(f"attention_modules of {name} has {place!r}, which is no module of it")
    return places
