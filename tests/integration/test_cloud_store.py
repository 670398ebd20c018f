"""The cloud's database: SQLite and PostgreSQL keep the same promises, under several workers and through migrations."""

import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from itertools import count
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from postgresql import INSTALLED, postgresql
from sqlalchemy import Engine, inspect, text

from dekag.serving.cloud.database import back_up, check_schema, migrate, open_database
from dekag.serving.cloud.ledger import UNNAMED, Ledger
from dekag.serving.cloud.models import Base, State
from dekag.serving.cloud.store import (
    DEAD_SECONDS,
    MOST_FAILURES,
    PUBLISHING,
    Claim,
    JobConflictError,
    JobStore,
    QueueFullError,
    Reached,
    UnknownJobError,
)
from dekag.serving.traffic import TrafficReport, TrafficRow
from dekag.types import InputError

SPEC = {"name": "a", "prompts": ["a red apple"]}
MOST = 10_000
FRUIT, CAT = "a" * 64, "b" * 64
NewAddress = Callable[[], str]


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def addresses(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[NewAddress]:
    """Makes addresses of databases that are empty."""
    numbers = count()
    if request.param == "sqlite":
        folder = tmp_path_factory.mktemp("sqlite")
        yield lambda: f"sqlite:///{folder}/{next(numbers)}.db"
        return
    if not INSTALLED:
        pytest.skip("PostgreSQL is not installed: apt install postgresql")
    with postgresql() as address:

        def new() -> str:
            name = f"cloud{next(numbers)}"
            engine = open_database(address.format(database="postgres"))
            with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                connection.execute(text(f"CREATE DATABASE {name}"))
            engine.dispose()
            return address.format(database=name)

        yield new


@contextmanager
def opened(address: str) -> Iterator[Engine]:
    engine = open_database(address)
    try:
        yield engine
    finally:
        engine.dispose()


@pytest.fixture
def address(addresses: NewAddress) -> str:
    return addresses()


@pytest.fixture
def engine(address: str) -> Iterator[Engine]:
    """A database with its tables."""
    with opened(address) as engine:
        migrate(engine)
        yield engine


class Clock:
    """Time that passes when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(engine: Engine, clock: Clock) -> JobStore:
    return JobStore(engine, now=clock)


def claimed(store: JobStore, worker: str = "w/1") -> Claim:
    job = store.claim(worker)
    assert job is not None
    return Claim(job=job.id, attempt=job.attempt)


def kinds(store: JobStore, job_id: str) -> list[str]:
    return [event.kind for event in store.events(job_id)]


def test_a_job_goes_its_way(store: JobStore, clock: Clock) -> None:
    """Submitted, claimed, watched, done: the job and its events say the same."""
    job = store.submit("a", SPEC, most=MOST)
    assert (job.state, job.attempt, job.created) == (State.QUEUED, 0, 1000.0)
    clock.now = 1001.0
    claim = claimed(store)
    assert store.claim("w/2") is None
    assert store.reach(claim, Reached(stage="joint", step=3, steps=8, loss=0.25))
    assert store.reach(claim, Reached(stage="joint", step=4, steps=8, loss=0.2), tell=False)
    clock.now = 1002.0
    assert store.finish(claim, FRUIT)
    done = store.get(job.id)
    assert (done.state, done.step, done.steps, done.loss) == (State.DONE, 4, 8, 0.2)
    assert (done.bundle, done.worker, done.started, done.finished) == (FRUIT, None, 1001.0, 1002.0)
    assert done.spec == SPEC
    assert kinds(store, job.id) == ["queued", "running", "progress", "done"]
    events = store.events(job.id)
    assert events[2].data == {"stage": "joint", "step": 3, "steps": 8, "loss": 0.25}
    assert [event.kind for event in store.events(job.id, after=events[1].number)] == ["progress", "done"]


def test_jobs_are_claimed_in_the_order_they_came(store: JobStore) -> None:
    jobs = [store.submit("a", SPEC, most=MOST).id for _ in range(3)]
    assert [claimed(store).job for _ in jobs] == jobs


def test_eight_claimers_never_share_a_job(engine: Engine) -> None:
    """200 jobs, 8 threads: each job is claimed once, none is forgotten."""
    store = JobStore(engine)
    jobs = {store.submit("a", SPEC, most=MOST).id for _ in range(200)}

    def take(number: int) -> list[str]:
        taken = []
        while (job := store.claim(f"host/{number}")) is not None:
            taken.append(job.id)
        return taken

    with ThreadPoolExecutor(8) as threads:
        taken = [job for jobs in threads.map(take, range(8)) for job in jobs]
    print(f"{engine.dialect.name}: {len(taken)} claims of {len(jobs)} jobs by 8 threads")
    assert len(taken) == len(jobs)
    assert set(taken) == jobs


def test_what_an_earlier_claim_writes_is_refused(store: JobStore) -> None:
    """A worker that was thought dead cannot change the job of its successor."""
    store.submit("a", SPEC, most=MOST)
    old = claimed(store)
    assert store.crash(old, "gone")
    new = claimed(store)
    assert new.attempt == 2
    assert not store.beat(old)
    assert not store.reach(old, Reached(stage="joint", step=1, steps=2))
    assert not store.finish(old, CAT)
    assert not store.fail(old, "late")
    assert not store.crash(old, "late")
    assert not store.give_back(old)
    assert store.finish(new, FRUIT)
    assert store.get(new.job).bundle == FRUIT


def test_a_dead_workers_job_is_found(store: JobStore, clock: Clock) -> None:
    """By its silence, or by what is known of its process."""
    for _ in range(2):
        store.submit("a", SPEC, most=MOST)
    silent, lively = claimed(store, "a/1"), claimed(store, "b/2")
    assert store.dead(lambda worker: False) == []
    assert store.dead(lambda worker: worker == "b/2") == [lively]
    clock.now += DEAD_SECONDS + 1
    assert store.beat(lively)
    assert store.dead(lambda worker: False) == [silent]


def test_a_job_that_keeps_breaking_its_worker_fails(store: JobStore) -> None:
    job = store.submit("a", SPEC, most=MOST)
    for number in range(MOST_FAILURES):
        assert store.get(job.id).state == State.QUEUED
        assert store.crash(claimed(store), f"broken {number}")
    failed = store.get(job.id)
    assert (failed.state, failed.message) == (State.FAILED, f"broken {MOST_FAILURES - 1}")
    assert store.claim("w/1") is None
    assert kinds(store, job.id) == ["queued", "running"] * MOST_FAILURES + ["failed"]


def test_a_job_that_gets_further_each_time_is_not_given_up(store: JobStore) -> None:
    """Killed again and again, as machines are, it goes on; stuck at one step, it fails."""
    job = store.submit("a", SPEC, most=MOST)
    for step in range(1, 3 * MOST_FAILURES):
        claim = claimed(store)
        store.reach(claim, Reached(stage="joint", step=step, steps=100))
        assert store.crash(claim, "killed")
        assert store.get(job.id).failures == 1
    for _ in range(MOST_FAILURES - 1):
        assert store.get(job.id).state == State.QUEUED
        store.crash(claimed(store), "killed")
    assert store.get(job.id).state == State.FAILED


def test_a_worker_that_is_stopped_does_not_count_as_broken(store: JobStore) -> None:
    job = store.submit("a", SPEC, most=MOST)
    for _ in range(MOST_FAILURES + 1):
        assert store.give_back(claimed(store))
    assert (store.get(job.id).state, store.get(job.id).failures) == (State.QUEUED, 0)


def test_jobs_are_cancelled_until_they_are_published(store: JobStore) -> None:
    waiting, running, publishing = (store.submit("a", SPEC, most=MOST).id for _ in range(3))
    claims = {claim.job: claim for claim in (claimed(store), claimed(store), claimed(store))}
    store.give_back(claims[waiting])
    assert store.reach(claims[publishing], Reached(stage=PUBLISHING, step=8, steps=8))
    assert store.cancel(waiting).state == State.CANCELLED
    assert store.cancel(running).state == State.CANCELLED
    assert not store.beat(claims[running])
    with pytest.raises(JobConflictError, match="is being published"):
        store.cancel(publishing)
    with pytest.raises(JobConflictError, match="is cancelled already"):
        store.cancel(running)
    with pytest.raises(UnknownJobError):
        store.cancel("0" * 32)
    assert store.claim("w/1") is None


def test_no_more_jobs_wait_than_may(store: JobStore) -> None:
    store.submit("a", SPEC, most=1)
    with pytest.raises(QueueFullError):
        store.submit("a", SPEC, most=1)
    claimed(store)
    store.submit("a", SPEC, most=1)
    assert len(store.page(limit=10)) == 2


def test_pages_are_of_the_newest_first_and_hold_every_job(store: JobStore) -> None:
    jobs = [store.submit("a", SPEC, most=MOST).id for _ in range(5)]
    claimed(store)
    seen: list[str] = []
    while page := store.page(limit=2, after=seen[-1] if seen else None):
        seen += [job.id for job in page]
    assert seen == jobs[::-1]
    assert [job.id for job in store.page(limit=9, state=State.RUNNING)] == jobs[:1]
    assert {state: number for state, number in store.counts().items() if number} == {
        State.QUEUED: 4,
        State.RUNNING: 1,
    }
    with pytest.raises(UnknownJobError):
        store.page(limit=1, after="nothing")


def report(name: str, *rows: TrafficRow, edge: str = "edge-1", ended: int = 6000) -> TrafficReport:
    return TrafficReport(report=name, edge=edge, ended=ended, active={"generation": FRUIT}, rows=list(rows))


def test_a_report_counts_once(engine: Engine, clock: Clock) -> None:
    """Sent again, as after a lost answer, it changes nothing; rows of one bundle are one."""
    ledger = Ledger(engine, now=clock)
    fruit = TrafficRow(bundle=FRUIT, images=2, prompt_bytes=30, uses=512, png_bytes=9000)
    plain = TrafficRow(images=1, prompt_bytes=10, png_bytes=4000)
    assert ledger.report(report("r1", fruit, fruit, plain))
    clock.now += 60
    assert not ledger.report(report("r1", fruit, fruit, plain))
    assert ledger.report(report("r1", plain, edge="edge-2", ended=6060))
    entries = {(entry.edge, entry.bundle): entry.amounts for entry in ledger.entries()}
    assert entries[("edge-1", FRUIT)] == {
        "images": 4,
        "prompt_bytes": 60,
        "uses": 1024,
        "png_bytes": 18000,
        "pull_bytes": 0,
    }
    assert entries[("edge-1", None)]["images"] == 1
    assert len(entries) == 3
    assert [entry.edge for entry in ledger.entries(since=6060)] == ["edge-2"]
    assert {entry.edge for entry in ledger.entries(edge="edge-1")} == {"edge-1"}
    seen = {edge.name: (edge.last_seen, edge.active) for edge in ledger.edges()}
    assert seen["edge-1"] == (1060.0, {"generation": FRUIT})


def test_the_same_report_from_eight_threads_counts_once(engine: Engine) -> None:
    ledger = Ledger(engine)
    row = TrafficRow(bundle=FRUIT, images=1)
    with ThreadPoolExecutor(8) as threads:
        new = list(threads.map(lambda n: ledger.report(report(f"r{n % 20}", row)), range(200)))
    print(f"{engine.dialect.name}: 200 posts of 20 reports by 8 threads, {sum(new)} counted")
    assert sum(new) == 20
    assert [entry.amounts["images"] for entry in ledger.entries()] == [20]


def test_pulls_are_counted_for_the_edges_that_are_known(engine: Engine) -> None:
    """Anyone may fetch the registry under any name; such names leave no rows."""
    ledger = Ledger(engine)
    ledger.report(report("r1"))
    for _ in range(2):
        ledger.pulled({"edge-1": 100, "stranger": 7, "another": 1})
    pulled = {entry.edge: entry.amounts["pull_bytes"] for entry in ledger.entries()}
    assert pulled == {"edge-1": 200, UNNAMED: 16}
    assert {edge.name: edge.active for edge in ledger.edges()}["edge-1"] == {"generation": FRUIT}


def test_sums_beyond_32_bits_are_kept(engine: Engine) -> None:
    ledger = Ledger(engine)
    ledger.report(report("r1", TrafficRow(png_bytes=2**52)))
    ledger.report(report("r2", TrafficRow(png_bytes=2**52)))
    assert ledger.entries()[0].amounts["png_bytes"] == 2**53


def test_migrations_make_what_the_models_say(engine: Engine) -> None:
    with engine.connect() as connection:
        context = MigrationContext.configure(connection)
        assert compare_metadata(context, Base.metadata) == []
    check_schema(engine)


def test_a_service_refuses_another_schema(address: str) -> None:
    """No tables, an old revision and one of the future: each is one line that says what to do."""
    with opened(address) as engine:
        with pytest.raises(InputError, match=r"has no tables .* migrate it first"):
            check_schema(engine)
        migrate(engine, "0001")
        with pytest.raises(InputError, match=r"at revision 0001 .* migrate it first"):
            check_schema(engine)
        migrate(engine)
        check_schema(engine)
        with engine.begin() as connection:
            connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
        with pytest.raises(InputError, match="of a newer dekag; upgrade"):
            check_schema(engine)


def test_a_migration_from_the_last_revision_keeps_the_jobs(address: str) -> None:
    with opened(address) as engine:
        migrate(engine, "0001")
        store = JobStore(engine)
        job = store.submit("a", SPEC, most=MOST)
        assert not inspect(engine).has_table("traffic")
        migrate(engine)
        assert store.get(job.id).spec == SPEC
        assert Ledger(engine).report(report("r1"))


def test_two_migrations_at_once_are_one(address: str) -> None:
    """Processes, as two hosts that are upgraded together would be: both succeed, the schema is whole."""
    code = (
        "import sys\n"
        "from dekag.serving.cloud.database import migrate, open_database\n"
        "engine = open_database(sys.argv[1])\n"
        "input()\n"
        "migrate(engine)\n"
    )
    workers = [
        subprocess.Popen([sys.executable, "-c", code, address], stdin=subprocess.PIPE, env=os.environ.copy())
        for _ in range(2)
    ]
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write(b"\n")
        worker.stdin.close()
    assert [worker.wait(60) for worker in workers] == [0, 0]
    with opened(address) as engine:
        check_schema(engine)


def test_a_database_that_cannot_be_reached_is_one_line(tmp_path: Path) -> None:
    with (
        opened(f"postgresql://postgres@/cloud?host={tmp_path}") as engine,
        pytest.raises(InputError) as caught,
    ):
        check_schema(engine)
    assert "cannot be reached" in str(caught.value)


@pytest.mark.parametrize(
    ("address", "text"),
    [
        ("cloud.db", "must be sqlite:///FILE or postgresql://"),
        ("mysql://root:secret@host/cloud", "SQLite or PostgreSQL, got mysql"),
        ("sqlite://", "must be a file"),
        ("sqlite:///:memory:", "must be a file"),
    ],
)
def test_other_databases_are_refused(address: str, text: str) -> None:
    with pytest.raises(InputError, match=text) as caught:
        open_database(address)
    assert "secret" not in str(caught.value)


def test_a_backup_of_a_database_in_use_is_whole(tmp_path: Path) -> None:
    """Taken while a writer writes, it opens, passes SQLite's own check and holds what was committed before."""
    address = f"sqlite:///{tmp_path}/cloud.db"
    with opened(address) as engine:
        migrate(engine)
        store = JobStore(engine)
        before = {store.submit("a", SPEC, most=MOST).id for _ in range(20)}
        with ThreadPoolExecutor(1) as thread:
            written = thread.submit(lambda: [store.submit("a", SPEC, most=MOST).id for _ in range(50)])
            back_up(address, tmp_path / "backup" / "copy.db")
            written.result()
    copy = tmp_path / "backup" / "copy.db"
    with closing(sqlite3.connect(copy)) as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    with opened(f"sqlite:///{copy}") as engine:
        check_schema(engine)
        assert before <= {job.id for job in JobStore(engine).page(limit=100)}
    assert [path.name for path in (tmp_path / "backup").iterdir() if path.name.endswith(".part")] == []


def test_a_backup_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no database"):
        back_up(f"sqlite:///{tmp_path}/cloud.db", tmp_path / "copy.db")
    with pytest.raises(InputError, match="pg_dump"):
        back_up("postgresql://host/cloud", tmp_path / "copy.db")
    assert list(tmp_path.iterdir()) == []
