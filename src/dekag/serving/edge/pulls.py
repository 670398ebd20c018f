"""Pulling updates: what a channel lists comes onto the shelf, and becomes active once it has passed its test."""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import TypeVar

from prometheus_client import CollectorRegistry, Counter

from dekag.bundle.manifest import Kind
from dekag.errors import InputError
from dekag.registry.client import RegistryClient
from dekag.registry.listing import Listed, Listing
from dekag.serving.edge.bundles import Bundles
from dekag.serving.http.logs import facts

log = logging.getLogger("dekag.serving")
Some = TypeVar("Some", bound=Listed)


class Puller:
    """Follows one channel of a registry.

    bases: digest of what an update of each kind must be made for; others are left alone.
    follow: names of the bundles that may become active, all if there are none.
    looked: what the registry said when it was last read, before this process as well. expiries: until when each role
    of what was read then is signed.
    """

    def __init__(
        self,
        client: RegistryClient,
        bundles: Bundles,
        *,
        channel: str,
        bases: Mapping[Kind, str],
        follow: Sequence[str],
        registry: CollectorRegistry,
    ) -> None:
        self.error: str | None = None
        self.tried = False
        self.looked = client.last(channel)
        self.expiries = client.expiries()
        self._client = client
        self._bundles = bundles
        self._channel = channel
        self._bases = bases
        self._follow = frozenset(follow)
        self._alone = asyncio.Lock()
        self._pulls = Counter("dekag_edge_pulls", "Looks at the registry.", ["result"], registry=registry)
        self._refused = Counter("dekag_edge_updates_refused", "Updates that failed.", registry=registry)

    @property
    def channel_name(self) -> str:
        """The channel in words."""
        return f"channel {self._channel}"

    def listed(self, kind: Kind) -> list[Listed]:
        """What the channel listed for this edge when it was last read, and may become active."""
        return [] if self.looked is None else self._mine(kind, self.looked.listed)

    async def follow(self, seconds: float) -> None:
        """Pull for ever, with so long a wait between two pulls."""
        while True:
            try:
                await self.pull()
            except (InputError, OSError) as error:
                log.warning("a pull failed; the last updates stay", extra=facts(why=str(error)))
            except Exception:
                log.exception("a pull failed; the last updates stay")
            await asyncio.sleep(seconds)

    async def pull(self) -> list[str]:
        """Fetch what is listed and not here, and follow the channel; returns the ids that are new.

        Raises RegistryError if the registry cannot be trusted, InputError or OSError if a bundle cannot be taken.
        """
        async with self._alone:
            try:
                new = await self._pull()
            except Exception as error:
                self.error = str(error)
                self._pulls.labels("failed").inc()
                raise
            finally:
                self.tried = True
                self._note()
            self.error = None
            self._pulls.labels("done").inc()
            return new

    def _note(self) -> None:
        """Take over what the client has read and verified."""
        self.looked, self.expiries = self._client.last(self._channel), self._client.expiries()

    async def _pull(self) -> list[str]:
        shelf = self._bundles.shelf
        listed = await asyncio.to_thread(self._client.channel, self._channel)
        self._note()
        fitting = [listing for listing in listed if self._bases.get(listing.kind) == listing.base_digest]
        known = {bundle.id for bundle in shelf.bundles()}
        new = [listing for listing in fitting if listing.id not in known]
        for listing in new:
            await asyncio.to_thread(self._client.fetch, listing, shelf)
            log.info("an update was pulled", extra=facts(bundle=listing.id, name=listing.name))
        for kind in self._bases:
            await self._follow_kind(kind, fitting)
        if new:
            # what is listed must not be thrown out, only to be fetched again
            shelf.keep = max(shelf.keep, len(fitting))
            await asyncio.to_thread(shelf.prune)
        return [listing.id for listing in new]

    def _mine(self, kind: Kind, listed: Sequence[Some]) -> list[Some]:
        """Those of a list that may become active here."""
        fitting = [one for one in listed if one.kind == kind and one.base_digest == self._bases.get(kind)]
        return [one for one in fitting if not self._follow or one.name in self._follow]

    async def _follow_kind(self, kind: Kind, listed: Sequence[Listing]) -> None:
        """Activate the last one listed, unless it is active or bad, or the active one is pinned."""
        mine = self._mine(kind, listed)
        active = self._bundles.active(kind)
        shelved = {bundle.id: bundle for bundle in self._bundles.shelf.bundles()}
        if not mine or mine[-1].id == active or shelved[mine[-1].id].bad is not None:
            return
        if active in shelved and shelved[active].pinned:
            return
        try:
            await self._bundles.activate(mine[-1].id)
        except InputError as error:
            self._refused.inc()
            details = facts(bundle=mine[-1].id, why=str(error), stays=active)
            log.error("an update failed its test and is not used", extra=details)
