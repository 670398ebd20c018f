"""What a killed writer left behind."""

from pathlib import Path

from dekag.wire.files import TEMPORARY


def remove_unfinished(folder: Path) -> None:
    """Delete the files that killed writers left behind; call it under the folder's lock."""
    for part in folder.glob(f"{TEMPORARY}*"):
        part.unlink(missing_ok=True)
