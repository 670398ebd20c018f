"""The container of a bundle: a folder or a tar of a few plain files, read with suspicion and written whole."""

import gzip
import io
import os
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from dekag.errors import InputError

MANIFEST = "bundle.json"
LORA = "pytorch_lora_weights.safetensors"
FEW_STEP = "few_step_lora_weights.safetensors"
EMBEDDING = "learned_embeds.safetensors"
NOISE_MAP = "noise_map.safetensors"
CALA = "cala.safetensors"
QUANTISED = {
    LORA: "lora.quantised.safetensors",
    FEW_STEP: "few_step_lora.quantised.safetensors",
    CALA: "cala.quantised.safetensors",
}
"""The low-rank files, and the name that each has when it is in int8 or int4."""
FILES = {
    "generation": (LORA, QUANTISED[LORA], FEW_STEP, QUANTISED[FEW_STEP], EMBEDDING, NOISE_MAP),
    "transmission": (CALA, QUANTISED[CALA]),
}
"""The tensor files that each kind may hold."""
ALLOWED = (MANIFEST, *FILES["generation"], *FILES["transmission"])
MAX_BYTES = 1 << 30
"""Largest bundle that is read unless the caller says otherwise."""
MAX_MANIFEST_BYTES = 1 << 20
MAX_HEADER_BYTES = 1 << 20
"""Of a tensor file: some ten thousand tensors. Whoever reads a header makes objects many times its size."""

_GZIP = b"\x1f\x8b"
_TAR_OVERHEAD = 1 << 20
_ARCHIVE_ERRORS = (
    *(tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError),
    # what tarfile lets through when a header is hostile
    *(ValueError, OverflowError, IndexError, RecursionError),
)
_Entry = tuple[str, bool, int, Callable[[], bytes]]
"""Name, whether it is a plain file, size in bytes, and how to read it."""


def damaged(where: str, name: str, text: str) -> InputError:
    """The error for a file of a bundle that is not as it was written."""
    return InputError(f"{where}: {name} is damaged: {text}; fetch the bundle again")


def plain_text(text: object) -> str:
    """A stranger's text for an error message: short, no line breaks, nothing that a terminal obeys."""
    return ascii(str(text))[1:-1][:300]


def read_files(where: str, path: Path, max_bytes: int) -> dict[str, bytes]:
    """Bytes of the files of a folder or a tar; a file is read only if its name and size can be a bundle's."""
    if not path.exists():
        raise InputError(f"{where}: there is no such folder or file")
    files: dict[str, bytes] = {}
    left = max_bytes
    try:
        for name, plain, size, read in _folder(path) if path.is_dir() else _archive(where, path, max_bytes):
            if name not in ALLOWED:
                raise InputError(
                    f"{where}: '{plain_text(name)}' must not be there; a bundle holds {', '.join(ALLOWED)}"
                )
            if not plain or name in files:
                raise InputError(f"{where}: {name} is a link, a folder or doubled; it must be one plain file")
            limit = min(left, MAX_MANIFEST_BYTES) if name == MANIFEST else left
            if not 0 <= size <= limit:
                raise InputError(f"{where}: {name} has {size} bytes, but at most {limit} more may be read")
            files[name] = read()
            left -= size
    except InputError:
        raise
    except _ARCHIVE_ERRORS as err:
        raise damaged(where, "the archive", plain_text(err)) from err
    return files


def _folder(path: Path) -> Iterator[_Entry]:
    with os.scandir(path) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            size = entry.stat(follow_symlinks=False).st_size
            yield entry.name, entry.is_file(follow_symlinks=False), size, Path(entry).read_bytes


def _archive(where: str, path: Path, max_bytes: int) -> Iterator[_Entry]:
    limit = max_bytes + _TAR_OVERHEAD
    with path.open("rb") as file:
        zipped = file.peek(2)[:2] == _GZIP
        raw = gzip.GzipFile(fileobj=file).read(limit + 1) if zipped else file.read(limit + 1)
    if len(raw) > limit:
        raise InputError(f"{where}: it unpacks to more than the {max_bytes} bytes that may be read")
    with tarfile.open(fileobj=io.BytesIO(raw), mode="r:") as tar:
        for member in tar:
            plain = member.isreg() and not member.issparse()
            content = raw[member.offset_data : member.offset_data + member.size]
            yield member.name, plain, member.size, io.BytesIO(content).read


def is_bundle(folder: Path) -> bool:
    """Whether a folder holds nothing but what a bundle may hold."""
    return all(name in ALLOWED and plain for name, plain, _, _ in _folder(folder))
