"""Regression: deliveries made on a CPU once, and again now. Their provenance is in the file beside this one."""

import json

from deliveries import CONDITIONS, KEPT, measured

TOLERANCE_DB = 0.01


def test_deliveries_are_what_they_were() -> None:
    """Every PSNR of a fixed set of deliveries to 0.01 dB: another torch, model or update that moves it fails."""
    kept, now = json.loads(KEPT.read_text()), measured()
    assert now["bundles"] == kept["bundles"]
    moved = [
        f"{way}, {cell}: {before} is now {after}"
        for way in ("aligned", "no_ka")
        for cell in CONDITIONS
        for before, after in zip(kept[way][cell], now[way][cell], strict=True)
        if abs(before - after) > TOLERANCE_DB
    ]
    assert not moved, f"made with {kept['versions']}, now {now['versions']}: " + "; ".join(moved)
