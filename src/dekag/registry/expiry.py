"""Until when what a client has verified is signed."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata

from dekag.registry.keys import ROLES, Role


@dataclass(frozen=True, kw_only=True)
class Expiry:
    """When the signed file of a role is worth nothing any more."""

    role: Role
    version: int
    expires: datetime

    def expired(self, now: datetime) -> bool:
        """Whether that has come. The readers of `tuf` refuse a file from its very second on."""
        return now >= self.expires


def read_expiries(metadata: Path) -> tuple[Expiry, ...]:
    """Those of a client's folder of verified files, in the order of `ROLES`; what is not there is left out.

    A file that cannot be read counts as not there, as it does for the client itself.
    """
    found = []
    for role in ROLES:
        try:
            signed = Metadata[Any].from_bytes((metadata / f"{role}.json").read_bytes()).signed
        except (OSError, RepositoryError):
            continue
        if signed.type == role:
            found.append(Expiry(role=role, version=signed.version, expires=signed.expires))
    return tuple(found)


def earliest(expiries: Iterable[Expiry]) -> Expiry | None:
    """The one that ends first, after which nothing of the registry is trusted; None of none."""
    return min(expiries, key=lambda expiry: expiry.expires, default=None)
