"""The peaks of a recording's samples beside those of Gaussian samples."""

from pathlib import Path
from typing import Any

from dekag.codec.papr import PaprReport, papr_report
from dekag.types import InputError
from dekag.wire.sigmf import read_recording


def papr(path: Path, *, received: bool = False) -> dict[str, Any]:
    """The peaks of a recording's samples; of a radio's, if `received`, whatever the sender's checksum is."""
    recording = read_recording(path, received=received)
    if not bool(recording.symbols.isfinite().all()):
        raise InputError(f"{path} holds samples that are no numbers; their peaks cannot be told")
    return papr_json(papr_report(recording.symbols, recording.condition.payload, recording.waveform))


def papr_json(report: PaprReport) -> dict[str, Any]:
    """A report of peaks as JSON values."""
    return {
        "blocks": report.blocks,
        "samples": report.samples,
        "highest_db": round(report.highest_db, 3),
        "ccdf": [
            {"level_db": level, "share": share, "gaussian": gaussian}
            for level, (share, gaussian) in report.peaks.items()
        ],
        "power": [
            {
                "share": share,
                "level_db": level if level is None else round(level, 3),
                "gaussian_db": round(db, 3),
            }
            for share, (level, db) in report.power_db.items()
        ],
    }
