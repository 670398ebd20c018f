"""One at a time: a lock that the system lets go of when its process ends, however it ends."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from dekag.errors import InputError


@contextmanager
def locked(path: Path, *, taken: str = "") -> Iterator[None]:
    """Hold a lock file alone. Another's is waited for, or is an InputError that says what is `taken`.

    Raises OSError where the file system has no locks: one that outlives its process would be no better.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path, timeout=0 if taken else -1, mode=0o644, fallback_to_soft=False)
    try:
        lock.acquire(poll_interval=0.02)
    except Timeout:
        raise InputError(taken) from None
    except OSError as error:
        raise OSError(error.errno, f"{path} cannot be locked: {error.strerror}") from error
    try:
        yield
    finally:
        lock.release()
