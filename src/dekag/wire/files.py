"""The one way to write: a file or a folder appears whole or not at all, and outlives a power cut."""

import json
import os
import shutil
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from dekag.wire.places import check_folder, check_own_folder

WINDOWS = os.name == "nt"
TEMPORARY = ".part-"
"""Beginning of the names of files that are being written; a killed writer leaves one."""


@contextmanager
def replacing(path: Path, *, mode: int = 0o644) -> Iterator[Path]:
    """An empty file beside `path` to write to, which takes its place once the block ends; its folder is made.

    mode: permissions of the file, from the first byte on.
    After an error or a kill `path` is as it was. Raises OSError that says so if the disk refuses.
    """
    writer = f"{socket.gethostname()}-{os.getpid()}-{threading.get_ident()}"
    # the writer comes last: what looks for files of a suffix must not find it
    part = path.with_name(f"{TEMPORARY}{path.name}.{writer}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode))
        yield part
        put_in_place(part, path)
    except OSError as error:
        raise _unwritten(path, error) from error
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def write_bytes(path: Path, raw: bytes, *, mode: int = 0o644) -> None:
    """Write a file as `replacing` does."""
    with replacing(path, mode=mode) as part:
        part.write_bytes(raw)


def write_json(path: Path, value: object) -> None:
    """Write indented JSON with a line end as `replacing` does; NaN is an error."""
    write_bytes(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


@contextmanager
def staged(out: Path) -> Iterator[Path]:
    """A temporary folder beside `out`; what was put in it moves to `out` once everything is written.

    Files of the same names in `out` are replaced, and pictures that an index of before names and the new one does not
    are gone; what no index names stays. After an error `out` is as before. Raises InputError if `out` is a file.
    """
    check_folder(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    stage = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        yield stage
        _sync_tree(stage)
        if not out.exists():
            stage.chmod(0o755)
            stage.rename(out)
        else:
            names = {path.name for path in stage.iterdir()}
            before = {name for index in names for name in _indexed(out / index)} - names
            for name in sorted(names):
                os.replace(stage / name, out / name)
            for name in before:
                (out / name).unlink(missing_ok=True)
            sync(out)
        sync(out.parent)
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def _indexed(index: Path) -> set[str]:
    """The pictures beside an index, a JSON file of ours, that it names as "file"; none if it is no such file."""
    found: set[str] = set()
    if index.suffix != ".json" or not index.is_file():
        return found
    with suppress(ValueError, RecursionError):
        left = [json.loads(index.read_bytes())]
        while left:
            value = left.pop()
            left += value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
            name = value.get("file") if isinstance(value, dict) else None
            if isinstance(name, str) and name.endswith(".png") and Path(name).name == name:
                found.add(name)
    return found


@contextmanager
def beside(target: Path) -> Iterator[Path]:
    """A folder beside `target`, gone afterwards whatever happens; an OSError says what was not written."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            prefix=".dekag-", dir=target.parent, ignore_cleanup_errors=True
        ) as work:
            yield Path(work)
    except OSError as error:
        raise _unwritten(target, error) from error


def write_folder(
    target: Path, files: Mapping[str, bytes], *, is_own: Callable[[Path], bool], noun: str
) -> None:
    """Put a folder of these files at `target`, where nothing is, or a folder that `is_own`, which `noun` names.

    Raises InputError if something else is there; OSError if the disk refuses.
    """
    check_own_folder(target, is_own=is_own, noun=noun)
    replaceable = target.exists()
    with beside(target) as work:
        new, old = work / "new", work / "old"
        new.mkdir()
        for name, raw in files.items():
            (new / name).parent.mkdir(parents=True, exist_ok=True)
            (new / name).write_bytes(raw)
        _sync_tree(new)
        try:
            if replaceable:
                target.rename(old)
            put_in_place(new, target)
        except BaseException:
            if old.exists() and not target.exists():
                old.rename(target)
            raise


def put_in_place(part: Path, path: Path) -> None:
    """Move a file or a folder on the same disk to its name, once its bytes are on the disk; the name follows."""
    sync(part)
    os.replace(part, path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Wait until the bytes of a file, or the names in a folder, are on the disk.

    Windows has no such call for a folder, whose names its file system keeps in order, and asks for a file to write to.
    """
    if WINDOWS and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDWR if WINDOWS else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_tree(folder: Path) -> None:
    """Wait until everything below a folder is on the disk."""
    for path in (*folder.rglob("*"), folder):
        if not path.is_symlink():
            sync(path)


def _unwritten(path: Path, error: OSError) -> OSError:
    """The error of a disk that refused, in the user's words."""
    return OSError(error.errno, f"{path} was not written and is as it was: {error.strerror or error}")
