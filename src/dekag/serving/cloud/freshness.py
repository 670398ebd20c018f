"""Until when the cloud's registry is signed: renewed while its keys are here, told as numbers, warned of in time."""

import logging
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from prometheus_client import CollectorRegistry, Gauge

from dekag.errors import InputError
from dekag.registry.expiry import Expiry, Standing, published_expiries
from dekag.registry.keys import Keys, Role
from dekag.registry.repository import Repository
from dekag.registry.signed import now
from dekag.serving.cloud.static import Files
from dekag.serving.http.logs import facts

log = logging.getLogger("dekag.serving")
WARN_AGAIN: Final = timedelta(days=1)


class Freshness:
    """Looks at what the registry publishes, which others may renew, and renews what it can itself.

    url: of the registry. keys: folder of the publisher's keys, which may hold some of them or not be there. clock:
    the time by which signatures expire.
    """

    def __init__(
        self,
        files: Files,
        url: str,
        keys: Path,
        registry: CollectorRegistry,
        *,
        clock: Callable[[], datetime] = now,
    ) -> None:
        self._files, self._url, self._keys, self._clock = files, url, keys, clock
        self._expiries: tuple[Expiry, ...] = ()
        self._unreadable: str | None = None
        self._warned: dict[Role, datetime] = {}
        self._gauge = Gauge(
            "dekag_registry_expiry_timestamp_seconds",
            "When the signed file of a role expires, in Unix time.",
            ["role"],
            registry=registry,
        )

    def refresh(self) -> None:
        """Renew what the keys at hand can, then look. What goes wrong is logged; the next time may go well."""
        if self._keys.is_dir():
            try:
                renewals = Repository(self._url, self._keys, clock=self._clock).refresh()
            except (InputError, OSError) as error:
                log.error("the registry was not refreshed", extra=facts(why=str(error)))
            else:
                outcomes = {each.expiry.role: each.outcome for each in renewals}
                log.info("the registry was refreshed", extra=facts(**outcomes))
        self.look()

    def look(self) -> None:
        """Read what is published, tell it, and warn once a day of what has less than a quarter of its time left."""
        try:
            self._expiries = published_expiries(self._read, first_root=self._root())
            lifetimes = Keys(folder=self._keys).lifetimes
        except (InputError, OSError) as error:
            if self._unreadable is None:
                log.error("the registry cannot be read", extra=facts(why=str(error)))
            self._unreadable = f"the registry cannot be read: {' '.join(str(error).split())}"
            return
        self._unreadable = None
        for expiry in self._expiries:
            self._gauge.labels(expiry.role).set(expiry.expires.timestamp())
            standing = expiry.standing(self._clock(), lifetimes.of(expiry.role))
            if standing != "good":
                self._warn(expiry, standing)

    def missing(self) -> str | None:
        """What keeps edges from the registry; None if nothing does."""
        for expiry in self._expiries:
            if expiry.expired(self._clock()):
                return (
                    f"the registry's {expiry.role} expired on {expiry.expires.date()}; {_right(expiry.role)}"
                )
        return self._unreadable

    def _warn(self, expiry: Expiry, standing: Standing) -> None:
        moment = self._clock()
        if moment < self._warned.get(expiry.role, datetime.min.replace(tzinfo=moment.tzinfo)) + WARN_AGAIN:
            return
        self._warned[expiry.role] = moment
        details = facts(role=expiry.role, expires=expiry.expires.isoformat(), right=_right(expiry.role))
        if standing == "expired":
            log.error("a signature of the registry has expired", extra=details)
        else:
            log.warning("a signature of the registry expires soon", extra=details)

    def _read(self, path: str) -> bytes | None:
        file = self._files.find(path)
        return None if file is None else file.read(0, file.size)

    def _root(self) -> int:
        """A version of root that is known to be there."""
        return next((expiry.version for expiry in self._expiries if expiry.role == "root"), 1)


def _right(role: Role) -> str:
    return f"refresh the registry where the keys of {role} are"
