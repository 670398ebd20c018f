"""T-KA: CALA and its rivals."""

from typing import TYPE_CHECKING

from dekag.lazy import lazy

if TYPE_CHECKING:
    from dekag.alignment.transmission.adapted import AdaptedCodec
    from dekag.alignment.transmission.attention import SnrAttentionCodec
    from dekag.alignment.transmission.cala import CalaCodec
    from dekag.alignment.transmission.methods import METHODS, adapt
    from dekag.alignment.transmission.train import (
        FAST,
        ConditionRange,
        TransmissionData,
        channel_importance,
        fit,
    )
    from dekag.alignment.transmission.update import load_update, update_size, update_tensors

__all__ = [
    "FAST",
    "METHODS",
    "AdaptedCodec",
    "CalaCodec",
    "ConditionRange",
    "SnrAttentionCodec",
    "TransmissionData",
    "adapt",
    "channel_importance",
    "fit",
    "load_update",
    "update_size",
    "update_tensors",
]

__getattr__, __dir__ = lazy(__name__)
