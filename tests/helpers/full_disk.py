"""A disk that is full after some bytes of a file: the limit of a process on the files that it writes."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def full_after(count: int) -> Iterator[None]:
    """Within, no file grows beyond that many bytes: OSError, once those are written. Python ignores SIGXFSZ."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (count, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
