"""Where a registry's files are: a local folder, or whatever fsspec reaches by URL."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol, runtime_checkable

from fsspec.core import url_to_fs  # type: ignore[import-untyped]

from dekag.errors import InputError
from dekag.registry.lock import remove_unfinished
from dekag.wire.files import write_bytes
from dekag.wire.lock import locked

LOCK = ".lock"


@runtime_checkable
class Storage(Protocol):
    """Files by their path below the registry; a file that is written replaces one as a whole."""

    def read(self, path: str, *, max_bytes: int) -> bytes | None:
        """The bytes of a file, None if there is none. Raises InputError if there are more than `max_bytes`."""
        ...

    def write(self, path: str, raw: bytes) -> None:
        """Write a file; OSError says that it was not written."""
        ...

    def alone(self, keys: Path) -> AbstractContextManager[None]:
        """Within it no other publisher writes. `keys` is the folder of the publisher's keys."""
        ...


class FolderStorage:
    """A folder on this machine."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def read(self, path: str, *, max_bytes: int) -> bytes | None:
        """As `Storage.read`."""
        try:
            with (self.folder / path).open("rb") as file:
                return _within(path, file.read(max_bytes + 1), max_bytes)
        except FileNotFoundError:
            return None

    def write(self, path: str, raw: bytes) -> None:
        """As `Storage.write`."""
        write_bytes(self.folder / path, raw)

    @contextmanager
    def alone(self, keys: Path) -> Iterator[None]:
        """As `Storage.alone`: the lock lies in the folder, and what killed publishers left is swept away."""
        with locked(self.folder / LOCK):
            for folder in ("metadata", "targets", "targets/channels"):
                remove_unfinished(self.folder / folder)
            remove_unfinished(keys)
            yield


class RemoteStorage:
    """A place that fsspec reaches, such as s3://bucket/registry; each object is put as a whole."""

    def __init__(self, url: str) -> None:
        try:
            self._system, self._base = url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise InputError(f"{url} cannot be reached: {error}") from error

    def read(self, path: str, *, max_bytes: int) -> bytes | None:
        """As `Storage.read`."""
        try:
            # s3 refuses a range that begins beyond the end, which for an empty file is everywhere
            if self._system.size(self._address(path)) == 0:
                return b""
            raw: bytes = self._system.cat_file(self._address(path), start=0, end=max_bytes + 1)
        except FileNotFoundError:
            return None
        return _within(path, raw, max_bytes)

    def write(self, path: str, raw: bytes) -> None:
        """As `Storage.write`."""
        self._system.pipe_file(self._address(path), raw)

    @contextmanager
    def alone(self, keys: Path) -> Iterator[None]:
        """As `Storage.alone`: the lock lies beside the keys, since object stores have none that a kill frees."""
        with locked(keys / LOCK):
            remove_unfinished(keys)
            yield

    def _address(self, path: str) -> str:
        return f"{self._base.rstrip('/')}/{path}"


def open_storage(url: str) -> Storage:
    """The storage at a folder, a file:// address or another URL that fsspec knows.

    Raises InputError if it cannot be reached, or is behind HTTP, where nothing can be written.
    """
    if url.startswith(("http://", "https://")):
        raise InputError(f"{url} is for edges to pull from; publish where its files lie")
    if url.startswith("file://"):
        return FolderStorage(Path(url.removeprefix("file://")))
    return RemoteStorage(url) if "://" in url else FolderStorage(Path(url))


def _within(path: str, raw: bytes, max_bytes: int) -> bytes:
    if len(raw) > max_bytes:
        raise InputError(f"{path} of the registry has more than the {max_bytes} bytes that may be read")
    return raw
