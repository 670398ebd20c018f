"""The shipped kind of codec, small and with random weights."""

import torch

from dekag.codec import JsccCodec, JsccConfig

SMALL = JsccConfig(
    channels=8, rows=4, cols=4, width=16, encoder_depth=1, decoder_depth=1, heads=2, max_uses=64
)


def small_codec() -> JsccCodec:
    """Always the same one."""
    torch.manual_seed(0)
    return JsccCodec(SMALL).eval()
