"""Small JSON files that this machine wrote for itself."""

from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from dekag.errors import InputError

Stored = TypeVar("Stored")


def read_stored(path: Path, kind: type[Stored], *, default: Stored, right: str) -> Stored:
    """What a file holds, or the default where there is none.

    Raises InputError, which says `right` of the file, if it does not hold that.
    """
    if not path.exists():
        return default
    try:
        stored: Stored = TypeAdapter(kind).validate_json(path.read_bytes())
    except ValidationError as error:
        raise InputError(f"{path} {right}") from error
    return stored
