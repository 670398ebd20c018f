"""Places that a command is to write to, looked at before any work; a place that is taken is refused."""

import os
from collections.abc import Callable
from pathlib import Path

from dekag.errors import InputError


def check_folder(out: Path) -> None:
    """Raise InputError unless a folder is there, or can be made there, and can be written to."""
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file; give a folder to write to")
    _check_writable(out)


def check_new_folder(out: Path) -> None:
    """As `check_folder`; the folder must be new or empty as well."""
    check_folder(out)
    if out.is_dir() and any(out.iterdir()):
        raise InputError(f"{out} exists and is not empty; give a new folder")


def check_own_folder(out: Path, *, is_own: Callable[[Path], bool], noun: str) -> None:
    """Raise InputError unless nothing is there, or a folder that `is_own`, which `noun` names."""
    if not _replaceable(out, is_own):
        raise InputError(f"{out} exists and is not {noun}, so it is kept; choose another folder")
    _check_writable(out)


def check_file(out: Path, *, suffixes: tuple[str, ...] = ()) -> None:
    """Raise InputError unless a file of one of the suffixes, of any if there are none, can be written there."""
    if out.is_dir():
        raise InputError(f"{out} is a folder; give a file to write to")
    if suffixes and not out.name.endswith(suffixes):
        raise InputError(f"{out} must end in {' or '.join(suffixes)}")
    _check_writable(out.parent)


def _replaceable(out: Path, is_own: Callable[[Path], bool]) -> bool:
    return not os.path.lexists(out) or (out.is_dir() and not out.is_symlink() and is_own(out))


def _check_writable(folder: Path) -> None:
    """Raise InputError unless a folder, or the one that it is to be made in, can be written to."""
    place = next(path for path in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(path))
    if not place.is_dir():
        raise InputError(f"{place} is no folder, so {folder} cannot be made in it; choose another place")
    if not os.access(place, os.W_OK | os.X_OK):
        raise InputError(f"{place} cannot be written to; choose another place or change its permissions")
