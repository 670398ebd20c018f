"""Delivered pictures to numbers and figures: fidelity, judges of likeness, intervals, reports."""

from dekag.evaluation.figures import contact_sheet, report_figure, save_figure
from dekag.evaluation.judges import ClipJudge, Judge, concept_accuracy, consistency, load_clip, load_dino
from dekag.evaluation.metrics import psnr_db, ssim
from dekag.evaluation.statistics import Mean, mean_interval, paired_relative_gain, way_to_ceiling

__all__ = [
    "ClipJudge",
    "Judge",
    "Mean",
    "concept_accuracy",
    "consistency",
    "contact_sheet",
    "load_clip",
    "load_dino",
    "mean_interval",
    "paired_relative_gain",
    "psnr_db",
    "report_figure",
    "save_figure",
    "ssim",
    "way_to_ceiling",
]
