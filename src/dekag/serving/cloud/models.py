"""What the cloud keeps in its database, as tables. Times are seconds of Unix time, in UTC."""

from enum import StrEnum
from functools import cache
from typing import Any

from sqlalchemy import JSON, BigInteger, CheckConstraint, Double, ForeignKey, Index, String, Text, event
from sqlalchemy.orm import DeclarativeBase, Mapped, MappedAsDataclass, class_mapper, mapped_column

from dekag.serving.cloud.trouble import DamagedRowError


class State(StrEnum):
    """Where a job stands. The last three are final."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


FINAL = frozenset({State.DONE, State.FAILED, State.CANCELLED})


class Base(MappedAsDataclass, DeclarativeBase, kw_only=True):
    """The tables of the cloud."""


class Job(Base):
    """An alignment that somebody asked for."""

    __tablename__ = "jobs"
    __table_args__ = (
        CheckConstraint("state in ('queued', 'running', 'done', 'failed', 'cancelled')", name="jobs_state"),
        Index("jobs_by_state", "state", "number"),
    )

    number: Mapped[int] = mapped_column(primary_key=True, init=False)
    """Order of submission."""
    id: Mapped[str] = mapped_column(String(32), unique=True)
    name: Mapped[str] = mapped_column(String(64))
    spec: Mapped[dict[str, Any]] = mapped_column(JSON)
    created: Mapped[float] = mapped_column(Double)
    state: Mapped[str] = mapped_column(String(16), default=State.QUEUED)
    stage: Mapped[str] = mapped_column(String(64), default="")
    step: Mapped[int] = mapped_column(default=0)
    """Steps taken, of all stages together."""
    steps: Mapped[int] = mapped_column(default=0)
    """Steps of all stages; 0 as long as nothing is known."""
    loss: Mapped[float | None] = mapped_column(Double, default=None)
    message: Mapped[str] = mapped_column(Text, default="")
    """Why it failed, or failed last."""
    bundle: Mapped[str | None] = mapped_column(String(64), default=None)
    started: Mapped[float | None] = mapped_column(Double, default=None)
    finished: Mapped[float | None] = mapped_column(Double, default=None)
    worker: Mapped[str | None] = mapped_column(String(300), default=None)
    """Host and process that run it."""
    heartbeat: Mapped[float | None] = mapped_column(Double, default=None)
    attempt: Mapped[int] = mapped_column(default=0)
    """How often it was claimed; what an earlier claim still writes is refused."""
    failures: Mapped[int] = mapped_column(default=0)
    """How often its workers died or broke down without getting further than the one before."""
    reached: Mapped[int] = mapped_column(default=0)
    """The furthest step at which one did."""


class JobEvent(Base):
    """Something that happened to a job."""

    __tablename__ = "job_events"
    __table_args__ = (Index("job_events_by_job", "job", "number"),)

    number: Mapped[int] = mapped_column(primary_key=True, init=False)
    job: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    at: Mapped[float] = mapped_column(Double)
    kind: Mapped[str] = mapped_column(String(16))
    data: Mapped[dict[str, Any]] = mapped_column(JSON)


class Edge(Base):
    """An edge that reported its traffic."""

    __tablename__ = "edges"

    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    last_seen: Mapped[float] = mapped_column(Double)
    active: Mapped[dict[str, Any]] = mapped_column(JSON)
    """Id of the active bundle of each kind."""


class Traffic(Base):
    """What one edge sent in some time with one bundle: a row of a report."""

    __tablename__ = "traffic"
    __table_args__ = (Index("traffic_by_minute", "minute"), Index("traffic_by_edge", "edge", "minute"))

    edge: Mapped[str] = mapped_column(ForeignKey("edges.name"), primary_key=True)
    report: Mapped[str] = mapped_column(String(64), primary_key=True)
    bundle: Mapped[str] = mapped_column(String(64), primary_key=True)
    """Empty without one."""
    minute: Mapped[int] = mapped_column(BigInteger)
    """Unix time of the end of it, in minutes."""
    images: Mapped[int] = mapped_column(BigInteger, default=0)
    prompt_bytes: Mapped[int] = mapped_column(BigInteger, default=0)
    uses: Mapped[int] = mapped_column(BigInteger, default=0)
    """Channel uses."""
    png_bytes: Mapped[int] = mapped_column(BigInteger, default=0)
    """Bytes that the pictures themselves would have been."""
    pull_bytes: Mapped[int] = mapped_column(BigInteger, default=0)
    """Bytes of the registry that the edge fetched."""


@cache
def _kinds(table: type[Base]) -> dict[str, tuple[type, ...]]:
    """What the values of each column of a table may be."""
    kinds: dict[str, tuple[type, ...]] = {}
    for attribute in class_mapper(table).column_attrs:
        column = attribute.columns[0]
        # every JSON of these tables is an object
        kind: type = dict if isinstance(column.type, JSON) else column.type.python_type
        numbers = (int,) if kind is float else ()
        kinds[attribute.key] = (kind, *numbers, *((type(None),) if column.nullable else ()))
    return kinds


@event.listens_for(Base, "load", propagate=True)
def _check(row: Base, _: object) -> None:
    """Raise DamagedRowError for values of a kind that was never written: SQLite's columns hold any."""
    for name, kinds in _kinds(type(row)).items():
        if name in vars(row) and not isinstance(vars(row)[name], kinds):
            raise DamagedRowError(f"a row of {row.__tablename__} holds no {kinds[0].__name__} as its {name}")
    if isinstance(row, Job) and row.state not in set(State):
        raise DamagedRowError("a job is in no state that there is")
