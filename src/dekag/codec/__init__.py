"""Latents to symbols and back."""

from dekag.codec.files import load_codec, save_codec
from dekag.codec.jscc import JsccCodec, JsccConfig
from dekag.codec.klt import Klt, fit_klt
from dekag.codec.trained import TrainedRange

__all__ = ["JsccCodec", "JsccConfig", "Klt", "TrainedRange", "fit_klt", "load_codec", "save_codec"]
