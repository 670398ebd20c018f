"""The one spelling of a JSON value, and digests of JSON, files and folders; without torch.

Every digest is a sha256 in 64 lower-case hexadecimal digits.
"""

import hashlib
import json
from pathlib import Path

from dekag.errors import InputError


def canonical_json(obj: object) -> bytes:
    """The one spelling of a JSON value: sorted keys, no spaces, ASCII, numbers as Python writes them.

    Raises InputError if `obj` is not JSON, or holds NaN or an infinite number, which JSON does not have.
    """
    try:
        text = json.dumps(obj, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    except (TypeError, ValueError) as err:
        raise InputError(
            f"a digest needs a JSON value of finite numbers, strings, lists and dicts: {err}"
        ) from err
    return text.encode("ascii")


def digest_json(obj: object) -> str:
    """Digest of a JSON value, whatever the order of its keys.

    Raises InputError as `canonical_json`.
    """
    return hashlib.sha256(canonical_json(obj)).hexdigest()


def digest_file(path: Path) -> str:
    """Digest of a file's bytes.

    Raises OSError if the file cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_folder(source: Path) -> str:
    """Digest of the names and contents of the files of a directory, or of one file."""
    files = [source] if source.is_file() else sorted(p for p in source.rglob("*") if p.is_file())
    names = [file.relative_to(source).as_posix() for file in files]
    return digest_json([[name, digest_file(file)] for name, file in zip(names, files, strict=True)])
