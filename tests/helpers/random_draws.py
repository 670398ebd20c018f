"""Random numbers of tests."""

import torch
from torch import Tensor


def seeded(seed: int = 0) -> torch.Generator:
    """A generator on the CPU."""
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    """Numbers of variance 1."""
    return torch.randn(shape, generator=seeded(seed))
