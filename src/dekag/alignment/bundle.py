"""The bundle: one low-rank update, as a folder or as a tar of it, that a stranger's tools can load.

bundle.json                        the manifest, canonical JSON; its id is the digest of all the rest of it
pytorch_lora_weights.safetensors   of kind "generation": LoRA with PEFT's names
learned_embeds.safetensors         of kind "generation": {metaword: [vectors, width]}
cala.safetensors                   of kind "transmission"

There is no code, no pickle and no path in a bundle. What is loaded is read into memory once; everything is
checked there, and the tensors are made of the bytes that were checked.
"""

import gzip
import hashlib
import io
import json
import os
import tarfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Final, Literal

import safetensors
import torch
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, with_config
from torch import Tensor

from dekag.alignment.digest import canonical_json, canonical_safetensors, digest_json
from dekag.types import InputError

SCHEMA_VERSION: Final = 1
MANIFEST = "bundle.json"
LORA = "pytorch_lora_weights.safetensors"
EMBEDDING = "learned_embeds.safetensors"
CALA = "cala.safetensors"
FILES = {"generation": (LORA, EMBEDDING), "transmission": (CALA,)}
"""The tensor files that each kind may hold."""
ALLOWED = (MANIFEST, *FILES["generation"], *FILES["transmission"])
MAX_BYTES = 1 << 30
"""Largest bundle that is read unless the caller says otherwise."""
MAX_MANIFEST_BYTES = 1 << 22

Kind = Literal["generation", "transmission"]
Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=1)]
Setting = int | float | str

_DTYPES = {"F16": torch.float16, "F32": torch.float32}
_QUANTISATION = {"F16": "fp16", "F32": "fp32"}
_GZIP = b"\x1f\x8b"
_TAR_OVERHEAD = 1 << 20
_ARCHIVE_ERRORS = (
    *(tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError),
    # what tarfile lets through when a header is hostile
    *(ValueError, OverflowError, IndexError, RecursionError),
)
_Entry = tuple[str, bool, int, Callable[[], bytes]]
"""Name, whether it is a plain file, size in bytes, and how to read it."""
_STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, revalidate_instances="always")


@with_config(_STRICT)
@dataclass(frozen=True, kw_only=True)
class Metaword:
    """The learned word of a generation bundle and how prompts carry it."""

    token: Annotated[str, Field(pattern="^<[a-z0-9_-]{1,62}>$")]
    """Lower case in angle brackets: tokenizers that lower-case would merge any other spelling's vectors."""
    vectors: Count
    position: Literal["prefix", "suffix"]


@with_config(_STRICT)
@dataclass(frozen=True, kw_only=True)
class Metrics:
    """Named numbers without the bundle and with it; finite, in the unit that the name says."""

    before: dict[str, float] = field(default_factory=dict)
    after: dict[str, float] = field(default_factory=dict)


@with_config(_STRICT)
@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """One tensor, with the dtype as safetensors spells it."""

    dtype: Literal["F16", "F32"]
    shape: tuple[Count, ...]


@with_config(_STRICT)
@dataclass(frozen=True, kw_only=True)
class FileSpec:
    """One tensor file: digest and length of its bytes, and its tensors by name."""

    sha256: Digest
    bytes: Count
    tensors: Annotated[dict[str, TensorSpec], Field(min_length=1)]


