"""A publisher's keys: Ed25519, one PEM file each, and the root that says which of them count.

KEYS/<role>-<key id>.pem    private keys, mode 0600, encrypted if DEKAG_KEY_PASSPHRASE is set when they are made
KEYS/root.json              the root that this publisher trusts; what edges are given for their first pull
KEYS/registry.json          how long signatures last
KEYS/retired/               keys that no root names any more

A folder may hold some of the keys only: root keys belong elsewhere until they are needed.
"""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Final, Literal

from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from pydantic import ConfigDict, Field, with_config
from securesystemslib.signer import CryptoSigner

from dekag.bundle.canonical import canonical_json
from dekag.errors import InputError
from dekag.registry.stored import read_stored
from dekag.wire.files import put_in_place, write_bytes

Role = Literal["root", "targets", "snapshot", "timestamp"]
ROLES: Final[tuple[Role, ...]] = ("root", "targets", "snapshot", "timestamp")
PASSPHRASE: Final = "DEKAG_KEY_PASSPHRASE"
ROOT_FILE: Final = "root.json"
SETTINGS_FILE: Final = "registry.json"
_ENCRYPTED = b"-----BEGIN ENCRYPTED"
_Days = Annotated[int, Field(ge=1, le=3650)]


@with_config(ConfigDict(strict=True, extra="forbid"))
@dataclass(frozen=True, kw_only=True)
class Lifetimes:
    """After how many days a signature of each role expires. A short timestamp makes a freeze short."""

    root: _Days = 365
    targets: _Days = 90
    snapshot: _Days = 14
    timestamp: _Days = 7

    def of(self, role: Role) -> timedelta:
        """The lifetime of one role."""
        return timedelta(days=getattr(self, role))


@dataclass(frozen=True, kw_only=True)
class Keys:
    """The keys of a publisher. Raises InputError where a key cannot be read."""

    folder: Path

    def signer(self, role: Role, key_id: str) -> CryptoSigner | None:
        """The private key of a role by its id; None if the folder does not hold it."""
        path = self.folder / _name(role, key_id)
        try:
            raw = path.read_bytes()
        except FileNotFoundError:
            return None
        try:
            key = load_pem_private_key(raw, _passphrase() if raw.startswith(_ENCRYPTED) else None)
        except (TypeError, ValueError) as error:
            raise InputError(f"{path} cannot be read: {PASSPHRASE} must hold its passphrase") from error
        signer = CryptoSigner(key)
        if signer.public_key.keyid != key_id:
            raise InputError(f"{path} holds another key than its name says; put the right one there")
        return signer

    def generate(self, role: Role) -> CryptoSigner:
        """A new key of a role, written to the folder."""
        signer = CryptoSigner.generate_ed25519()
        write_bytes(self.folder / _name(role, signer.public_key.keyid), _pem(signer), mode=0o600)
        return signer

    def retire(self, role: Role, key_id: str) -> None:
        """Put a key aside that no root names any more; nothing happens if it is not here."""
        path = self.folder / _name(role, key_id)
        if path.exists():
            (self.folder / "retired").mkdir(mode=0o700, exist_ok=True)
            put_in_place(path, self.folder / "retired" / path.name)

    @property
    def root(self) -> bytes:
        """The root that the publisher trusts."""
        path = self.folder / ROOT_FILE
        if not path.exists():
            raise InputError(
                f"{self.folder} holds no {ROOT_FILE}; give the folder of the keys that the registry was made with"
            )
        return path.read_bytes()

    def trust(self, root: bytes) -> None:
        """Keep a newer root."""
        write_bytes(self.folder / ROOT_FILE, root)

    @property
    def lifetimes(self) -> Lifetimes:
        """How long signatures last; the usual times if registry.json is not there."""
        right = 'holds the days that signatures of roles last, as {"root":365}'
        return read_stored(self.folder / SETTINGS_FILE, Lifetimes, default=Lifetimes(), right=right)


@contextmanager
def new_keys(folder: Path, lifetimes: Lifetimes) -> Iterator[Keys]:
    """A folder for new keys that appears whole, once the block is through, or not at all.

    Raises InputError if there is a folder that is not empty.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} is not empty, so it is kept; choose another folder for the keys")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".keys-", dir=folder.parent, ignore_cleanup_errors=True) as stage:
        keys = Keys(folder=Path(stage) / "keys")
        keys.folder.mkdir(mode=0o700)
        write_bytes(keys.folder / SETTINGS_FILE, canonical_json(asdict(lifetimes)) + b"\n")
        yield keys
        put_in_place(keys.folder, folder)


def _name(role: Role, key_id: str) -> str:
    return f"{role}-{key_id[:16]}.pem"


def _passphrase() -> bytes | None:
    return os.environ.get(PASSPHRASE, "").encode() or None


def _pem(signer: CryptoSigner) -> bytes:
    passphrase = _passphrase()
    coding = BestAvailableEncryption(passphrase) if passphrase else NoEncryption()
    key = load_pem_private_key(signer.private_bytes, None)
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, coding)
