"""Latents to symbols and back."""

from dekag.codec.check import check_codec
from dekag.codec.contract import (
    AdaptableCodec,
    CodecClass,
    Encoded,
    PairDecoder,
    Pairs,
    QamCodec,
    TrainableCodec,
    check_latent,
    check_payload,
    importance_of,
    require_adaptable,
    require_trainable,
)
from dekag.codec.files import CODECS, load_codec, save_codec
from dekag.codec.jscc import JsccCodec
from dekag.codec.jscc_config import JsccConfig
from dekag.codec.klt import Klt, fit_klt
from dekag.codec.networks import Gain
from dekag.codec.power import normalise_power, truncate
from dekag.codec.recognition import EnergyProfile, energy_profile_of
from dekag.codec.trained import TrainedRange

__all__ = [
    "CODECS",
    "AdaptableCodec",
    "CodecClass",
    "Encoded",
    "EnergyProfile",
    "Gain",
    "JsccCodec",
    "JsccConfig",
    "Klt",
    "PairDecoder",
    "Pairs",
    "QamCodec",
    "TrainableCodec",
    "TrainedRange",
    "check_codec",
    "check_latent",
    "check_payload",
    "energy_profile_of",
    "fit_klt",
    "importance_of",
    "load_codec",
    "normalise_power",
    "require_adaptable",
    "require_trainable",
    "save_codec",
    "truncate",
]
