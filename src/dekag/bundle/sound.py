"""Every check of a bundle's files, without torch: what passes is what its manifest says, and finite."""

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
from numpy.typing import NDArray

from dekag.bundle.coded import check_coded
from dekag.bundle.container import (
    MANIFEST,
    MAX_BYTES,
    MAX_HEADER_BYTES,
    QUANTISED,
    damaged,
    plain_text,
    read_files,
)
from dekag.bundle.manifest import (
    CODED,
    PLAIN,
    FileSpec,
    Manifest,
    TensorSpec,
    check_rules,
    parse_manifest,
    short,
)
from dekag.errors import InputError
from dekag.wire.files import write_bytes

_DTYPES = {"F16": np.float16, "F32": np.float32, "I8": np.int8, "U8": np.uint8}
Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True, kw_only=True, eq=False)
class SoundFiles:
    """Files that have passed every check: arrays by file and name, metadata by file, as safetensors keeps it."""

    manifest: Manifest
    arrays: Mapping[str, Arrays]
    metadata: Mapping[str, Mapping[str, str]]


def sound_files(where: str, files: Mapping[str, bytes]) -> SoundFiles:
    """Check the bytes of a bundle's files, by name. Raises InputError."""
    if MANIFEST not in files:
        raise InputError(f"{where}: there is no {MANIFEST}; a bundle is a folder or a tar that holds one")
    manifest = parse_manifest(where, files[MANIFEST])
    check_rules(where, manifest)
    found = files.keys() - {MANIFEST}
    if missing := sorted(manifest.files.keys() - found):
        raise InputError(f"{where}: {missing[0]} is missing; fetch the bundle again")
    if strays := sorted(found - manifest.files.keys()):
        raise InputError(f"{where}: {strays[0]} is not listed in {MANIFEST}; fetch the bundle again")
    return SoundFiles(
        manifest=manifest,
        arrays={name: _arrays(where, name, files[name], spec) for name, spec in manifest.files.items()},
        metadata={name: _metadata(files[name]) for name in manifest.files},
    )


def read_manifest(path: Path | str) -> Manifest:
    """The manifest of a sound bundle. Raises InputError as `load_bundle`."""
    where = f"bundle {path}"
    return sound_files(where, read_files(where, Path(path), MAX_BYTES)).manifest


def size_bytes(manifest: Manifest) -> int:
    """Bytes of a bundle's tensor files and of its manifest."""
    return len(manifest.to_json()) + sum(spec.bytes for spec in manifest.files.values())


def describe(path: Path | str) -> dict[str, object]:
    """The manifest of a sound bundle as JSON values, with its size in bytes. Raises InputError as `load_bundle`."""
    manifest = read_manifest(path)
    return {**json.loads(manifest.to_json()), "size_bytes": size_bytes(manifest)}


def pack(bundle: Path | str, tar: Path | str) -> None:
    """Write a bundle as one .tar, .tar.gz or .tgz file, by its suffix, without times or owners.

    The file appears whole or not at all, and replaces an earlier one. Raises InputError if the bundle is not
    sound or the suffix is another; OSError if the disk refuses.
    """
    where, target = f"bundle {bundle}", Path(tar)
    if not target.name.endswith((".tar", ".tar.gz", ".tgz")):
        raise InputError(f"the name of a packed bundle ends in .tar, .tar.gz or .tgz, got {target}")
    files = read_files(where, Path(bundle), MAX_BYTES)
    sound_files(where, files)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name in sorted(files):
            member = tarfile.TarInfo(name)
            member.size = len(files[name])
            archive.addfile(member, io.BytesIO(files[name]))
    raw = buffer.getvalue()
    write_bytes(target, raw if target.name.endswith(".tar") else gzip.compress(raw, mtime=0))


def spec_of(where: str, name: str, raw: bytes) -> FileSpec:
    """What a manifest says of a tensor file. Raises InputError for one that no bundle may hold."""
    return _spec(raw, _views(where, name, raw))


def _spec(raw: bytes, views: Mapping[str, Mapping[str, Any]]) -> FileSpec:
    tensors = {n: TensorSpec(dtype=view["dtype"], shape=tuple(view["shape"])) for n, view in views.items()}
    return FileSpec(sha256=hashlib.sha256(raw).hexdigest(), bytes=len(raw), tensors=tensors)


def _views(where: str, name: str, raw: bytes) -> dict[str, dict[str, Any]]:
    """Shape, dtype and data of each tensor, once safetensors' own reader has accepted the header."""
    if MAX_HEADER_BYTES < (length := int.from_bytes(raw[:8], "little")) <= len(raw):
        raise InputError(
            f"{where}: {name} has a header of {length} bytes, but at most {MAX_HEADER_BYTES} may be read"
        )
    try:
        views = dict(safetensors.deserialize(raw))  # type: ignore[no-untyped-call]
    except safetensors.SafetensorError as err:
        raise damaged(where, name, f"it is no safetensors file ({plain_text(err)})") from err
    allowed = CODED if name in QUANTISED.values() else PLAIN
    for tensor, view in views.items():
        if view["dtype"] not in allowed:
            raise InputError(
                f"{where}: {name}: '{plain_text(tensor)}' must be {' or '.join(allowed)}, got {view['dtype']}"
            )
    return views


def _arrays(where: str, name: str, raw: bytes, spec: FileSpec) -> Arrays:
    """The tensors of one file, once its bytes are those of the manifest and their values are finite."""
    if len(raw) != spec.bytes:
        raise damaged(where, name, f"it has {len(raw)} bytes, {MANIFEST} says {spec.bytes}")
    digest = hashlib.sha256(raw).hexdigest()
    if digest != spec.sha256:
        raise damaged(where, name, f"sha256 is {short(digest)}, {MANIFEST} says {short(spec.sha256)}")
    views = _views(where, name, raw)
    if _spec(raw, views) != spec:
        raise damaged(where, name, f"its tensors have other names, shapes or dtypes than {MANIFEST} says")
    arrays: Arrays = {
        tensor: np.frombuffer(view["data"], dtype=_DTYPES[view["dtype"]]).reshape(view["shape"])
        for tensor, view in views.items()
    }
    for tensor, values in arrays.items():
        if not bool(np.isfinite(values).all()):
            raise InputError(
                f"{where}: {name}: '{plain_text(tensor)}' must be finite, but holds NaN or infinite values"
            )
    if name in QUANTISED.values():
        try:
            check_coded(arrays)
        except InputError as err:
            raise InputError(f"{where}: {name}: {err}") from err
    return arrays


def _metadata(raw: bytes) -> dict[str, str]:
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    return dict(header.get("__metadata__", {}))
