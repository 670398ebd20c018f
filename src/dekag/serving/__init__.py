"""The parties as services: a cloud, an edge and a page, and decoders as ONNX."""

from typing import TYPE_CHECKING

from dekag.lazy import lazy

if TYPE_CHECKING:
    from dekag.serving.canaries import canary_of
    from dekag.serving.onnx import Decoders, export_decoders
    from dekag.serving.traffic import TrafficReport, TrafficRow
    from dekag.serving.up import Site, prepare, running

__all__ = [
    "Decoders",
    "Site",
    "TrafficReport",
    "TrafficRow",
    "canary_of",
    "export_decoders",
    "prepare",
    "running",
]

__getattr__, __dir__ = lazy(__name__)
