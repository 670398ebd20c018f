"""Latents to symbols and back."""

from dekag.codec.files import load_codec, save_codec
from dekag.codec.jscc import JsccCodec, JsccConfig

__all__ = ["JsccCodec", "JsccConfig", "load_codec", "save_codec"]
