"""The digital baseline: source coding, 5G LDPC and QAM over the same channel, every bit counted."""

from dekag.baseline.link import DigitalDelivery, DigitalLedger, DigitalLink, send
from dekag.baseline.pictures import PictureSource
from dekag.baseline.source import LatentSource, Source, fit, load_source, save_source
from dekag.baseline.thresholds import Thresholds, read_thresholds, shipped_thresholds

__all__ = [
    "DigitalDelivery",
    "DigitalLedger",
    "DigitalLink",
    "LatentSource",
    "PictureSource",
    "Source",
    "Thresholds",
    "fit",
    "load_source",
    "read_thresholds",
    "save_source",
    "send",
    "shipped_thresholds",
]
