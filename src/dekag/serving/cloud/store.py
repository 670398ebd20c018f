"""The jobs in the database: submitted, claimed by one worker at a time, watched, ended.

A claim is a job and the number of the attempt. All that a worker writes is for its claim: once the job was
cancelled, or given to another worker because this one seemed dead, it is refused and the worker ends.
"""

import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from sqlalchemy import CursorResult, Engine, func, select, update
from sqlalchemy.orm import Session, defer, sessionmaker

from dekag.serving.cloud.models import FINAL, Job, JobEvent, State
from dekag.serving.cloud.trouble import DamagedRowError

DEAD_SECONDS = 30.0
"""A worker that was not heard of for so long is dead."""
MOST_FAILURES = 3
PUBLISHING = "publish"
"""The last stage; a job in it can no longer be cancelled."""


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A worker's right to a job."""

    job: str
    attempt: int


@dataclass(frozen=True, kw_only=True)
class Reached:
    """How far a job is; steps are those of all its stages."""

    stage: str
    step: int
    steps: int
    loss: float | None = None


class UnknownJobError(LookupError):
    """There is no job of that id."""


class JobConflictError(RuntimeError):
    """The job's state does not allow what was asked for."""


class QueueFullError(RuntimeError):
    """As many jobs wait as may wait."""


