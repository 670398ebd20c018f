"""What a channel lists: the bundles that its edges should use, at most one of each kind, base and name."""

import re
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, with_config

from dekag.bundle.canonical import canonical_json
from dekag.bundle.container import plain_text
from dekag.bundle.manifest import Digest, Kind
from dekag.errors import InputError
from dekag.registry.faults import RegistryError

MAX_CHANNEL_BYTES: Final = 1 << 20
CHANNEL_NAME: Final = "[a-z][a-z0-9-]{0,31}"
CHANNEL_FILE: Final = re.compile(f"channels/({CHANNEL_NAME})\\.json")
"""How targets names the file of a channel."""
BUNDLE_NAME: Final = "[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
ChannelName = Annotated[str, Field(pattern=f"^{CHANNEL_NAME}$")]
BundleName = Annotated[str, Field(pattern=f"^{BUNDLE_NAME}$")]
STRICT: Final = ConfigDict(strict=True, extra="forbid")


@with_config(STRICT)
@dataclass(frozen=True, kw_only=True)
class Listed:
    """One bundle of a channel."""

    id: Digest
    kind: Kind
    base_digest: Digest
    name: BundleName

    @property
    def slot(self) -> tuple[str, str, str]:
        """What it is the one bundle of."""
        return (self.kind, self.base_digest, self.name)


@dataclass(frozen=True, kw_only=True)
class Blob:
    """A published file, as its signed entry describes it; its address holds the digest of its bytes."""

    path: str
    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Listing(Listed):
    """One bundle of a channel, the packed file, and the file of its canary if it was published with one."""

    channel: str
    version: int
    tar: Blob
    canary: Blob | None


@with_config(STRICT)
@dataclass(frozen=True, kw_only=True)
class Channel:
    """The file of a channel; its version grows by one with every change."""

    schema: Literal[1] = 1
    channel: ChannelName
    version: Annotated[int, Field(ge=0)]
    bundles: Annotated[tuple[Listed, ...], Field(max_length=4096)]

    def to_json(self) -> bytes:
        """The bytes that are published."""
        fields: dict[str, Any] = _CHANNEL.dump_python(self, mode="json")
        return canonical_json(fields) + b"\n"

    @staticmethod
    def from_json(raw: bytes, *, channel: str) -> "Channel":
        """Read the file of a channel. Raises RegistryError if it is none, or another's."""
        try:
            read: Channel = _CHANNEL.validate_json(raw)
        except ValidationError as error:
            detail = error.errors(include_url=False, include_input=False)[0]
            text = f"{'.'.join(map(str, detail['loc'])) or 'text'}: {detail['msg']}"
            raise RegistryError("damaged", f"channel {channel} is refused: {plain_text(text)}") from error
        if read.channel != channel or len({listed.slot for listed in read.bundles}) != len(read.bundles):
            raise RegistryError(
                "damaged", f"channel {channel} is refused: it is another's, or lists a slot twice"
            )
        return read

    def with_bundle(self, bundle: Listed) -> "Channel":
        """The channel with this bundle in its slot."""
        others = tuple(listed for listed in self.bundles if listed.slot != bundle.slot)
        return Channel(channel=self.channel, version=self.version + 1, bundles=(*others, bundle))

    def without(self, bundle_id: str) -> "Channel":
        """The channel without this bundle."""
        others = tuple(listed for listed in self.bundles if listed.id != bundle_id)
        return Channel(channel=self.channel, version=self.version + 1, bundles=others)


_CHANNEL = TypeAdapter(Channel)


def check_channel(name: str) -> str:
    """The name of a channel. Raises InputError if it cannot be one."""
    if not re.fullmatch(CHANNEL_NAME, name):
        raise InputError(
            f"a channel's name is up to 32 lower-case letters, digits and dashes, got '{plain_text(name)}'"
        )
    return name


def check_name(name: str) -> str:
    """The name of a bundle in its channel. Raises InputError if it cannot be one."""
    if not re.fullmatch(BUNDLE_NAME, name):
        raise InputError(
            f"a bundle's name is up to 64 letters, digits, dots, dashes and underscores, got '{plain_text(name)}'"
        )
    return name
