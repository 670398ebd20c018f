"""Where a sweep is computed: here, in processes of this machine, on a Ray cluster, or as Slurm jobs.

Every engine calls the same work, `work(item) -> name`, which leaves its result in a file that all of them see and
uses one thread of torch, so that the bytes do not depend on the engine. Items are cells, and chunks to draw.
"""

import importlib
import multiprocessing
import os
import pickle
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch

from dekag.choices import ENGINES
from dekag.types import InputError

Work = Callable[[Any], str]
"""Computes an item, writes its result, and returns its name."""
PRELOADED = ("dekag.tasks.sweep.run",)
"""What a server of processes imports once, where the system has one; each of its workers begins as a copy of it."""


@runtime_checkable
class Engine(Protocol):
    """Yields the name of every item as it is finished, in any order; the first error ends the run."""

    def __call__(self, work: Work, items: Sequence[Any]) -> Iterator[str]:
        """Compute the items, and yield the name of each."""
        ...


@dataclass(frozen=True, kw_only=True)
class Inline:
    """One after the other in this process."""

    def __call__(self, work: Work, items: Sequence[Any]) -> Iterator[str]:
        """Compute the items in this process."""
        yield from map(work, items)


@dataclass(frozen=True, kw_only=True)
class Processes:
    """Computes the items in `workers` processes of this machine, which end with this one."""

    workers: int

    def __call__(self, work: Work, items: Sequence[Any]) -> Iterator[str]:
        """Compute the items in processes of this machine."""
        count = min(self.workers, len(items))
        if not count:
            return
        context = multiprocessing.get_context(_start_method())
        if isinstance(context, ForkServerContext):
            context.set_forkserver_preload(list(PRELOADED))
        with ProcessPoolExecutor(count, mp_context=context, initializer=_end_with_parent) as pool:
            try:
                for done in as_completed(
                    [pool.submit(_unpacked, work, pickle.dumps(item)) for item in items]
                ):
                    yield done.result()
            except BrokenProcessPool as error:
                raise ChildProcessError(
                    "a worker process was ended from outside; start again to go on from the finished cells"
                ) from error
            finally:
                pool.shutdown(cancel_futures=True)


@dataclass(frozen=True, kw_only=True)
class RayCluster:
    """As tasks of one CPU on a Ray cluster that is already there.

    address: of the cluster, as `ray start --head` prints it; "auto" is the one of this machine.
    workers: tasks in flight.
    """

    workers: int
    address: str = "auto"

    def __call__(self, work: Work, items: Sequence[Any]) -> Iterator[str]:
        """Compute the items as tasks of a Ray cluster."""
        ray = _extra("ray")
        if not ray.is_initialized():
            try:
                ray.init(address=self.address, log_to_driver=False)
            except (ConnectionError, ValueError) as error:
                raise InputError(
                    f"there is no Ray at {self.address!r}: ray start --head starts one"
                ) from error
        task = ray.remote(num_cpus=1)(_caught)
        shared = ray.put(work)
        waiting = list(reversed(items))
        running: list[Any] = []
        while waiting or running:
            while waiting and len(running) < self.workers:
                running.append(task.remote(shared, waiting.pop()))
            ready, running = ray.wait(running)
            yield _unwrap(ray.get(ready[0]))


@dataclass(frozen=True, kw_only=True)
class Slurm:
    """As an array of `workers` Slurm jobs of one CPU; jobs of `cluster="local"` are processes of this machine.

    folder: for the jobs' scripts and logs, on a file system that the nodes share. minutes: limit of a job.
    partition: where they run; None is the cluster's default.
    """

    workers: int
    folder: Path
    minutes: int = 240
    partition: str | None = None
    cluster: str | None = None

    def __call__(self, work: Work, items: Sequence[Any]) -> Iterator[str]:
        """Compute the items as jobs of Slurm."""
        submitit = _extra("submitit")
        shares = [items[start :: self.workers] for start in range(min(self.workers, len(items)))]
        if not shares:
            return
        try:
            executor = submitit.AutoExecutor(folder=self.folder, cluster=self.cluster or "slurm")
        except RuntimeError as error:
            raise InputError("there is no Slurm here: sbatch was not found") from error
        executor.update_parameters(name="dekag", timeout_min=self.minutes, cpus_per_task=1)
        if self.partition is not None:
            executor.update_parameters(slurm_partition=self.partition)
        jobs = executor.map_array(_all_caught, [work] * len(shares), shares)
        for job in submitit.helpers.as_completed(jobs):
            try:
                outcomes = job.result()
            except submitit.core.utils.UncompletedJobError as error:
                raise ChildProcessError(f"job {job.job_id} did not finish, see {job.paths.stderr}") from error
            for outcome in outcomes:
                yield _unwrap(outcome)


def engine_named(
    name: str, *, workers: int, folder: Path, minutes: int, partition: str | None, address: str
) -> Engine:
    """The engine of that name; raises InputError, listing the known ones, if there is none."""
    engines: dict[str, Engine] = {
        "inline": Inline(),
        "processes": Processes(workers=workers),
        "ray": RayCluster(workers=workers, address=address),
        "slurm": Slurm(workers=workers, folder=folder, minutes=minutes, partition=partition),
    }
    ENGINES.require(name)
    return engines[name]


def _caught(work: Work, item: Any) -> str | InputError:
    """The name, or wrong input as a value: both libraries would bury it in a trace of the other process."""
    try:
        return work(item)
    except InputError as error:
        return InputError(str(error))


def _all_caught(work: Work, items: Sequence[Any]) -> list[str | InputError]:
    return [_caught(work, item) for item in items]


def _unwrap(outcome: str | InputError) -> str:
    if isinstance(outcome, InputError):
        raise outcome
    return outcome


def _unpacked(work: Work, item: bytes) -> str:
    """For a pool, whose own pickling would put each of an item's tensors into shared memory."""
    return work(pickle.loads(item))


def usable_cores() -> int:
    """Cores that this process may use."""
    allowed = getattr(os, "sched_getaffinity", None)
    return len(allowed(0)) if allowed else os.cpu_count() or 1


def _start_method() -> str:
    return "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread of torch within: sums of several threads come out in other bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _end_with_parent() -> None:
    """End this process when its parent does, however that ends: a pool's workers would wait for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch(sentinel: int) -> None:
        wait([sentinel])
        os._exit(1)

    threading.Thread(target=watch, args=(parent.sentinel,), daemon=True).start()


def _extra(name: str) -> Any:
    """A library of the extra `sweep`."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise InputError(f"this engine needs {name}: pip install 'dekag[sweep]'") from error
