"""The manifest of a bundle, and the rules that its fields follow."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Annotated, Any, Final, Literal

from pydantic import ConfigDict, FailFast, Field, TypeAdapter, ValidationError, with_config

from dekag.bundle.canonical import canonical_json, digest_json
from dekag.bundle.coded import Bits
from dekag.bundle.container import (
    EMBEDDING,
    FILES,
    MANIFEST,
    NOISE_MAP,
    QUANTISED,
    damaged,
    plain_text,
)
from dekag.errors import InputError

SCHEMA_VERSION: Final = 2
"""Of version 1 were updates of codecs that did not send the image's scale."""
Kind = Literal["generation", "transmission"]
Quantisation = Literal["fp16", "fp32", "int8", "int4"]
Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=1)]
Setting = int | float | str
LICENCE = "Apache-2.0"
"""Of the updates that this package trains."""
PLAIN, CODED = ("F16", "F32"), ("F16", "I8", "U8")
FORMS: dict[Quantisation, set[str]] = {
    "fp16": {"F16"},
    "fp32": {"F32"},
    "int8": {"I8", "F16"},
    "int4": {"U8", "F16"},
}
BITS: dict[str, Bits] = {"int8": 8, "int4": 4}
CLIPS = ("clip_l", "clip_g", "t5xxl")
"""How ComfyUI names the vectors of one word, in the order of a pipeline's two or three text encoders."""
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

    dtype: Literal["F16", "F32", "I8", "U8"]
    shape: Annotated[tuple[Count, ...], Field(max_length=8), FailFast()]


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
    quantisation: of the low-rank files, or of all files if there is none; other files are fp16 or fp32.
    settings: what the receiver should use (steps, guidance) and what the update is (rank).
    """

    schema_version: Literal[2] = SCHEMA_VERSION
    id: Digest = "0" * 64
    kind: Kind
    base_digest: Digest
    tokenizer_digest: Digest | None
    metaword: Metaword | None
    licence: Annotated[str, Field(pattern="^[ -~]{1,200}$")]
    metrics: Metrics
    training_digest: Digest | None
    quantisation: Quantisation
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


def short(digest: str | None) -> str:
    """A digest as messages show it."""
    return "none" if digest is None else digest[:12]


def form_of(files: Mapping[str, FileSpec]) -> Quantisation:
    """The form of the files; fp32 if they are of none, which `check_rules` then says."""
    found = _dtypes(_low_rank(files) or files)
    return next((form for form, dtypes in FORMS.items() if dtypes == found), "fp32")


def _low_rank(files: Mapping[str, FileSpec]) -> dict[str, FileSpec]:
    return {name: spec for name, spec in files.items() if name in {*QUANTISED, *QUANTISED.values()}}


def _dtypes(files: Mapping[str, FileSpec]) -> set[str]:
    return {spec.dtype for file in files.values() for spec in file.tensors.values()}


def seal(where: str, draft: Manifest) -> Manifest:
    """The manifest with the id of its contents, once its fields are found valid."""
    try:
        checked = _MANIFEST.validate_python(draft)
    except ValidationError as err:
        raise _refusal(where, err) from err
    return replace(checked, id=checked.content_id())


def _refusal(where: str, err: ValidationError) -> InputError:
    details = err.errors(include_url=False, include_input=False)[:3]
    complaints = "; ".join(f"{'.'.join(map(str, d['loc'])) or 'text'}: {d['msg']}" for d in details)
    return InputError(f"{where}: {MANIFEST} is refused: {plain_text(complaints)}")


def parse_manifest(where: str, raw: bytes) -> Manifest:
    """The manifest of the bytes of bundle.json, once its id and its spelling are right; InputError if they are not."""
    try:
        values = _OBJECT.validate_json(raw)
        version = values.get("schema_version")
        if version != SCHEMA_VERSION:
            raise InputError(
                f"{where}: {MANIFEST} has schema version {plain_text(version)}, this dekag reads {SCHEMA_VERSION};"
                " use the dekag that wrote it, or have it made again"
            )
        # each error would hold all values, and a hostile manifest has many of both
        if wrong := sorted(values.keys() ^ {field.name for field in fields(Manifest)}):
            text = "Unexpected field" if wrong[0] in values else "Field required"
            raise InputError(f"{where}: {MANIFEST} is refused: {plain_text(wrong[0])}: {text}")
        manifest: Manifest = _MANIFEST.validate_json(raw)
    except ValidationError as err:
        raise _refusal(where, err) from err
    if manifest.id != manifest.content_id():
        text = f"its contents have id {short(manifest.content_id())}, it says {short(manifest.id)}"
        raise damaged(where, MANIFEST, text)
    # the id sees values, not their spelling: this refuses doubled keys and all other ways to write them
    if raw != manifest.to_json():
        raise damaged(where, MANIFEST, "it is not canonical JSON")
    return manifest


def check_rules(where: str, manifest: Manifest) -> None:
    """Raise InputError unless the fields of the manifest fit each other."""
    files, kind, form = manifest.files, manifest.kind, manifest.quantisation
    low_rank = _low_rank(files)
    lora_names = tuple(QUANTISED.values() if form in BITS else QUANTISED)
    rules = (
        (files.keys() <= set(FILES[kind]), f"kind {kind} holds no files but {', '.join(FILES[kind])}"),
        (
            low_rank.keys() <= set(lora_names),
            f"with quantisation {form}, LoRA is in {' and '.join(lora_names)}",
        ),
        (
            all(_dtypes({name: file}) == FORMS[form] for name, file in (low_rank or files).items()),
            "its LoRA, or without one all else, must be F16 and quantisation fp16, F32 and fp32,"
            " I8 with F16 scales and int8, or U8 with F16 scales and int4",
        ),
        (
            _dtypes({name: file for name, file in files.items() if name not in low_rank}) <= set(PLAIN),
            "all but the LoRA must be F16 or F32",
        ),
        (
            (manifest.tokenizer_digest is None) == (kind == "transmission"),
            "kind generation has a tokenizer_digest, kind transmission has none",
        ),
        (
            _holds_metaword(files.get(EMBEDDING), manifest.metaword),
            f"{EMBEDDING} holds the metaword alone, [vectors, width], or clip_l and clip_g of that shape, perhaps"
            " with t5xxl, and is left out without one",
        ),
        (
            NOISE_MAP not in files or _holds_noise_map(files[NOISE_MAP]),
            f"{NOISE_MAP} holds noise_map alone, [channels, channels]",
        ),
    )
    for holds, text in rules:
        if not holds:
            raise InputError(f"{where}: {MANIFEST} is refused: {text}")


def _holds_metaword(file: FileSpec | None, word: Metaword | None) -> bool:
    if file is None or word is None:
        return file is None and word is None
    fit = all(len(spec.shape) == 2 and spec.shape[0] == word.vectors for spec in file.tensors.values())
    return fit and file.tensors.keys() in ({word.token}, set(CLIPS[:2]), set(CLIPS))


def _holds_noise_map(file: FileSpec) -> bool:
    shapes = [spec.shape for spec in file.tensors.values()]
    return file.tensors.keys() == {"noise_map"} and len(shapes[0]) == 2 and len(set(shapes[0])) == 1
