"""Jobs and the ledger over HTTP."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Header, Path, Query, Request
from fastapi.sse import EventSourceResponse, ServerSentEvent
from pydantic import BaseModel
from sqlalchemy.exc import SQLAlchemyError

from dekag.serving.cloud.ledger import Ledger
from dekag.serving.cloud.models import FINAL, Job, State
from dekag.serving.cloud.spec import JobSpec
from dekag.serving.cloud.store import JobConflictError, JobStore, QueueFullError, UnknownJobError
from dekag.serving.cloud.trouble import details, trouble_of
from dekag.serving.http.errors import RESPONSES, ApiError
from dekag.serving.http.logs import facts
from dekag.serving.traffic import EdgeName, TrafficReport
from dekag.world import World

log = logging.getLogger("dekag.serving")
LOOK_SECONDS = 0.5
RETRY_SECONDS = 60
"""When to come back to a full queue."""
JSON_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {
        "description": described["description"],
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorBody"}}},
    }
    for status, described in RESPONSES.items()
}
"""For a route whose other answers are no JSON."""
JobId = Annotated[str, Path(pattern="^[0-9a-f]{32}$")]
Number = Annotated[int, Query(ge=0, lt=2**31)]


class JobView(BaseModel):
    """A job as it is told; the spec only where one job is asked for."""

    object: Literal["job"] = "job"
    id: str
    name: str
    state: State
    stage: str
    step: int
    steps: int
    loss: float | None
    message: str
    bundle: str | None
    attempt: int
    created: float
    started: float | None
    finished: float | None
    spec: dict[str, Any] | None = None


class JobPage(BaseModel):
    """Some jobs, the newest first; the next page begins after `last`."""

    object: Literal["list"] = "list"
    data: list[JobView]
    last: str | None
    has_more: bool


class Counted(BaseModel):
    """Whether a report was new."""

    counted: bool


class EntryView(BaseModel):
    """The sums of one edge with one bundle."""

    edge: str
    bundle: str | None
    images: int
    prompt_bytes: int
    uses: int
    png_bytes: int
    pull_bytes: int


class EdgeView(BaseModel):
    """An edge that has reported."""

    name: str
    last_seen: float
    active: dict[str, str | None]


class LedgerView(BaseModel):
    """What the edges sent."""

    entries: list[EntryView]
    edges: list[EdgeView]


def jobs_router(store: JobStore, world: World, *, most_queued: int) -> APIRouter:
    """The routes of jobs."""
    router = APIRouter(prefix="/v1/jobs", tags=["jobs"])

    def known(job_id: JobId) -> Job:
        """The job that the path names."""
        with answered():
            return store.get(job_id)

    @router.post("", status_code=201)
    def submit(spec: JobSpec) -> JobView:
        """Ask for an alignment. It is published in its channel once it is done."""
        checked = spec.checked_for(world)
        with answered():
            return view(store.submit(spec.name, checked.model_dump(), most=most_queued))

    @router.get("")
    def listed(
        limit: Annotated[int, Query(ge=1, le=100)] = 20,
        after: Annotated[str | None, Query(pattern="^[0-9a-f]{32}$")] = None,
        state: State | None = None,
    ) -> JobPage:
        """The jobs, the newest first."""
        with answered():
            jobs = store.page(limit=limit + 1, after=after, state=state)
        data = [view(job, spec=False) for job in jobs[:limit]]
        return JobPage(data=data, last=data[-1].id if data else None, has_more=len(jobs) > limit)

    @router.get("/{job_id}")
    def one(job: Annotated[Job, Depends(known)]) -> JobView:
        """A job as it is."""
        return view(job)

    @router.delete("/{job_id}")
    def cancel(job: Annotated[Job, Depends(known)]) -> JobView:
        """Cancel a job that has not ended; its worker ends within seconds."""
        with answered():
            return view(store.cancel(job.id))

    @router.get("/{job_id}/events", response_class=EventSourceResponse, responses=JSON_ERRORS)
    async def events(
        request: Request,
        job: Annotated[Job, Depends(known)],
        after: Number = 0,
        last_event_id: Annotated[Number | None, Header()] = None,
    ) -> AsyncIterator[ServerSentEvent]:
        """What happened to a job and what happens next, until it ends or the cloud is stopped.

        A client whose connection ends before goes on where it was.
        """
        last = after if last_event_id is None else last_event_id
        async for event in _events(store, job.id, last, lambda: bool(request.app.state.stopping)):
            yield event

    return router


async def _events(
    store: JobStore, job_id: str, last: int, stopping: Callable[[], bool]
) -> AsyncIterator[ServerSentEvent]:
    """The events of a job after one of them, as they happen, up to its last, or while the database answers."""
    while not stopping():
        try:
            found = await asyncio.to_thread(store.events, job_id, after=last)
        except SQLAlchemyError as error:
            log.error(trouble_of(error).text, extra=facts(job=job_id, why=details(error)))
            return  # the client comes back, and is told then
        for event in found:
            last = event.number
            yield ServerSentEvent(id=str(last), event=event.kind, data={"at": event.at, **event.data})
            if event.kind in FINAL:
                return
        if not found:
            await asyncio.sleep(LOOK_SECONDS)


def ledger_router(ledger: Ledger) -> APIRouter:
    """The routes of the ledger."""
    router = APIRouter(prefix="/v1/ledger", tags=["ledger"])

    @router.post("")
    def report(report: TrafficReport) -> Counted:
        """Tell the traffic of an edge since its last report; sent twice, it counts once."""
        return Counted(counted=ledger.report(report))

    @router.get("")
    def told(edge: EdgeName | None = None, since: Annotated[int, Query(ge=0, lt=2**40)] = 0) -> LedgerView:
        """Sums by edge and bundle since a Unix time, and when each edge was last seen."""
        entries = ledger.entries(edge=edge, since=since)
        return LedgerView(
            entries=[EntryView(edge=each.edge, bundle=each.bundle, **each.amounts) for each in entries],
            edges=[
                EdgeView(name=each.name, last_seen=each.last_seen, active=each.active)
                for each in ledger.edges()
            ],
        )

    return router


def view(job: Job, *, spec: bool = True) -> JobView:
    """What is told of a job."""
    names = JobView.model_fields.keys() - {"object", "spec"}
    values = {name: getattr(job, name) for name in names}
    return JobView(**values, spec=job.spec if spec else None)


@contextmanager
def answered() -> Iterator[None]:
    """Within, what the store refuses is an error that clients understand."""
    try:
        yield
    except UnknownJobError as error:
        raise ApiError(404, str(error), code="job_not_found") from None
    except JobConflictError as error:
        raise ApiError(409, str(error), code="job_conflict") from None
    except QueueFullError as error:
        raise ApiError(429, str(error), headers={"retry-after": str(RETRY_SECONDS)}) from None
