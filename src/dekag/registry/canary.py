"""The canary of a bundle: a few prompts and what they should look like, for an edge's test of itself.

It is published beside the bundle as canonical JSON and read with suspicion: sizes before contents, no paths.
"""

import base64
from dataclasses import dataclass
from typing import Annotated, Final, Literal

from pydantic import Base64Bytes, ConfigDict, Field, TypeAdapter, ValidationError, with_config

from dekag.bundle.canonical import canonical_json
from dekag.bundle.container import plain_text
from dekag.errors import InputError

MAX_CANARY_BYTES: Final = 8 << 20
MAX_PROMPTS: Final = 64
_PNG = b"\x89PNG\r\n\x1a\n"
_Prompt = Annotated[str, Field(min_length=1, max_length=2000)]
_Seed = Annotated[int, Field(ge=0, lt=2**63)]


@dataclass(frozen=True, kw_only=True)
class Canary:
    """What an edge draws before it trusts a bundle, and how near it must come.

    steps: of the sampler, the bundle's own if None. floor_db: least mean PSNR against the references, which are
    PNG files, one for each prompt and its seed.
    Raises InputError if there is nothing to draw, or prompts, seeds and references are not as many.
    """

    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    steps: int | None = None
    floor_db: float
    references: tuple[bytes, ...]

    def __post_init__(self) -> None:
        if not len(self.prompts) == len(self.seeds) == len(self.references) > 0:
            raise InputError(
                "a canary needs a seed and a reference for each of its prompts, and one at least; got"
                f" {len(self.prompts)} prompts, {len(self.seeds)} seeds, {len(self.references)} references"
            )
        if not all(raw.startswith(_PNG) for raw in self.references):
            raise InputError("the references of a canary are PNG files")

    def to_json(self) -> bytes:
        """The file that is published. Raises InputError if it is one that an edge would refuse."""
        fields = {
            "schema": 1,
            "prompts": list(self.prompts),
            "seeds": list(self.seeds),
            "steps": self.steps,
            "floor_db": self.floor_db,
            "references": [base64.b64encode(raw).decode("ascii") for raw in self.references],
        }
        raw = canonical_json(fields) + b"\n"
        _checked(raw)
        return raw

    @staticmethod
    def from_json(raw: bytes) -> "Canary":
        """Read what `to_json` wrote. Raises InputError for anything else."""
        file = _checked(raw)
        return Canary(
            prompts=file.prompts,
            seeds=file.seeds,
            steps=file.steps,
            floor_db=file.floor_db,
            references=file.references,
        )


@with_config(ConfigDict(strict=True, extra="forbid", allow_inf_nan=False))
@dataclass(frozen=True, kw_only=True)
class _File:
    """A canary as JSON spells it, within its limits."""

    schema: Literal[1]
    prompts: Annotated[tuple[_Prompt, ...], Field(max_length=MAX_PROMPTS)]
    seeds: Annotated[tuple[_Seed, ...], Field(max_length=MAX_PROMPTS)]
    steps: Annotated[int, Field(ge=1, le=1000)] | None
    floor_db: Annotated[float, Field(ge=0, le=100)]
    references: Annotated[tuple[Base64Bytes, ...], Field(max_length=MAX_PROMPTS)]


_FILE = TypeAdapter(_File)


def _checked(raw: bytes) -> _File:
    if len(raw) > MAX_CANARY_BYTES:
        raise InputError(f"a canary has at most {MAX_CANARY_BYTES} bytes, got {len(raw)}; use fewer prompts")
    try:
        file: _File = _FILE.validate_json(raw)
    except ValidationError as error:
        detail = error.errors(include_url=False, include_input=False)[0]
        text = f"{'.'.join(map(str, detail['loc'])) or 'text'}: {detail['msg']}"
        raise InputError(f"the canary is refused: {plain_text(text)}") from error
    return file
