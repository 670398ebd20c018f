"""The metadata of a SigMF recording: the JSON, its checks, and the fields of the namespace `dekag`."""

import json
import re
from collections.abc import Sequence
from importlib import import_module
from itertools import accumulate
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dekag.channel import ChannelSettings
from dekag.codec.papr import Waveform
from dekag.types import InputError
from dekag.version import __version__
from dekag.wire.condition import ConditionModel

NAMESPACE = "dekag"
VERSION = "2.0.0"
"""Of the namespace; a reader takes any version of the same first number. Of 1 were symbols of codecs that did not send
the image's scale."""
MAX_SYMBOLS = 2**28
"""Largest batch, padding included, that is made for a recording."""
IMAGE = re.compile(r"image (\d{1,9})")
"""Label of the annotation that marks an image."""

_Int = Annotated[int, Field(ge=-(2**63), lt=2**63)]
_Number = Annotated[float, Field(allow_inf_nan=False)]
_Text = Annotated[str, Field(pattern="^[ -~]{1,200}$")]


class _Batch(BaseModel):
    """The fields of the namespace that describe the whole batch and come first."""

    seed: _Int
    columns: Annotated[int, Field(ge=1, le=MAX_SYMBOLS)]


class Extension(ConditionModel, _Batch):
    """The fields of the namespace: `Condition`'s, one value an image, and those of the batch."""

    # what is said here holds within the plain dataclasses as well
    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, str_max_length=200)

    order: Literal["images, symbols", "images, OFDM symbols, samples"] | None = None
    waveform: Waveform | None = None
    clip_db: _Number | None = None
    preset: _Text | None = None
    bundles: Annotated[dict[_Text, _Text], Field(max_length=8)] | None = None
    channel: ChannelSettings | None = None


def global_info(extension: Extension, datatype: str, sample_rate_hz: float | None) -> dict[str, Any]:
    """The global object of a recording's metadata."""
    rate = {} if sample_rate_hz is None else {"core:sample_rate": sample_rate_hz}
    return {
        "core:datatype": datatype,
        "core:generator": f"dekag {__version__}",
        # the samples can be read without the namespace
        "core:extensions": [{"name": NAMESPACE, "version": VERSION, "optional": True}],
        **rate,
        **{f"{NAMESPACE}:{name}": value for name, value in extension.model_dump(exclude_none=True).items()},
    }


def read_metadata(sigmf: ModuleType, meta: Path) -> dict[str, Any]:
    """JSON of a metadata file that the schema of SigMF accepts and that describes one plain data file."""
    try:
        metadata = json.loads(meta.read_text(encoding="utf-8"), parse_constant=_refuse)
    except OSError as error:
        raise InputError(
            f"{meta} cannot be read ({error.strerror}); a recording is a .sigmf-meta and a .sigmf-data file"
        ) from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{meta} is not JSON: {plain(error)}; copy it again") from error
    jsonschema = import_module("jsonschema")
    try:
        jsonschema.validate(metadata, sigmf.schema.get_schema())
    except jsonschema.ValidationError as error:
        raise InputError(f"{meta} is not SigMF metadata: {plain(error.message)}") from error
    facts = metadata["global"]
    odd = [key for key in ("core:dataset", "core:metadata_only", "core:trailing_bytes") if facts.get(key)]
    odd += ["core:header_bytes" for capture in metadata["captures"] if capture.get("core:header_bytes")]
    if odd or facts.get("core:num_channels", 1) != 1:
        named = odd[0] if odd else "core:num_channels"
        raise InputError(
            f"{meta}: {named} is set, but a delivery is one channel in a data file without headers"
        )
    return dict(metadata)


def read_extension(meta: Path, facts: dict[str, Any]) -> Extension:
    """The namespace's fields in the global object, checked."""
    versions = [e["version"] for e in facts.get("core:extensions", []) if e["name"] == NAMESPACE]
    if not versions:
        raise InputError(f"{meta}: no extension {NAMESPACE!r}, so the recording is not a delivery of dekag")
    if versions[0].split(".")[0] != VERSION.split(".")[0]:
        raise InputError(
            f"{meta}: extension {NAMESPACE!r} has version {plain(versions[0])}, this dekag reads {VERSION}"
        )
    prefix = f"{NAMESPACE}:"
    own = {key.removeprefix(prefix): value for key, value in facts.items() if key.startswith(prefix)}
    try:
        # as JSON, since strict Python has no dataclass of a dictionary
        return Extension.model_validate_json(json.dumps(own))
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        text = plain(first["msg"].removeprefix("Value error, "))
        raise InputError(f"{meta}: {prefix}{plain(where)} is wrong: {text}") from error


def first_sample(metadata: dict[str, Any]) -> int:
    """Where the first capture begins, and with it the first image; what lies before it was not captured for it."""
    captures = metadata["captures"]
    return int(captures[0]["core:sample_start"]) if captures else 0


def check_annotations(meta: Path, metadata: dict[str, Any], lengths: Sequence[int]) -> None:
    """InputError if an annotation marks an image elsewhere than first sample and condition place it.

    Annotations count from the beginning of the file. Those of the sender, which count from the first image, may
    have been left as they were.
    """
    start, places = first_sample(metadata), [0, *accumulate(lengths)]
    for mark in metadata.get("annotations", []):
        label = IMAGE.fullmatch(mark.get("core:label", ""))
        if label is None:
            continue
        image, found = int(label[1]), (mark["core:sample_start"], mark.get("core:sample_count"))
        if image >= len(lengths):
            raise InputError(f"{meta}: there is an annotation of image {image} of {len(lengths)} images")
        place, length = places[image], lengths[image]
        if found[0] not in (place, start + place) or found[1] not in (None, length):
            raise InputError(
                f"{meta}: image {image} is marked at sample {found[0]} with {found[1]} samples, but the condition"
                f" places it at {start + place} with {length}; mend core:sample_start or the annotations"
            )


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number of JSON")


def plain(text: object) -> str:
    """A stranger's text for an error message: short, one line, nothing that a terminal obeys."""
    return ascii(" ".join(str(text).split()))[1:-1][:200]