@with_config(_STRICT)
@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What bundle.json says.

    id: digest of the canonical JSON of all other fields, hence of every tensor file.
    base_digest, tokenizer_digest: of the model and of the tokenizer that the bundle was made for; the
        tokenizer's is null for kind "transmission".
    licence: an SPDX expression, or a name in printable ASCII.
    training_digest: of the training configuration, null if unknown.
    settings: what the receiver should use (steps, guidance) and what the update is (rank).
    """

    schema_version: Literal[1] = SCHEMA_VERSION
    id: Digest = "0" * 64
    kind: Kind
    base_digest: Digest
    tokenizer_digest: Digest | None
    metaword: Metaword | None
    licence: Annotated[str, Field(pattern="^[ -~]{1,200}$")]
    metrics: Metrics
    training_digest: Digest | None
    quantisation: Literal["fp16", "fp32"]
    settings: dict[str, Setting]
    files: Annotated[dict[str, FileSpec], Field(min_length=1)]

    def content_id(self) -> str:
        """The id that belongs to the other fields."""
        return digest_json(_MANIFEST.dump_python(self, mode="json", exclude={"id"}))

    def to_json(self) -> bytes:
        """The bytes of bundle.json."""
        return canonical_json(_MANIFEST.dump_python(self, mode="json")) + b"\n"


_MANIFEST = TypeAdapter(Manifest)
_OBJECT = TypeAdapter(dict[str, Any])


@dataclass(frozen=True, kw_only=True, eq=False)
class Bundle:
    """A bundle that has passed every check.

    tensors: by file and name, on the CPU, in the file's dtype. metadata: by file, as safetensors keeps it.
    """

    manifest: Manifest
    tensors: Mapping[str, Mapping[str, Tensor]]
    metadata: Mapping[str, Mapping[str, str]]

    @property
    def id(self) -> str:
        """Digest of the contents."""
        return self.manifest.id

    @property
    def size_bytes(self) -> int:
        """Bytes of the tensor files and of the manifest."""
        return len(self.manifest.to_json()) + sum(spec.bytes for spec in self.manifest.files.values())

    def require_base(self, digest: str, tokenizer_digest: str | None = None) -> None:
        """Raise InputError unless the bundle was made for this base model and this tokenizer.

        A generation bundle asks for its tokenizer's digest, a transmission bundle knows none.
        """
        made_for = self.manifest
        for noun, asked, given in (
            ("base model", made_for.base_digest, digest),
            ("tokenizer", made_for.tokenizer_digest, tokenizer_digest),
        ):
            if asked != given:
                raise InputError(
                    f"bundle {_short(self.id)} was made for {noun} {_short(asked)}, but here it is"
                    f" {_short(given)}; use that {noun}, or a bundle made for this one"
                )


def save_bundle(
    folder: Path | str,
    *,
    kind: Kind,
    base_digest: str,
    tensors: Mapping[str, Mapping[str, Tensor]],
    licence: str,
    metadata: Mapping[str, Mapping[str, str]] | None = None,
    metaword: Metaword | None = None,
    tokenizer_digest: str | None = None,
    metrics: Metrics | None = None,
    settings: Mapping[str, Setting] | None = None,
    training_digest: str | None = None,
) -> Bundle:
    """Write a bundle and return it; the same contents give the same bytes. A bundle in its place is replaced.

    `tensors` and `metadata` are by file name; all tensors are float16, or all are float32. The folder appears
    whole or not at all. Raises InputError, before anything is written, if `load_bundle` would refuse the
    contents or the folder holds something else; OSError if the disk refuses.
    """
    where = f"bundle {folder}"
    blobs = _serialise(tensors, metadata or {})
    specs = {name: _file_spec(raw, _views(where, name, raw)) for name, raw in blobs.items()}
    draft = Manifest(
        kind=kind,
        base_digest=base_digest,
        tokenizer_digest=tokenizer_digest,
        metaword=metaword,
        licence=licence,
        metrics=metrics or Metrics(),
        training_digest=training_digest,
        quantisation="fp16" if _dtypes(specs) == {"F16"} else "fp32",
        settings=dict(settings or {}),
        files=specs,
    )
    files = {MANIFEST: _seal(where, draft).to_json(), **blobs}
    bundle = _open(where, files)
    _write_folder(Path(folder), files)
    return bundle


def load_bundle(path: Path | str, *, max_bytes: int = MAX_BYTES) -> Bundle:
    """Read a bundle from a folder, a .tar or a .tar.gz, and check all of it.

    Raises InputError if it is larger than `max_bytes`, holds anything but its own files, is damaged, is of
    another schema, or does not hold what its manifest says; OSError if it cannot be read.
    """
    where = f"bundle {path}"
    return _open(where, _read(where, Path(path), max_bytes))


def pack(bundle: Path | str, tar: Path | str) -> None:
    """Write a bundle as one .tar, .tar.gz or .tgz file, by its suffix, without times or owners.

    The file appears whole or not at all, and replaces an earlier one. Raises InputError if the bundle is not
    sound or the suffix is another; OSError if the disk refuses.
    """
    where, target = f"bundle {bundle}", Path(tar)
    if not target.name.endswith((".tar", ".tar.gz", ".tgz")):
        raise InputError(f"the name of a packed bundle ends in .tar, .tar.gz or .tgz, got {target}")
    files = _read(where, Path(bundle), MAX_BYTES)
    _open(where, files)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name in sorted(files):
            member = tarfile.TarInfo(name)
            member.size = len(files[name])
            archive.addfile(member, io.BytesIO(files[name]))
    raw = buffer.getvalue()
    with _beside(target) as work:
        _write_file(work / "tar", raw if target.name.endswith(".tar") else gzip.compress(raw, mtime=0))
        os.replace(work / "tar", target)


def _short(digest: str | None) -> str:
    return "none" if digest is None else digest[:12]


def _plain(text: object) -> str:
    """A stranger's text for an error message: short, no line breaks, nothing that a terminal obeys."""
    return ascii(str(text))[1:-1][:300]


