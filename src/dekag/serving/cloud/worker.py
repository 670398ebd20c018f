"""A process that does one job and ends: `python -m dekag.serving.cloud.worker`, with its order on standard input.

The runner starts it. It says every second that it lives, and ends at once when its job is no longer its own, or
when standard input ends, which is when the runner has died.
"""

import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from itertools import accumulate
from pathlib import Path

import diffusers
import transformers
from pydantic import ValidationError
from sqlalchemy.exc import SQLAlchemyError

from dekag.data.endpoint import ImageEndpoint
from dekag.data.orders import Account
from dekag.errors import InputError
from dekag.registry.repository import Repository
from dekag.serving.canaries import canary_of
from dekag.serving.cloud.database import open_database
from dekag.serving.cloud.spec import JobSpec
from dekag.serving.cloud.store import PUBLISHING, Claim, JobStore, Reached
from dekag.serving.cloud.trouble import details, trouble_of
from dekag.tasks.align_generation import align_generation, check_generation
from dekag.tasks.material import material
from dekag.tasks.purchases import check_budget
from dekag.training.loop import Progress
from dekag.training.processes import device_of
from dekag.training.run import Run
from dekag.wire.files import write_bytes
from dekag.wire.lock import locked
from dekag.world import load_world

BEAT_SECONDS = 1.0
TELL_SECONDS = 1.0
"""Between two events of progress within a stage."""
PROMPTS, BUNDLE = "prompts.txt", "bundle"
"""In the job's folder."""
CANARY_PROMPTS = 4
"""The shortest of a job, for an edge's test of itself."""
CANARY_LETTERS = 2000
"""Longer prompts are no canary's."""
LONGEST_MESSAGE = 1000
TAKEN_AWAY, ORPHANED, LOST = 3, 4, 5
"""Exit codes."""


@dataclass(frozen=True, kw_only=True)
class Order:
    """What a worker must know. It may hold a password, so it travels through a pipe and not as arguments."""

    database: str
    registry: str
    keys: str
    folder: str
    """The job's own; what is in it outlives the worker, and the next one goes on there."""
    world: str
    device: str
    job: str
    attempt: int
    budget: int | None = None
    """Most pictures that the job may buy of an endpoint."""

    def to_line(self) -> bytes:
        """The order as it travels."""
        return json.dumps(asdict(self)).encode() + b"\n"

    @property
    def claim(self) -> Claim:
        """The worker's right to the job."""
        return Claim(job=self.job, attempt=self.attempt)


class Reporter:
    """Tells the store how far the job is; ends the process when the job is no longer its own."""

    def __init__(self, store: JobStore, claim: Claim, stages: Mapping[str, int]) -> None:
        self._store, self._claim = store, claim
        self._before = dict(zip(stages, accumulate(stages.values(), initial=0), strict=False))
        self._steps = sum(stages.values())
        self._step = store.get(claim.job).step
        self._stage, self._told = "", 0.0

    def on_stage(self, name: str) -> None:
        """A stage without steps."""
        self._tell(name)

    def on_step(self, stage: str, progress: Progress) -> None:
        """A step of the training; of those of one stage one a second is told, and the last."""
        self._step = self._before[stage] + progress.step
        early = time.monotonic() - self._told < TELL_SECONDS
        if early and stage == self._stage and progress.step < progress.steps:
            return
        self._tell(stage, progress.loss)

    def publishing(self) -> None:
        """The last stage. It must be in the store before the update is in the registry."""
        self._require(self._store.reach(self._claim, self._reached(PUBLISHING, self._steps)))

    def _tell(self, stage: str, loss: float | None = None) -> None:
        self._stage, self._told = stage, time.monotonic()
        try:
            held = self._store.reach(self._claim, self._reached(stage, self._step, loss))
        except SQLAlchemyError as error:
            # the database may be away for a while, and the training need not wait for it
            print(f"step {self._step} was not told: {trouble_of(error).text}", file=sys.stderr)
        else:
            self._require(held)

    def _reached(self, stage: str, step: int, loss: float | None = None) -> Reached:
        return Reached(stage=stage, step=step, steps=self._steps, loss=loss)

    @staticmethod
    def _require(held: bool) -> None:
        if not held:
            os._exit(TAKEN_AWAY)


