"""The one place that knows whether an edge is aligned; probes, answers, metrics, logs and the page ask it."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from dekag.bundle.manifest import Kind
from dekag.serving.alignment import STATES, Alignment, State
from dekag.serving.edge.bundles import KINDS, Bundles
from dekag.serving.edge.pulls import Puller
from dekag.serving.http.errors import ApiError
from dekag.serving.http.logs import facts
from dekag.serving.images.engine import Model

log = logging.getLogger("dekag.serving")
NOT_ALIGNED = "not_aligned"
"""Code of the answer of an edge that would have to draw without the update that it should have."""
LOOK_SECONDS = 2.0
"""Between two looks at whether the state has changed, for the log."""


@dataclass(frozen=True, kw_only=True)
class Alignments:
    """What is known of the alignment of an edge.

    puller: none without a registry; the shipped updates are the ones to use then. allow_unaligned: whether an edge
    with a registry may draw without an update. max_offline_age: seconds since the registry was last read after which
    the edge is not ready; None for no limit.
    """

    bundles: Bundles
    puller: Puller | None
    allow_unaligned: bool = False
    max_offline_age: float | None = None
    clock: Callable[[], float] = time.time

    def of(self, kind: Kind) -> Alignment:
        """The state of what is used unless another update is asked for."""
        return self.of_bundle(kind, self.bundles.active(kind))

    def all(self) -> list[Alignment]:
        """The state of each kind."""
        return [self.of(kind) for kind in KINDS]

    def of_model(self, model: Model) -> Alignment:
        """The state of a picture that a model draws."""
        return self.of_bundle("generation", model.bundle)

    def of_bundle(self, kind: Kind, bundle: str | None) -> Alignment:
        """The state of what is drawn or sent with one update, or without one."""
        if bundle is None:
            return Alignment(kind=kind, state="unaligned", bundle=None, reason=self._why_none(kind))
        if bundle == self.bundles.active(kind) and self.bundles.pinned(bundle):
            return Alignment(kind=kind, state="pinned", bundle=bundle, reason="the update is pinned")
        reason = self._why_stale(kind, bundle)
        state: State = "stale" if reason else "aligned"
        return Alignment(kind=kind, state=state, bundle=bundle, reason=reason)

    def missing(self) -> str | None:
        """Why the edge is not ready, if so: what the registry lists is not used, or was not read for too long."""
        if self.puller is None:
            return None
        if not self.puller.tried and any(self.bundles.active(kind) is None for kind in KINDS):
            return "the first pull has not ended"
        return next((reason for kind in KINDS if (reason := self.refusal(kind))), None)

    def refusal(self, kind: Kind) -> str | None:
        """Why nothing is drawn or sent with what is used of one kind, if so."""
        if self.puller is None:
            return None
        if self.bundles.active(kind) is None:
            wanted = not self.allow_unaligned and self._needed(kind)
            return f"not aligned: {self._why_none(kind)}" if wanted else None
        old = self._why_too_old()
        return f"stale: {old}" if old else None

    def require(self, kind: Kind) -> None:
        """Raise ApiError 503 where `refusal` has a reason."""
        if reason := self.refusal(kind):
            raise ApiError(503, reason, code=NOT_ALIGNED, headers={"retry-after": "5"})

    async def follow(self) -> None:
        """Write into the log whenever a state changes."""
        before: dict[Kind, Alignment] = {}
        while True:
            for now in self.all():
                if now != before.get(now.kind):
                    level = logging.INFO if now.state in ("aligned", "pinned") else logging.WARNING
                    log.log(level, "alignment", extra=facts(**now.to_json()))
                    before[now.kind] = now
            await asyncio.sleep(LOOK_SECONDS)

    def _needed(self, kind: Kind) -> bool:
        """Whether an update of a kind has to be there: its channel lists one, or there is none at all."""
        assert self.puller is not None
        if all(self.bundles.active(other) is None for other in KINDS):
            return True
        listed = self.puller.listed(kind)
        return kind == "generation" if self.puller.looked is None else bool(listed)

    def _why_none(self, kind: Kind) -> str:
        if self.bundles.active(kind) is not None:
            return f"no {kind} update was asked for"
        if self.puller is None:
            return f"this edge has no {kind} update"
        if self.puller.error is not None and not self.puller.listed(kind):
            return f"the registry was not read: {self.puller.error}"
        if self.puller.looked is None:
            return "the registry was not read yet"
        listed = self.puller.listed(kind)
        if not listed:
            return f"{self.puller.channel_name} lists no {kind} update for the model of this edge"
        newest, name = listed[-1].id, self.puller.channel_name
        return f"{kind} update {newest[:12]} of {name} is not used: {self._fault(newest)}"

    def _why_stale(self, kind: Kind, bundle: str) -> str:
        """Why an update is not the one to use now; empty if it is."""
        if self.puller is None:
            return ""
        if reason := self._why_too_old() or self._why_expired():
            return reason
        if self.puller.looked is None:
            return "the registry was never read since this update was"
        listed, name = self.puller.listed(kind), self.puller.channel_name
        if not listed:
            return f"{name} lists no {kind} update any more"
        if listed[-1].id != bundle:
            return f"{name} lists {listed[-1].id[:12]}, which is not used: {self._fault(listed[-1].id)}"
        return ""

    def _why_expired(self) -> str:
        assert self.puller is not None
        now = datetime.fromtimestamp(self.clock(), UTC)
        late = sorted((when, role) for role, when in self.puller.expiries.items() if when <= now)
        if not late:
            return ""
        when, role = late[0]
        return f"the registry's {role} has expired on {when:%Y-%m-%d}, and nothing newer was read"

    def _why_too_old(self) -> str:
        assert self.puller is not None
        if self.max_offline_age is None:
            return ""
        checked = None if self.puller.looked is None else self.puller.looked.checked
        age = None if checked is None else self.clock() - checked
        if age is not None and age <= self.max_offline_age:
            return ""
        since = "never" if age is None else f"{age:.0f} s ago"
        return f"the registry was last read {since}, and at most {self.max_offline_age:g} s are allowed"

    def _fault(self, bundle_id: str) -> str:
        """Why an update that is listed is not used."""
        assert self.puller is not None
        for shelved in self.bundles.shelf.bundles():
            if shelved.id == bundle_id:
                return shelved.bad or "another one was activated"
        return self.puller.error or "it was not pulled yet"


@dataclass(frozen=True, kw_only=True)
class RequiredModels:
    """The models of an edge, as `images.api.Models`; without an active update that has to be there it is refused."""

    bundles: Bundles
    alignments: Alignments

    def names(self) -> Sequence[str]:
        """As `Bundles.names`."""
        return self.bundles.names()

    @asynccontextmanager
    async def using(self, name: str | None, bundle: str | None) -> AsyncIterator[Model]:
        """As `Bundles.using`. Raises ApiError 503 if the active update is asked for and the edge is not ready."""
        if self.bundles.asks_active(name, bundle):
            self.alignments.require("generation")
        async with self.bundles.using(name, bundle) as model:
            yield model


class AlignmentMetrics(Collector):
    """The states and the expiries of the registry as numbers, read when they are asked for."""

    def __init__(self, alignments: Alignments, registry: CollectorRegistry) -> None:
        self._alignments = alignments
        registry.register(self)

    def collect(self) -> Iterable[GaugeMetricFamily]:
        """1 for the state that is, 0 for the others; when each signed file of the registry expires."""
        states = GaugeMetricFamily(
            "dekag_edge_alignment", "1 for the state of each kind of update.", labels=["kind", "state"]
        )
        for alignment in self._alignments.all():
            for state in STATES:
                states.add_metric([alignment.kind, state], float(state == alignment.state))
        yield states
        expiries = GaugeMetricFamily(
            "dekag_registry_expiry_timestamp_seconds",
            "When what this edge knows of each signed file of the registry expires.",
            labels=["role"],
        )
        if (puller := self._alignments.puller) is not None:
            for role, when in puller.expiries.items():
                expiries.add_metric([role], when.timestamp())
        yield expiries
