"""The ledger in the database: what every edge sent, and what that would have been as pictures."""

import time
import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Engine, func, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session, sessionmaker

from dekag.serving.cloud.models import Edge, Traffic
from dekag.serving.cloud.trouble import DamagedRowError
from dekag.serving.traffic import TrafficReport

INSERT: Mapping[str, Callable[..., Any]] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}
"""By the name of the database: an insert that knows what to do about a row that is there."""
AMOUNTS = ("images", "prompt_bytes", "uses", "png_bytes", "pull_bytes")
UNNAMED = "unnamed"
"""Edge of all pulls by nobody who ever reported."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """The sums of one edge with one bundle."""

    edge: str
    bundle: str | None
    amounts: Mapping[str, int]
    """By AMOUNTS."""


class Ledger:
    """Traffic of the edges; safe to use from several threads and processes."""

    def __init__(self, engine: Engine, *, now: Callable[[], float] = time.time) -> None:
        self._session = sessionmaker(engine, expire_on_commit=False)
        self._insert = INSERT[engine.dialect.name]
        self._now = now

    def report(self, report: TrafficReport) -> bool:
        """Note a report; False if it was noted before, and then nothing changes but when the edge was seen."""
        sums: dict[str, Counter[str]] = {}
        for row in report.rows:
            sums.setdefault(row.bundle or "", Counter()).update(row.model_dump(exclude={"bundle"}))
        rows = [
            dict.fromkeys(AMOUNTS, 0)
            | {"edge": report.edge, "report": report.report, "bundle": bundle, "minute": report.ended // 60}
            | amounts
            for bundle, amounts in sums.items()
        ]
        with self._session.begin() as session:
            self._see(session, report.edge, active=dict(report.active))
            new = [session.scalar(self._new(row)) for row in rows]
        return not rows or any(new)

    def pulled(self, bytes_by_edge: Mapping[str, int]) -> None:
        """Note what was fetched of the registry; who never reported goes by no name, as anyone may fetch."""
        if not bytes_by_edge:
            return
        now = self._now()
        with self._session.begin() as session:
            self._see(session, UNNAMED)
            known = set(session.scalars(select(Edge.name).where(Edge.name.in_(bytes_by_edge))))
            sums = Counter[str]()
            for edge, size in bytes_by_edge.items():
                sums[edge if edge in known else UNNAMED] += size
            for edge, size in sums.items():
                self._see(session, edge)
                session.add(
                    Traffic(
                        edge=edge,
                        report=f"pull-{uuid.uuid4().hex}",
                        bundle="",
                        minute=int(now) // 60,
                        pull_bytes=size,
                    )
                )

    def entries(self, *, edge: str | None = None, since: int = 0, limit: int = 1000) -> Sequence[Entry]:
        """Sums by edge and bundle of what ended at or after a Unix time; the busiest first."""
        sums = [func.sum(getattr(Traffic, name)) for name in AMOUNTS]
        query = (
            select(Traffic.edge, Traffic.bundle, *sums)
            .where(Traffic.minute >= since // 60)
            .group_by(Traffic.edge, Traffic.bundle)
            .order_by(func.sum(Traffic.images).desc(), Traffic.edge, Traffic.bundle)
            .limit(limit)
        )
        if edge is not None:
            query = query.where(Traffic.edge == edge)
        with self._session() as session:
            return [_entry(*row) for row in session.execute(query)]

    def edges(self, *, limit: int = 1000) -> Sequence[Edge]:
        """The edges, the last seen first."""
        with self._session() as session:
            return session.scalars(select(Edge).order_by(Edge.last_seen.desc(), Edge.name).limit(limit)).all()

    def _see(self, session: Session, edge: str, **values: Any) -> None:
        """Note that an edge was there."""
        values["last_seen"] = self._now()
        new = self._insert(Edge).values(**{"name": edge, "active": {}, **values})
        session.execute(new.on_conflict_do_update(index_elements=["name"], set_=values))

    def _new(self, row: Mapping[str, Any]) -> Any:
        """Insert a row unless it is there; gives its edge if it was not."""
        return self._insert(Traffic).values(**row).on_conflict_do_nothing().returning(Traffic.edge)


def _entry(edge: object, bundle: object, *sums: Any) -> Entry:
    """A row of the sums. Raises DamagedRowError if it is none."""
    try:
        amounts = dict(zip(AMOUNTS, map(int, sums), strict=True))
    except (TypeError, ValueError, OverflowError) as error:
        raise DamagedRowError("a sum of the traffic is no number") from error
    if not isinstance(edge, str) or not isinstance(bundle, str):
        raise DamagedRowError("a row of the traffic is of no edge or bundle")
    return Entry(edge=edge, bundle=bundle or None, amounts=amounts)
