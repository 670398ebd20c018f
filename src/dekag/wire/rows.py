"""Arrays on disk, written row by row and mapped into memory: more than fits into it."""

import itertools
import json
import struct
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from dekag.wire.files import replacing

_TYPES = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.uint8: "U8",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.bool: "BOOL",
}


@contextmanager
def row_writer(
    path: Path, name: str, count: int, *, metadata: Mapping[str, str] | None = None
) -> Iterator[Callable[[Tensor], None]]:
    """A function that takes `count` rows in parts, which become one tensor of a safetensors file.

    The file appears once it is whole. Raises ValueError unless the parts have as many rows and one shape.
    """
    with replacing(path) as part, part.open("wb") as file:
        done, like = 0, torch.empty(0)

        def add(values: Tensor) -> None:
            nonlocal done, like
            held = values.detach().cpu().contiguous()
            if not done:
                like = held[:1].clone()
                file.write(_header(name, count, like, metadata or {}))
            if held.shape[1:] != like.shape[1:] or held.dtype != like.dtype:
                raise ValueError(f"rows of {name} are {tuple(held.shape[1:])} after {tuple(like.shape[1:])}")
            file.write(held.view(-1).view(torch.uint8).numpy().data)
            done += len(held)

        yield add
        if done != count:
            raise ValueError(f"{name} has {done} rows, not {count}")


def write_rows(
    path: Path, name: str, count: int, parts: Iterable[Tensor], *, metadata: Mapping[str, str] | None = None
) -> None:
    """Write `count` rows that come in parts, as `row_writer` does; no more than a part is held."""
    with row_writer(path, name, count, metadata=metadata) as add:
        for values in parts:
            add(values)


def map_rows(path: Path, name: str) -> Tensor:
    """A tensor of a safetensors file; its pages are read when they are used, and may be dropped again."""
    return load_file(path)[name]


def rows_on_disk(count: int, parts: Iterable[Tensor]) -> Tensor:
    """Rows in a temporary file, which is gone with the process; of no rows an empty tensor."""
    return columns_on_disk(count, ({"rows": values} for values in parts))["rows"] if count else torch.empty(0)


def columns_on_disk(count: int, parts: Iterable[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Several tensors of as many rows, by name, in temporary files, which are gone with the process."""
    paths: dict[str, Path] = {}
    writers: dict[str, Callable[[Tensor], None]] = {}
    with ExitStack() as stack:
        for part in parts:
            for name, values in part.items():
                if name not in writers:
                    paths[name] = scratch() / f"{next(_numbers)}-{name}.safetensors"
                    writers[name] = stack.enter_context(row_writer(paths[name], name, count))
                writers[name](values)
    return {name: map_rows(path, name) for name, path in paths.items()}


_numbers = itertools.count()


@cache
def _folder() -> "tempfile.TemporaryDirectory[str]":
    return tempfile.TemporaryDirectory(prefix="dekag-", ignore_cleanup_errors=True)


def scratch() -> Path:
    """A temporary folder of this process, where the system has such; `TMPDIR` names another place."""
    return Path(_folder().name)


def _header(name: str, count: int, like: Tensor, metadata: Mapping[str, str]) -> bytes:
    """The head of a safetensors file of one tensor: a length and JSON, padded to eight bytes."""
    size = count * like.numel() * like.element_size()
    shape = [count, *like.shape[1:]]
    entry = {"dtype": _TYPES[like.dtype], "shape": shape, "data_offsets": [0, size]}
    text = json.dumps({"__metadata__": dict(metadata), name: entry}).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text
