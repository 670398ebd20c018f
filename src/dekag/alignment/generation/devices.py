"""Where the parts of a pipeline are while it trains: what no step needs leaves the GPU meanwhile."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

AUTOENCODERS = ("vae", "vqvae")
"""Names that pipelines have for theirs."""


@contextmanager
def moved(pipeline: Any, names: Sequence[str], device: torch.device | str) -> Iterator[None]:
    """Within, those of these parts that the pipeline has are on a device; then they are where they were."""
    found = [getattr(pipeline, name, None) for name in names]
    there = [(part, next(part.parameters()).device) for part in found if part is not None]
    for part, _ in there:
        part.to(device)
    try:
        yield
    finally:
        for part, before in there:
            part.to(before)
