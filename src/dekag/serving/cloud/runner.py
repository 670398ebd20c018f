"""Runs the jobs of the store: a process for each, at most so many at a time.

Every runner looks for dead workers as well, its predecessor's of before a restart and those of other hosts, and
puts their jobs back into the queue.
"""

import logging
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import uuid
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy.exc import SQLAlchemyError

from dekag.serving.cloud.models import FINAL, Job, State
from dekag.serving.cloud.store import Claim, JobStore, UnknownJobError
from dekag.serving.cloud.trouble import details, trouble_of
from dekag.serving.cloud.worker import LOST, Order
from dekag.serving.http.logs import facts

log = logging.getLogger("dekag.serving")
LOOK_SECONDS = 0.5
SWEEP_LOOKS = 10
"""Dead workers are looked for every so many looks."""
STOP_SECONDS = 5.0
"""A worker that was asked to end has so long."""
LOG = "worker.log"


@dataclass(frozen=True, kw_only=True)
class Workplace:
    """What the workers of a runner are told: see `Order`. `folder` holds a folder for each job."""

    database: str
    registry: str
    keys: Path
    folder: Path
    world: str
    device: str
    budget: int | None = None

    def order(self, job: Job) -> Order:
        """The order for one job."""
        return Order(
            database=self.database,
            registry=self.registry,
            keys=str(self.keys),
            folder=str(self.folder / job.id),
            world=self.world,
            device=self.device,
            budget=self.budget,
            job=job.id,
            attempt=job.attempt,
        )


class Runner:
    """Takes jobs from the store from `start` until `stop`; safe to start beside others on the same store."""

    def __init__(self, store: JobStore, place: Workplace, *, workers: int) -> None:
        self._store, self._place, self._workers = store, place, workers
        self._identity = Identity.of_this_process()
        self._running: dict[Claim, subprocess.Popen[bytes]] = {}
        self._stopping = threading.Event()
        self._reason = ""
        self._thread = threading.Thread(target=self._work, name="jobs", daemon=True)

    def start(self) -> None:
        """Begin to look for jobs."""
        self._thread.start()

    def stop(self) -> None:
        """End the workers; their jobs go on when a runner is there again."""
        self._stopping.set()
        self._thread.join()
        for process in self._running.values():
            process.terminate()
        for process in self._running.values():
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            _close(process)
        for claim in self._running:
            # without the database, whoever runs jobs next finds that the worker is gone
            with suppress(SQLAlchemyError):
                self._store.give_back(claim)
        self._running.clear()

    def _work(self) -> None:
        looks = 0
        while not self._stopping.is_set():
            try:
                if looks % SWEEP_LOOKS == 0:
                    self._sweep()
                self._reap()
                self._take()
            except (SQLAlchemyError, OSError) as error:
                # the database may be away for a while, or the disk full
                self._complain(error)
            else:
                self._complain(None)
            looks += 1
            self._stopping.wait(LOOK_SECONDS)

    def _complain(self, error: SQLAlchemyError | OSError | None) -> None:
        """Log why jobs cannot be run, once for each reason, and when they can again."""
        reason = trouble_of(error).text if isinstance(error, SQLAlchemyError) else str(error or "")
        if reason == self._reason:
            return
        self._reason = reason
        if error is None:
            log.info("jobs are run again")
        else:
            log.error("jobs cannot be run", extra=facts(reason=reason, why=details(error)))

    def _sweep(self) -> None:
        """Put jobs of dead workers back, and throw away the folders of jobs that have ended."""
        for claim in self._store.dead(self._identity.is_gone):
            if claim not in self._running and self._store.crash(claim, "the worker died"):
                log.warning("a worker died", extra=facts(job=claim.job))
        for folder in self._place.folder.glob("*"):
            self._tidy(folder)

    def _reap(self) -> None:
        """Take leave of workers that have ended."""
        for claim, process in list(self._running.items()):
            if process.poll() is None:
                continue
            del self._running[claim]
            _close(process)
            # of no effect if the worker has said itself what came of it
            if process.returncode == LOST:
                self._store.give_back(claim)
            else:
                self._store.crash(claim, f"the worker ended with code {process.returncode}; see {LOG}")
            job = self._store.get(claim.job)
            log.info("a worker ended", extra=facts(job=job.id, state=job.state, text=job.message))
            self._tidy(self._place.folder / job.id)

    def _take(self) -> None:
        """Start workers for waiting jobs."""
        while len(self._running) < self._workers and (job := self._store.claim(str(self._identity))):
            claim = Claim(job=job.id, attempt=job.attempt)
            try:
                self._running[claim] = self._start(job)
            except OSError as error:
                self._store.crash(claim, f"the worker did not start: {error}")
                raise
            log.info("a worker started", extra=facts(job=job.id, attempt=job.attempt))

    def _start(self, job: Job) -> "subprocess.Popen[bytes]":
        folder = self._place.folder / job.id
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / LOG).open("ab") as log_file:
            process = subprocess.Popen(
                [sys.executable, "-m", "dekag.serving.cloud.worker"],
                stdin=subprocess.PIPE,
                stdout=log_file,
                stderr=log_file,
                # Ctrl+C is for the runner, which then ends its workers
                start_new_session=True,
            )
        assert process.stdin is not None
        process.stdin.write(self._place.order(job).to_line())
        process.stdin.flush()
        return process

    def _tidy(self, folder: Path) -> None:
        """Throw away what a job left that has ended; of a failed one the log stays."""
        try:
            job = self._store.get(folder.name)
        except UnknownJobError:
            return
        if job.state not in FINAL:
            return
        if job.state != State.FAILED:
            shutil.rmtree(folder, ignore_errors=True)
            return
        for path in folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            elif path.name != LOG:
                path.unlink()


@dataclass(frozen=True, kw_only=True)
class Identity:
    """Host, process and a word of its own, as every process in a container may have number 1."""

    host: str
    process: int
    word: str

    @staticmethod
    def of_this_process() -> "Identity":
        """A new one."""
        return Identity(host=socket.gethostname(), process=os.getpid(), word=uuid.uuid4().hex[:8])

    def __str__(self) -> str:
        return f"{self.host}/{self.process}/{self.word}"

    def is_gone(self, worker: str) -> bool:
        """Whether another's process is known to be no more; of other hosts nothing is known."""
        host, _, process = worker.rpartition("/")[0].rpartition("/")
        if host != self.host or worker == str(self) or not re.fullmatch("[0-9]{1,9}", process):
            return False
        if int(process) == self.process:
            return True
        try:
            os.kill(int(process), 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            return False
        return False


def _close(process: "subprocess.Popen[bytes]") -> None:
    if process.stdin is not None:
        process.stdin.close()