def _damaged(where: str, name: str, text: str) -> InputError:
    return InputError(f"{where}: {name} is damaged: {text}; fetch the bundle again")


def _serialise(
    tensors: Mapping[str, Mapping[str, Tensor]], metadata: Mapping[str, Mapping[str, str]]
) -> dict[str, bytes]:
    names = sorted({*tensors, *metadata})
    return {name: canonical_safetensors(tensors.get(name, {}), metadata.get(name, {})) for name in names}


def _views(where: str, name: str, raw: bytes) -> dict[str, dict[str, Any]]:
    """Shape, dtype and data of each tensor, once safetensors' own reader has accepted the header."""
    try:
        views = dict(safetensors.deserialize(raw))  # type: ignore[no-untyped-call]
    except safetensors.SafetensorError as err:
        raise _damaged(where, name, f"it is no safetensors file ({_plain(err)})") from err
    for tensor, view in views.items():
        if view["dtype"] not in _DTYPES:
            raise InputError(f"{where}: {name}: '{_plain(tensor)}' must be F16 or F32, got {view['dtype']}")
    return views


def _file_spec(raw: bytes, views: Mapping[str, Mapping[str, Any]]) -> FileSpec:
    tensors = {n: TensorSpec(dtype=view["dtype"], shape=tuple(view["shape"])) for n, view in views.items()}
    return FileSpec(sha256=hashlib.sha256(raw).hexdigest(), bytes=len(raw), tensors=tensors)


def _dtypes(files: Mapping[str, FileSpec]) -> set[str]:
    return {spec.dtype for file in files.values() for spec in file.tensors.values()}


def _seal(where: str, draft: Manifest) -> Manifest:
    """The manifest with the id of its contents, once its fields are found valid."""
    try:
        checked = _MANIFEST.validate_python(draft)
    except ValidationError as err:
        raise _refusal(where, err) from err
    return replace(checked, id=checked.content_id())


def _refusal(where: str, err: ValidationError) -> InputError:
    details = err.errors(include_url=False, include_input=False)[:3]
    said = "; ".join(f"{'.'.join(map(str, d['loc'])) or 'text'}: {d['msg']}" for d in details)
    return InputError(f"{where}: {MANIFEST} is refused: {_plain(said)}")


def _open(where: str, files: Mapping[str, bytes]) -> Bundle:
    """Make a bundle of the bytes of its files, by name, or raise InputError."""
    if MANIFEST not in files:
        raise InputError(f"{where}: there is no {MANIFEST}; a bundle is a folder or a tar that holds one")
    manifest = _parse(where, files[MANIFEST])
    _check_rules(where, manifest)
    found = files.keys() - {MANIFEST}
    if missing := sorted(manifest.files.keys() - found):
        raise InputError(f"{where}: {missing[0]} is missing; fetch the bundle again")
    if strays := sorted(found - manifest.files.keys()):
        raise InputError(f"{where}: {strays[0]} is not listed in {MANIFEST}; fetch the bundle again")
    tensors = {name: _tensors(where, name, files[name], spec) for name, spec in manifest.files.items()}
    metadata = {name: _metadata(files[name]) for name in manifest.files}
    return Bundle(manifest=manifest, tensors=tensors, metadata=metadata)


def _parse(where: str, raw: bytes) -> Manifest:
    try:
        version = _OBJECT.validate_json(raw).get("schema_version")
        if version != SCHEMA_VERSION:
            raise InputError(
                f"{where}: {MANIFEST} has schema version {_plain(version)}, this dekag reads {SCHEMA_VERSION};"
                " use the dekag that wrote it, or a later one"
            )
        manifest: Manifest = _MANIFEST.validate_json(raw)
    except ValidationError as err:
        raise _refusal(where, err) from err
    if manifest.id != manifest.content_id():
        text = f"its contents have id {_short(manifest.content_id())}, it says {_short(manifest.id)}"
        raise _damaged(where, MANIFEST, text)
    # the id sees values, not their spelling: this refuses doubled keys and all other ways to write them
    if raw != manifest.to_json():
        raise _damaged(where, MANIFEST, "it is not canonical JSON")
    return manifest


