"""Renewing signatures before they expire: what the keys at hand can, and what is left to other keys."""

from collections.abc import Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Literal

from tuf.api.metadata import Metadata

from dekag.errors import InputError
from dekag.registry.expiry import Expiry, expiry_of
from dekag.registry.faults import RegistryError
from dekag.registry.keys import ROLES, Role
from dekag.registry.signed import Signing

DUE: Final = 0.5
"""Targets and root are renewed from when so much of their lifetime is left."""
Outcome = Literal["renewed", "not due", "no key here"]
_CHAIN: Final[tuple[Role, ...]] = ("targets", "snapshot", "timestamp")
"""A new file of one of these needs new ones of those after it."""


@dataclass(frozen=True, kw_only=True)
class Renewal:
    """What became of the signature of a role.

    expiry: as it is published now. why: what was lacking, if it was due and was not renewed.
    """

    expiry: Expiry
    outcome: Outcome
    why: str = ""

    def told(self, now: datetime) -> str:
        """What is wrong and what is right, in one line, where it was due and was not renewed."""
        expires = "expired" if self.expiry.expired(now) else "expires"
        when = self.expiry.expires.date().isoformat()
        return f"{self.expiry.role} {expires} on {when} and was not renewed, as {self.why}; refresh where they are"


def renew(signing: Signing, *, everything: bool = False) -> tuple[Renewal, ...]:
    """Sign anew what is due and has its keys at hand, root last; snapshot and timestamp are always due.

    everything: all four are due. Returns what became of each role, in the order of `ROLES`.
    """
    lacking: dict[Role, str] = {}
    renewed: set[Role] = set()
    for place, role in enumerate(_CHAIN):
        if role == "targets" and not (everything or _half_gone(signing, role)):
            continue
        if why := _lacking(signing, _CHAIN[place:]):
            lacking[role] = why
            continue
        signing.commit(role)
        renewed.update(_CHAIN[place:])
        break
    if everything or _half_gone(signing, "root"):
        if why := _lacking(signing, ("root",)):
            lacking["root"] = why
        else:
            signing.commit_root(deepcopy(signing.root.signed), [])
            renewed.add("root")
    return tuple(_renewal(signing, role, role in renewed, lacking.get(role, "")) for role in ROLES)


def require_fresh(renewals: Iterable[Renewal], now: datetime) -> None:
    """Raise RegistryError if a role has expired that could not be renewed; root is named first."""
    for renewal in renewals:
        if renewal.expiry.expired(now):
            raise RegistryError("expired", f"{renewal.told(now)}, as edges refuse the registry until then")


def _renewal(signing: Signing, role: Role, renewed: bool, why: str) -> Renewal:
    outcome: Outcome = "renewed" if renewed else "no key here" if why else "not due"
    return Renewal(expiry=_expiry(signing, role), outcome=outcome, why=why)


def _expiry(signing: Signing, role: Role) -> Expiry:
    parts: dict[Role, Metadata[Any]] = {
        "root": signing.root,
        "targets": signing.targets,
        "snapshot": signing.snapshot,
        "timestamp": signing.timestamp,
    }
    return expiry_of(role, parts[role])


def _half_gone(signing: Signing, role: Role) -> bool:
    return _expiry(signing, role).left(signing.clock()) < DUE * signing.keys.lifetimes.of(role)


def _lacking(signing: Signing, roles: Sequence[Role]) -> str:
    """What is not at hand to sign roles that must be signed together; empty if nothing is."""
    for role in roles:
        wanted = signing.root.signed.roles[role]
        try:
            held = sum(signing.keys.signer(role, key_id) is not None for key_id in wanted.keyids)
        except InputError as error:
            if role not in ("targets", "root"):
                raise
            return str(error)  # what needs no such key is signed all the same
        if held < wanted.threshold:
            keys = "key" if wanted.threshold == 1 else "keys"
            return (
                f"it takes {wanted.threshold} {keys} of {role} and here {'is' if held == 1 else 'are'} {held}"
            )
    return ""
