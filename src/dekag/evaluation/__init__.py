"""Delivered pictures to numbers and figures: fidelity, judges of likeness, intervals, reports."""

from dekag.evaluation.figures import contact_sheet, report_figure, save_figure
from dekag.evaluation.judges import (
    ClipJudge,
    Judge,
    JudgeSizeWarning,
    concept_accuracy,
    consistency,
    load_clip,
    load_dino,
    load_judge,
)
from dekag.evaluation.metrics import psnr_db, ssim
from dekag.evaluation.statistics import Mean, gap_closed, mean_interval, paired_relative_gain

__all__ = [
    "ClipJudge",
    "Judge",
    "JudgeSizeWarning",
    "Mean",
    "concept_accuracy",
    "consistency",
    "contact_sheet",
    "gap_closed",
    "load_clip",
    "load_dino",
    "load_judge",
    "mean_interval",
    "paired_relative_gain",
    "psnr_db",
    "report_figure",
    "save_figure",
    "ssim",
]
