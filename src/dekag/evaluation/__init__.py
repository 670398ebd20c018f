"""Delivered pictures to numbers and figures: fidelity, judges of likeness, intervals, tables."""

from typing import TYPE_CHECKING

from dekag.lazy import lazy

if TYPE_CHECKING:
    from dekag.evaluation.accuracy import score_accuracy
    from dekag.evaluation.figures import contact_sheet, report_figure, save_figure
    from dekag.evaluation.generation import Drawn, GenerationScores, score_generation
    from dekag.evaluation.grid import GRIDS, Grid, read_grid
    from dekag.evaluation.judges import (
        NAMED_JUDGES,
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
    from dekag.evaluation.transmission import TransmissionScores, score_transmission, transmit

__all__ = [
    "GRIDS",
    "NAMED_JUDGES",
    "ClipJudge",
    "Drawn",
    "GenerationScores",
    "Grid",
    "Judge",
    "JudgeSizeWarning",
    "Mean",
    "TransmissionScores",
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
    "read_grid",
    "report_figure",
    "save_figure",
    "score_accuracy",
    "score_generation",
    "score_transmission",
    "ssim",
    "transmit",
]

__getattr__, __dir__ = lazy(__name__)
