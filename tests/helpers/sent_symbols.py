"""Symbols under conditions that no format may round."""

import torch
from jaxtyping import Complex64
from torch import Tensor

from dekag.types import Condition


def odd_symbols() -> tuple[Complex64[Tensor, "3 14"], Condition]:
    """Three images of 5, 4 and 12 payload symbols under three conditions, none of them a round number."""
    condition = Condition(
        uses=torch.tensor([5, 8, 12]),
        snr_db=torch.tensor([3.7, -4.9, 19.1]),
        rayleigh=torch.tensor([False, True, True]),
        blocks=torch.tensor([1, 2, 3]),
        correlation=torch.tensor([0.0, 0.3, 1.0]),
        phase=torch.tensor([0.0, -2.2, 1 / 3]),
        pilots=torch.tensor([0, 2, 0]),
    )
    symbols = torch.randn(3, 14, dtype=torch.complex64, generator=torch.Generator().manual_seed(1))
    symbols[torch.arange(14) >= condition.payload[:, None]] = 0
    return symbols, condition
