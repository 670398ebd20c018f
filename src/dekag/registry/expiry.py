"""Until when a registry is signed: what a client has verified of it, and what it publishes."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final, Literal

from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, Root, Signed, Snapshot, Targets, Timestamp

from dekag.registry.faults import RegistryError
from dekag.registry.keys import ROLES, Role
from dekag.registry.signed import TIMESTAMP, metadata_path, parse_signed

SOON: Final = 0.25
"""From when so much of a lifetime is left, it is time to renew."""
Standing = Literal["good", "renew soon", "expired"]


@dataclass(frozen=True, kw_only=True)
class Expiry:
    """When the signed file of a role is worth nothing any more."""

    role: Role
    version: int
    expires: datetime

    def expired(self, now: datetime) -> bool:
        """Whether that has come. The readers of `tuf` refuse a file from its very second on."""
        return now >= self.expires

    def left(self, now: datetime) -> timedelta:
        """Time until then; negative afterwards."""
        return self.expires - now

    def standing(self, now: datetime, lifetime: timedelta) -> Standing:
        """How it is with a signature that lasts so long."""
        if self.expired(now):
            return "expired"
        return "renew soon" if self.left(now) <= SOON * lifetime else "good"


def read_expiries(metadata: Path) -> tuple[Expiry, ...]:
    """Those of a client's folder of verified files, in the order of `ROLES`; what is not there is left out.

    A file that cannot be read counts as not there, as it does for the client itself.
    """
    found = []
    for role in ROLES:
        try:
            read = Metadata[Any].from_bytes((metadata / f"{role}.json").read_bytes())
        except (OSError, RepositoryError):
            continue
        if read.signed.type == role:
            found.append(expiry_of(role, read))
    return tuple(found)


def earliest(expiries: Iterable[Expiry]) -> Expiry | None:
    """The one that ends first, after which nothing of the registry is trusted; None of none."""
    return min(expiries, key=lambda expiry: expiry.expires, default=None)


def published_expiries(read: Callable[[str], bytes | None], *, first_root: int = 1) -> tuple[Expiry, ...]:
    """Those of the files that a registry publishes, found as a reader finds them, but not verified.

    read: the bytes of a file by its path, None if there is none. first_root: a version of root that is known to be
    there. Raises RegistryError if a file is missing or none of its role.
    """
    found: dict[Role, Metadata[Any]] = {}

    def take(role: Role, kind: type[Signed], path: str) -> Any:
        raw = read(path)
        if raw is None:
            raise RegistryError(
                "missing", f"the registry has no {path}; restore it, or make a registry first"
            )
        found[role] = parse_signed(kind, path, raw)
        return found[role].signed

    link = take("timestamp", Timestamp, TIMESTAMP).snapshot_meta
    link = take("snapshot", Snapshot, metadata_path("snapshot", link.version)).meta["targets.json"]
    take("targets", Targets, metadata_path("targets", link.version))
    version = first_root
    while read(metadata_path("root", version + 1)) is not None:
        version += 1
    take("root", Root, metadata_path("root", version))
    return tuple(expiry_of(role, found[role]) for role in ROLES)


def expiry_of(role: Role, metadata: Metadata[Any]) -> Expiry:
    """That of a signed file."""
    return Expiry(role=role, version=metadata.signed.version, expires=metadata.signed.expires)