class JobStore:
    """Jobs and their events; safe to use from several threads and processes."""

    def __init__(self, engine: Engine, *, now: Callable[[], float] = time.time) -> None:
        self._session = sessionmaker(engine, expire_on_commit=False)
        self._now = now

    def submit(self, name: str, spec: Mapping[str, Any], *, most: int) -> Job:
        """Queue a job; QueueFullError if `most` are waiting."""
        with self._session.begin() as session:
            job = Job(id=uuid.uuid4().hex, name=name, spec=dict(spec), created=self._now())
            session.add(job)
            session.flush()
            waiting = select(func.count()).select_from(Job).where(Job.state == State.QUEUED)
            if session.scalars(waiting).one() > most:
                raise QueueFullError(f"{most} jobs are waiting; come back when one is done")
            self._tell(session, job.id, "queued")
        return job

    def claim(self, worker: str) -> Job | None:
        """The job that has waited longest, now this worker's; None if none waits."""
        first = select(Job.number).where(Job.state == State.QUEUED).order_by(Job.number).limit(1)
        # SQLite lets one writer in at a time and knows no such clause
        oldest = first.with_for_update(skip_locked=True).scalar_subquery()
        now = self._now()
        with self._session.begin() as session:
            job = session.scalar(
                update(Job)
                .where(Job.number == oldest, Job.state == State.QUEUED)
                .values(
                    state=State.RUNNING,
                    worker=worker,
                    heartbeat=now,
                    attempt=Job.attempt + 1,
                    started=func.coalesce(Job.started, now),
                )
                .returning(Job)
            )
            if job is not None:
                self._tell(session, job.id, "running", attempt=job.attempt)
        return job

    def beat(self, claim: Claim) -> bool:
        """Say that the worker lives; False if the job is no longer its own."""
        with self._session.begin() as session:
            return self._write(session, claim, heartbeat=self._now())

    def reach(self, claim: Claim, reached: Reached, *, tell: bool = True) -> bool:
        """Note how far the job is; as `beat`."""
        with self._session.begin() as session:
            held = self._write(
                session,
                claim,
                heartbeat=self._now(),
                stage=reached.stage,
                step=reached.step,
                steps=reached.steps,
                loss=reached.loss,
            )
            if held and tell:
                told = {"stage": reached.stage, "step": reached.step, "steps": reached.steps}
                self._tell(session, claim.job, "progress", **told, loss=reached.loss)
            return held

    def finish(self, claim: Claim, bundle: str) -> bool:
        """The job is done; as `beat`."""
        return self._end(claim, State.DONE, bundle=bundle, message="")

    def fail(self, claim: Claim, message: str) -> bool:
        """The job cannot be done; as `beat`."""
        return self._end(claim, State.FAILED, message=message)

    def crash(self, claim: Claim, message: str) -> bool:
        """The worker broke down: another attempt, unless MOST_FAILURES in a row got no further; as `beat`."""
        with self._session.begin() as session:
            if not self._write(session, claim, message=message, worker=None):
                return False
            job = session.scalars(select(Job).where(Job.id == claim.job)).one()
            job.failures = 1 if job.step > job.reached else job.failures + 1
            job.reached = max(job.step, job.reached)
            job.stage = ""
            job.state = State.QUEUED
            if job.failures >= MOST_FAILURES:
                job.state, job.finished = State.FAILED, self._now()
            self._tell(session, job.id, str(job.state), message=message)
            return True

    def give_back(self, claim: Claim) -> bool:
        """The worker ends for a reason of its own, so the attempt does not count as a failure; as `beat`."""
        with self._session.begin() as session:
            held = self._write(session, claim, state=State.QUEUED, worker=None, stage="")
            if held:
                self._tell(session, claim.job, "queued")
            return held

    def cancel(self, job_id: str) -> Job:
        """End a job that is not yet done; its worker ends by itself.

        Raises UnknownJobError, or JobConflictError if it has ended or is being published.
        """
        with self._session.begin() as session:
            job: Job | None = session.scalar(
                update(Job)
                .where(Job.id == job_id, Job.state.not_in(FINAL), Job.stage != PUBLISHING)
                .values(state=State.CANCELLED, finished=self._now(), worker=None)
                .returning(Job)
            )
            if job is not None:
                self._tell(session, job_id, "cancelled")
                return job
        job = self.get(job_id)
        what = "is being published" if job.state == State.RUNNING else f"is {job.state} already"
        raise JobConflictError(f"job {job_id} {what}")

    def dead(self, gone: Callable[[str], bool]) -> list[Claim]:
        """Claims whose worker was not heard of for long, or is gone by what the caller knows of it."""
        with self._session() as session:
            query = select(Job).options(defer(Job.spec)).where(Job.state == State.RUNNING)
            jobs = session.scalars(query).all()
        late = self._now() - DEAD_SECONDS
        return [
            Claim(job=job.id, attempt=job.attempt)
            for job in jobs
            if (job.heartbeat or 0.0) < late or gone(job.worker or "")
        ]

    def get(self, job_id: str) -> Job:
        """A job as it is; UnknownJobError if there is none."""
        with self._session() as session:
            job = session.scalar(select(Job).where(Job.id == job_id))
        if job is None:
            raise UnknownJobError(f"there is no job {job_id}")
        return job

    def page(self, *, limit: int, after: str | None = None, state: State | None = None) -> Sequence[Job]:
        """Jobs without their specs, the newest first, those after a job of an earlier page."""
        query = select(Job).options(defer(Job.spec)).order_by(Job.number.desc()).limit(limit)
        if after is not None:
            query = query.where(Job.number < self.get(after).number)
        if state is not None:
            query = query.where(Job.state == state)
        with self._session() as session:
            return session.scalars(query).all()

    def counts(self) -> dict[State, int]:
        """How many jobs are in each state."""
        with self._session() as session:
            rows = session.execute(select(Job.state, func.count()).group_by(Job.state))
            try:
                found = {State(state): int(number) for state, number in rows}
            except ValueError as error:
                raise DamagedRowError("a job is in no state that there is") from error
        return {state: found.get(state, 0) for state in State}

    def events(self, job_id: str, *, after: int = 0, limit: int = 100) -> Sequence[JobEvent]:
        """What happened to a job after the event of that number."""
        query = select(JobEvent).where(JobEvent.job == job_id, JobEvent.number > after)
        with self._session() as session:
            return session.scalars(query.order_by(JobEvent.number).limit(limit)).all()

    def _end(self, claim: Claim, state: State, **values: Any) -> bool:
        with self._session.begin() as session:
            held = self._write(session, claim, state=state, worker=None, finished=self._now(), **values)
            if held:
                self._tell(session, claim.job, str(state), **values)
            return held

    def _write(self, session: Session, claim: Claim, **values: Any) -> bool:
        """Change a job that is still this claim's; whether it is."""
        mine = Job.id == claim.job, Job.attempt == claim.attempt, Job.state == State.RUNNING
        statement = update(Job).where(*mine).values(**values)
        done = session.execute(statement, execution_options={"synchronize_session": False})
        return cast(CursorResult[Any], done).rowcount == 1

    def _tell(self, session: Session, job_id: str, kind: str, **data: Any) -> None:
        session.add(JobEvent(job=job_id, at=self._now(), kind=kind, data=data))
