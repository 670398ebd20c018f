"""What computes a model where torch is not the fastest: ONNX graphs, and generators that draw by them."""

from typing import TYPE_CHECKING

from dekag.lazy import lazy

if TYPE_CHECKING:
    from dekag.engine.drawing import EngineChoice, with_engine

__all__ = ["EngineChoice", "with_engine"]

__getattr__, __dir__ = lazy(__name__)
