"""Rows that are made once and kept on the disk: latents, text states and pictures."""

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from dekag.training.keys import key_of, require_same
from dekag.types import InputError
from dekag.wire.rows import scratch, write_rows

_KEY = "key"


def kept_rows(
    folder: Path | None,
    name: str,
    count: int,
    make: Callable[[], Iterable[Tensor]],
    inputs: Callable[[], Mapping[str, object]],
) -> Path:
    """A file of `count` rows that `make` gives in parts, in a folder that keeps it for a run that is interrupted.

    inputs: all that it depends on. Without a folder it is gone with the process.
    Raises InputError if what the folder keeps was made of others, or is damaged.
    """
    path = (scratch() if folder is None else folder) / f"{name}.safetensors"
    key = key_of(inputs())
    if folder is None or not path.exists():
        write_rows(path, name, count, make(), metadata={_KEY: json.dumps(key)})
        return path
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            file.get_slice(name)
    except SafetensorError as error:
        raise InputError(f"{path} cannot be read: delete it to start anew") from error
    require_same(path, json.loads(metadata[_KEY]) if _KEY in metadata else None, key)
    return path