def _check_rules(where: str, manifest: Manifest) -> None:
    """Raise InputError unless the fields of the manifest fit each other."""
    files, kind, word = manifest.files, manifest.kind, manifest.metaword
    learned = files[EMBEDDING].tensors if EMBEDDING in files else {}
    rules = (
        (files.keys() <= set(FILES[kind]), f"kind {kind} holds no files but {' and '.join(FILES[kind])}"),
        (
            {_QUANTISATION[dtype] for dtype in _dtypes(files)} == {manifest.quantisation},
            "all tensors must be F16 and quantisation fp16, or F32 and fp32",
        ),
        (
            (manifest.tokenizer_digest is None) == (kind == "transmission"),
            "kind generation has a tokenizer_digest, kind transmission has none",
        ),
        (
            {name: (len(spec.shape), spec.shape[:1]) for name, spec in learned.items()}
            == ({} if word is None else {word.token: (2, (word.vectors,))}),
            f"{EMBEDDING} holds the metaword alone, [vectors, width], and is left out without one",
        ),
    )
    for holds, text in rules:
        if not holds:
            raise InputError(f"{where}: {MANIFEST} is refused: {text}")


def _tensors(where: str, name: str, raw: bytes, spec: FileSpec) -> dict[str, Tensor]:
    """The tensors of one file, once its bytes are those of the manifest and their values are finite."""
    if len(raw) != spec.bytes:
        raise _damaged(where, name, f"it has {len(raw)} bytes, {MANIFEST} says {spec.bytes}")
    digest = hashlib.sha256(raw).hexdigest()
    if digest != spec.sha256:
        raise _damaged(where, name, f"sha256 is {_short(digest)}, {MANIFEST} says {_short(spec.sha256)}")
    views = _views(where, name, raw)
    if _file_spec(raw, views) != spec:
        raise _damaged(where, name, f"its tensors have other names, shapes or dtypes than {MANIFEST} says")
    tensors = {
        tensor: torch.frombuffer(view["data"], dtype=_DTYPES[view["dtype"]]).reshape(view["shape"])
        for tensor, view in views.items()
    }
    for tensor, values in tensors.items():
        if not bool(values.isfinite().all()):
            raise InputError(
                f"{where}: {name}: '{_plain(tensor)}' must be finite, but holds NaN or infinite values"
            )
    return tensors


def _metadata(raw: bytes) -> dict[str, str]:
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    return dict(header.get("__metadata__", {}))


def _read(where: str, path: Path, max_bytes: int) -> dict[str, bytes]:
    """Bytes of the files of a folder or a tar; a file is read only if its name and size can be a bundle's."""
    if not path.exists():
        raise InputError(f"{where}: there is no such folder or file")
    files: dict[str, bytes] = {}
    left = max_bytes
    try:
        for name, plain, size, read in _folder(path) if path.is_dir() else _archive(where, path, max_bytes):
            if name not in ALLOWED:
                raise InputError(
                    f"{where}: '{_plain(name)}' must not be there; a bundle holds {', '.join(ALLOWED)}"
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
        raise _damaged(where, "the archive", _plain(err)) from err
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


@contextmanager
def _beside(target: Path) -> Iterator[Path]:
    """A folder beside `target`, gone afterwards whatever happens; an OSError says what was not written."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".dekag-", dir=target.parent, ignore_cleanup_errors=True) as work:
            yield Path(work)
    except OSError as err:
        raise OSError(err.errno, f"{target} was not written and is as it was: {err.strerror}") from err


def _write_file(path: Path, raw: bytes) -> None:
    with path.open("xb") as file:
        file.write(raw)
        file.flush()
        os.fsync(file.fileno())


def _write_folder(target: Path, files: Mapping[str, bytes]) -> None:
    """Put a folder of these files at `target`, where nothing is, or an empty folder, or a bundle."""
    replaceable = target.is_dir() and not target.is_symlink()
    if replaceable:
        replaceable = all(name in ALLOWED and plain for name, plain, _, _ in _folder(target))
    if os.path.lexists(target) and not replaceable:
        raise InputError(f"{target} exists and is not a bundle, so it is kept; choose another folder")
    with _beside(target) as work:
        new, old = work / "new", work / "old"
        new.mkdir()
        for name, raw in files.items():
            _write_file(new / name, raw)
        try:
            if replaceable:
                target.rename(old)
            new.rename(target)
        except BaseException:
            if old.exists() and not target.exists():
                old.rename(target)
            raise
