"""What a client keeps of its last good look at a channel: {"checked": 1764000000, "channel": ..., "listed": [...]}."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import Field, TypeAdapter, ValidationError, with_config

from dekag.bundle.canonical import canonical_json
from dekag.registry.listing import STRICT, ChannelName, Listed
from dekag.wire.files import write_bytes

LOOKED: Final = "looked.json"


@with_config(STRICT)
@dataclass(frozen=True, kw_only=True)
class Looked:
    """A look at a channel of which all was verified.

    checked: when, in seconds since 1970. listed: what the channel listed then.
    """

    checked: Annotated[int, Field(ge=0)]
    channel: ChannelName
    listed: tuple[Listed, ...]


_LOOKED = TypeAdapter(Looked)


def write_looked(path: Path, channel: str, listed: Iterable[Listed], checked: float) -> None:
    """Keep a look; the file appears whole. Raises OSError if the disk refuses."""
    names = [Listed(id=one.id, kind=one.kind, base_digest=one.base_digest, name=one.name) for one in listed]
    looked = Looked(checked=int(checked), channel=channel, listed=tuple(names))
    fields: dict[str, Any] = _LOOKED.dump_python(looked, mode="json")
    write_bytes(path, canonical_json(fields) + b"\n")


def read_looked(path: Path) -> Looked | None:
    """The last look that was kept; None if there is none that can be read."""
    try:
        looked: Looked = _LOOKED.validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None
    return looked