def main() -> int:
    """Do the job; exit code 0 if its end is in the store, whatever end it is."""
    order = Order(**json.loads(sys.stdin.readline()))
    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()
    engine = open_database(order.database)
    store, claim = JobStore(engine), order.claim
    threading.Thread(target=_end_with_runner, daemon=True).start()
    threading.Thread(target=_beat, args=(store, claim), daemon=True).start()
    try:
        _work(order, store)
    except SQLAlchemyError as error:
        # the runner finds that this worker has ended, and another goes on when the database is there again
        text = f"the job stops here: {trouble_of(error).text} ({details(error)})"
        print(one_line(text), file=sys.stderr)
        return LOST
    finally:
        engine.dispose()
    return 0


def _work(order: Order, store: JobStore) -> None:
    """Do the job and put its end into the store. Raises SQLAlchemyError if the database does not let it."""
    claim = order.claim
    try:
        bundle = run(order, store)
    except SQLAlchemyError:
        raise
    except InputError as error:
        store.fail(claim, one_line(str(error)))
    except Exception as error:  # anything else may go better next time
        traceback.print_exc()
        store.crash(claim, one_line(f"{type(error).__name__}: {error}"))
    else:
        store.finish(claim, bundle)


def one_line(text: str) -> str:
    """A message as a job keeps it."""
    return " ".join(text.split())[:LONGEST_MESSAGE]


def run(order: Order, store: JobStore) -> str:
    """Train, publish; the id of the bundle."""
    folder = Path(order.folder)
    # a worker of an earlier attempt may take a moment to notice that it is none any more
    with locked(folder / "lock"):
        try:
            spec = JobSpec.model_validate(store.get(order.job).spec)
        except ValidationError as error:
            raise InputError("what was asked for is damaged in the database; submit it again") from error
        reporter = Reporter(store, order.claim, spec.stages())
        if not (folder / BUNDLE).exists():
            align(order, spec, reporter)
        reporter.publishing()
        return publish(order, spec)


def align(order: Order, spec: JobSpec, reporter: Reporter) -> None:
    """Train the update into the job's folder; what an earlier attempt left there is not done again."""
    world, folder = load_world(order.world), Path(order.folder)
    if isinstance(world.cloud_model, ImageEndpoint):
        cloud = replace(world.cloud_model, account=Account(budget=order.budget))
        world = replace(world, cloud_model=cloud)
    prompts = folder / PROMPTS
    if spec.prompts is not None:
        write_bytes(prompts, "".join(f"{prompt}\n" for prompt in spec.prompts).encode())
    run_ = Run(
        device=device_of(order.device),
        resume=folder / "state",
        on_stage=reporter.on_stage,
        on_step=reporter.on_step,
    )
    check_generation(world, spec.task())
    source = spec.source(prompts)
    check_budget(world, source)
    data = material(world, source, run_)
    align_generation(world, data, spec.task(), folder / BUNDLE, run_)


def publish(order: Order, spec: JobSpec) -> str:
    """Put the update into the registry, with a canary of some of its prompts; the id of the bundle."""
    world, folder = load_world(order.world), Path(order.folder)
    prompts = sorted(set(spec.source(folder / PROMPTS).prompts(world)), key=len)[:CANARY_PROMPTS]
    canary = None
    if len(prompts[-1]) <= CANARY_LETTERS:
        canary = canary_of(world, folder / BUNDLE, prompts, device=device_of(order.device))
    repository = Repository(order.registry, Path(order.keys))
    return repository.publish(folder / BUNDLE, channel=spec.channel, name=spec.name, canary=canary)


def _end_with_runner() -> None:
    sys.stdin.read()
    os._exit(ORPHANED)


def _beat(store: JobStore, claim: Claim) -> None:
    held = True
    while held:
        time.sleep(BEAT_SECONDS)
        with suppress(SQLAlchemyError):  # the database may be away for a while
            held = store.beat(claim)
    os._exit(TAKEN_AWAY)


if __name__ == "__main__":
    sys.exit(main())
