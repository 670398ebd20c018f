"""Folders that appear whole or not at all, and the files that go into them."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from dekag.types import Image, InputError
from dekag.wire.png import png_bytes


@contextmanager
def staged(out: Path) -> Iterator[Path]:
    """A temporary folder beside `out`; what was put in it moves to `out` once everything is written.

    Files of the same names in `out` are replaced, others stay. After an error `out` is as before.
    Raises InputError if `out` is a file.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file; give a folder to write to")
    out.parent.mkdir(parents=True, exist_ok=True)
    stage = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        yield stage
        if not out.exists():
            stage.chmod(0o755)
            stage.rename(out)
        else:
            for path in sorted(stage.iterdir()):
                os.replace(path, out / path.name)
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def write_json(path: Path, value: object) -> None:
    """Indented JSON with a line end; NaN is an error."""
    path.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n")


def write_images(folder: Path, names: Sequence[str], images: Image) -> None:
    """One PNG file for each name."""
    for name, data in zip(names, png_bytes(images), strict=True):
        (folder / name).write_bytes(data)
