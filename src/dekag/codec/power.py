"""The power constraint on an image's symbols."""

import torch
from jaxtyping import Int64
from torch import Tensor

from dekag.types import InputError, Symbols


def truncate(symbols: Symbols, payload: Int64[Tensor, " batch"]) -> Symbols:
    """The symbols with zeros beyond the first `payload[i]` uses of image i.

    Raises InputError if a payload is not between 1 and the number of symbols.
    """
    width = symbols.shape[1]
    outside = (payload < 1) | (payload > width)
    if bool(outside.any()):
        raise InputError(
            f"a payload must be between 1 and the {width} symbols, got {int(payload[outside][0])}"
        )
    return symbols * (torch.arange(width, device=symbols.device) < payload[:, None])


def normalise_power(symbols: Symbols, payload: Int64[Tensor, " batch"]) -> Symbols:
    """Symbols scaled to mean |s|^2 = 1 over the first `payload[i]` uses of image i, zero beyond them.

    Per image, never per batch: batch mates must not change an image's power. Silence stays silence.
    Differentiable.

    Raises InputError if a payload is not between 1 and the number of symbols.
    """
    sent = truncate(symbols, payload)
    power = (sent.real.square() + sent.imag.square()).sum(dim=1) / payload
    # The inner `where` keeps the gradient of a silent image finite.
    scale = torch.where(power > 0, power, 1.0).rsqrt()
    return scale[:, None] * sent
