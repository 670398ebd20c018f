"""Alignment of an edge with its cloud, and of a codec with what is sent: numbers and bundles."""

from typing import TYPE_CHECKING

from dekag.lazy import lazy

if TYPE_CHECKING:
    from dekag.alignment.config import CalaConfig, FewStepConfig, MakdConfig
    from dekag.alignment.generation.bundles import apply_generation, read_generation, save_generation
    from dekag.alignment.transmission.bundles import apply_transmission, save_transmission, trained_range

__all__ = [
    "CalaConfig",
    "FewStepConfig",
    "MakdConfig",
    "apply_generation",
    "apply_transmission",
    "read_generation",
    "save_generation",
    "save_transmission",
    "trained_range",
]

__getattr__, __dir__ = lazy(__name__)
