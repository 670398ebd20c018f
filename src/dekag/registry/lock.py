"""One writer at a time: a lock that the system lets go of, and what a killed writer left behind."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dekag.wire.files import TEMPORARY


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock file alone, waiting for it; the system lets go of it when the process ends, however it ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def remove_unfinished(folder: Path) -> None:
    """Delete the files that killed writers left behind; call it under the folder's lock."""
    for part in folder.glob(f"{TEMPORARY}*"):
        part.unlink(missing_ok=True)
