"""The digital baseline: source coding, 5G LDPC and QAM over the same channel, every bit counted."""

from dekag.baseline.choice import Quality, best_scheme
from dekag.baseline.link import DigitalDelivery, DigitalLedger, DigitalLink, send
from dekag.baseline.pictures import PictureSource, fit_pictures, load_pictures, save_pictures
from dekag.baseline.source import LatentSource, Source, fit, load_source, save_source
from dekag.baseline.thresholds import Thresholds, read_thresholds, shipped_thresholds

__all__ = [
    "DigitalDelivery",
    "DigitalLedger",
    "DigitalLink",
    "LatentSource",
    "PictureSource",
    "Quality",
    "Source",
    "Thresholds",
    "best_scheme",
    "fit",
    "fit_pictures",
    "load_pictures",
    "load_source",
    "read_thresholds",
    "save_pictures",
    "save_source",
    "send",
    "shipped_thresholds",
]
