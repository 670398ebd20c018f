"""A cloud whose database is damaged, locked, full, read-only or gone: not ready, one line, and ready again after it."""

import logging
import random
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from damaged_files import SPOILS, garbage, random_damage
from sqlalchemy import create_engine, event
from sqlalchemy.exc import SQLAlchemyError
from starlette.testclient import TestClient
from waiting import wait_for

from dekag.registry.repository import Repository
from dekag.serving.cloud import trouble
from dekag.serving.cloud.app import create
from dekag.serving.cloud.database import migrate, open_database, require_sound
from dekag.serving.cloud.health import Health
from dekag.serving.cloud.ledger import Ledger
from dekag.serving.cloud.runner import Runner, Workplace
from dekag.serving.cloud.settings import CloudSettings
from dekag.serving.cloud.store import JobStore
from dekag.serving.cloud.trouble import DamagedRowError, Trouble, trouble_of
from dekag.serving.cloud.worker import LOST, Order
from dekag.serving.traffic import TrafficReport, TrafficRow
from dekag.types import InputError

HOST = "http://127.0.0.1"
SPEC = {"name": "fruit", "prompts": ["a red apple on a blue background"]}
ROUTES = ("/v1/jobs", "/v1/ledger", "/readyz")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a cloud with some jobs and some traffic, for copies."""
    settings = CloudSettings(folder=tmp_path_factory.mktemp("cloud"))
    Repository.init(settings.registry_address, settings.keys_folder)
    engine = open_database(settings.database_address)
    migrate(engine)
    store, ledger = JobStore(engine), Ledger(engine)
    for number in range(12):
        store.submit(f"job{number}", SPEC | {"note": "x" * 200}, most=99)
        rows = [TrafficRow(bundle=f"{number:x}" * 64, images=number)]
        ledger.report(TrafficReport(report=f"r{number}", edge="e", ended=60 * number, active={}, rows=rows))
    with engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
    engine.dispose()
    return settings.folder


@pytest.fixture
def settings(prepared: Path, tmp_path: Path) -> CloudSettings:
    shutil.copytree(prepared, tmp_path / "cloud")
    return CloudSettings(folder=tmp_path / "cloud", images=False, busy_seconds=0.05, job_workers=0)


@pytest.fixture
def file(settings: CloudSettings) -> Path:
    return settings.folder / "cloud.db"


@contextmanager
def served(settings: CloudSettings) -> Iterator[TestClient]:
    """A cloud that looks at its database often."""
    app = create(settings, look_seconds=0.02)
    with TestClient(app, base_url=HOST, raise_server_exceptions=False) as client:
        yield client


def message(client: TestClient, path: str = "/readyz") -> str:
    """Of an answer that is an error; empty of one that is none."""
    answer = client.get(path)
    return "" if answer.status_code == 200 else str(answer.json()["error"]["message"])


def check_log(caplog: pytest.LogCaptureFixture) -> None:
    """No traceback, and lines that are lines."""
    for record in caplog.records:
        assert record.exc_info is None, record
        assert "\n" not in record.getMessage()


@pytest.mark.parametrize("spoil", SPOILS)
def test_a_damaged_file_does_not_start(spoil: object, settings: CloudSettings, file: Path) -> None:
    """One line with the file and what is right."""
    assert callable(spoil)
    spoil(file)
    with pytest.raises(InputError, match=r"cloud\.db is damaged .*; restore a backup of it") as caught:
        create(settings)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("spoil", SPOILS)
def test_a_file_that_is_damaged_while_it_serves(
    spoil: object, settings: CloudSettings, file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Not ready without a restart, though the pages in memory are good; and ready once a backup is in its place."""
    assert callable(spoil)
    good = file.with_name("good.db")
    shutil.copy(file, good)
    with served(settings) as client:
        assert message(client) == ""
        spoil(file)
        wait_for(lambda: "damaged" in message(client))
        assert message(client).isprintable()
        assert str(file.parent) not in message(client)
        for path in ROUTES:
            assert client.get(path).status_code in (200, 503)
        for ending in ("", "-wal", "-shm"):
            file.with_name(f"cloud.db{ending}").unlink(missing_ok=True)
        good.rename(file)
        wait_for(lambda: message(client) == "")
        assert client.get("/v1/jobs").status_code == 200
        assert client.post("/v1/jobs", json=SPEC).status_code == 201
    check_log(caplog)


def test_a_file_that_is_gone(settings: CloudSettings, file: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It is not made anew, and what is put there is taken."""
    with served(settings) as client:
        kept = file.with_name("kept.db")
        file.rename(kept)
        wait_for(lambda: message(client) != "")
        assert "cannot be opened" in message(client) or "no tables" in message(client)
        file.unlink(missing_ok=True)
        kept.rename(file)
        wait_for(lambda: message(client) == "")
    check_log(caplog)


def test_a_database_that_is_locked_for_long(
    settings: CloudSettings, file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Not ready, 503, one line for as long as it lasts, and one when it is over."""
    with caplog.at_level(logging.INFO, "dekag.serving"), served(settings) as client:
        with closing(sqlite3.connect(file)) as other:
            other.execute("BEGIN IMMEDIATE")
            wait_for(lambda: "is locked by another program" in message(client))
            answer = client.post("/v1/jobs", json=SPEC)
            assert answer.status_code == 503
            assert "locked" in answer.json()["error"]["message"]
            assert answer.headers["retry-after"] == "5"
            assert client.get("/v1/jobs").status_code == 200
        wait_for(lambda: message(client) == "")
        assert client.post("/v1/jobs", json=SPEC).status_code == 201
    told = [record.getMessage() for record in caplog.records if "database" in record.getMessage()]
    assert told == ["the database cannot be used", "the database can be used again"]
    check_log(caplog)


def test_a_cloud_starts_on_a_database_that_is_locked(settings: CloudSettings, file: Path) -> None:
    """Not ready until whatever holds it lets go."""
    with closing(sqlite3.connect(file)) as other:
        other.execute("BEGIN IMMEDIATE")
        with served(settings) as client:
            assert "is locked by another program" in message(client)
            other.rollback()
            wait_for(lambda: message(client) == "")


def test_a_full_database_is_507(settings: CloudSettings, caplog: pytest.LogCaptureFixture) -> None:
    """By SQLite's own bound on its pages, which is the same error as a full disk; freed, it goes on."""
    bound = [10_000_000]
    engine = open_database(settings.database_address)
    event.listen(
        engine, "checkout", lambda raw, *_: raw.execute(f"PRAGMA max_page_count = {bound[0]}").close()
    )
    app = create(settings, look_seconds=0.02, database=engine)
    spec = SPEC | {"prompts": [f"{number} " + "x" * 900 for number in range(60)]}
    with TestClient(app, base_url=HOST, raise_server_exceptions=False) as client:
        bound[0] = 1  # as many as there are
        answers = [client.post("/v1/jobs", json=spec) for _ in range(3)]
        assert answers[-1].status_code == 507
        assert answers[-1].json()["error"]["code"] == "disk_full"
        assert "disk is full; make room" in answers[-1].json()["error"]["message"]
        bound[0] = 10_000_000
        wait_for(lambda: message(client) == "")
        assert client.post("/v1/jobs", json=spec).status_code == 201
    check_log(caplog)


@pytest.mark.parametrize(("room", "full"), [(0, False), (1 << 60, True)])
def test_a_disk_without_room_for_a_job(room: int, full: bool, settings: CloudSettings) -> None:
    """Not ready, though what is small could still be written; by as much as must be free."""
    engine = open_database(settings.database_address)
    health = Health(engine, room=room)
    assert health.look(lambda: None) == (not full)
    assert ("disk is full; make room" in str(health.missing())) == full
    engine.dispose()


def errors_of(path: Path) -> dict[str, Exception]:
    """Real errors of SQLite by class, as SQLAlchemy raises them."""
    found: dict[str, Exception] = {}

    def note(name: str, address: str, *statements: str) -> None:
        engine = create_engine(address, connect_args={"timeout": 0.01})
        try:
            with engine.begin() as connection:
                for statement in statements:
                    connection.exec_driver_sql(statement)
        except SQLAlchemyError as error:
            found[name] = error
        engine.dispose()

    good, bad = path / "good.db", path / "bad.db"
    with closing(sqlite3.connect(good)) as database:
        database.execute("CREATE TABLE t (x)")
    bad.write_bytes(b"no database, whatever its name says " * 200)
    note("read-only", f"sqlite:///file:{good}?mode=ro&uri=true", "INSERT INTO t VALUES (1)")
    note("garbage", f"sqlite:///{bad}", "SELECT * FROM t")
    note("missing", f"sqlite:///file:{path}/none.db?mode=ro&uri=true", "SELECT 1")
    note("full", f"sqlite:///{good}", "PRAGMA max_page_count = 2", "INSERT INTO t VALUES (randomblob(99999))")
    with closing(sqlite3.connect(good)) as other:
        other.execute("BEGIN IMMEDIATE")
        note("locked", f"sqlite:///{good}", "INSERT INTO t VALUES (1)")
    note("no table", f"sqlite:///{good}", "SELECT * FROM nothing")
    return found


EXPECTED: dict[str, Trouble] = {
    "read-only": trouble.READ_ONLY,
    "garbage": trouble.DAMAGED,
    "missing": trouble.CLOSED,
    "full": trouble.FULL,
    "locked": trouble.LOCKED,
    "no table": trouble.AWAY,
}


def test_each_class_of_error_has_its_line(tmp_path: Path) -> None:
    errors = errors_of(tmp_path)
    assert {name: trouble_of(error) for name, error in errors.items()} == EXPECTED
    disk = sqlite3.OperationalError("disk I/O error")
    disk.sqlite_errorcode = sqlite3.SQLITE_IOERR_WRITE
    assert trouble_of(disk) == trouble.FAILING
    for each in EXPECTED.values():
        assert each.text.isprintable()
        assert str(tmp_path) not in each.text


CHANGES = {
    "json": "UPDATE jobs SET spec = '{' WHERE number = 3",
    "json of another kind": "UPDATE jobs SET spec = '[1]' WHERE number = 3",
    "text": "UPDATE jobs SET name = CAST(x'ff00fe' AS TEXT) WHERE number = 3",
    "blob": "UPDATE jobs SET message = x'ff' WHERE number = 3",
    "number": "UPDATE jobs SET created = 'late' WHERE number = 3",
}


@pytest.mark.parametrize("change", CHANGES)
def test_rows_that_nobody_wrote(
    change: str, settings: CloudSettings, file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """SQLite's check does not see them: what needs them is 503 with one line, and other jobs are still told."""
    with closing(sqlite3.connect(file)) as database:
        database.execute(CHANGES[change])
        database.commit()
        ids = [row[0] for row in database.execute("SELECT id FROM jobs ORDER BY number")]
    engine = open_database(settings.database_address)
    with pytest.raises((DamagedRowError, SQLAlchemyError)) as caught:
        JobStore(engine).get(ids[2])
    assert trouble_of(caught.value) == trouble.ROW
    engine.dispose()
    app = create(settings)
    with TestClient(app, base_url=HOST, raise_server_exceptions=False) as client:
        answer = client.get(f"/v1/jobs/{ids[2]}")
        assert answer.status_code == 503
        assert "damaged" in answer.json()["error"]["message"]
        assert client.get(f"/v1/jobs/{ids[0]}").status_code == 200
    check_log(caplog)


def test_a_runner_says_it_once(
    settings: CloudSettings, file: Path, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """Jobs cannot be run, for whatever reason, and later they can."""
    engine = open_database(settings.database_address, busy_seconds=0.05)
    place = Workplace(
        database=settings.database_address,
        registry=settings.registry_address,
        keys=settings.keys_folder,
        folder=tmp_path / "jobs",
        world="emoji",
        device="cpu",
    )
    runner = Runner(JobStore(engine), place, workers=1)

    def said() -> list[str]:
        return [record.getMessage() for record in caplog.records]

    with caplog.at_level(logging.INFO, "dekag.serving"), closing(sqlite3.connect(file)) as other:
        other.execute("UPDATE jobs SET state = 'done'")
        other.commit()
        other.execute("BEGIN IMMEDIATE")
        runner.start()
        wait_for(lambda: "jobs cannot be run" in said())
        other.rollback()
        wait_for(lambda: "jobs are run again" in said())
        runner.stop()
    assert said() == ["jobs cannot be run", "jobs are run again"]
    check_log(caplog)
    engine.dispose()


@pytest.mark.slow
def test_a_worker_that_loses_the_database_ends_in_one_line(settings: CloudSettings, file: Path) -> None:
    """Its code says that the attempt does not count."""
    garbage(file)
    order = Order(
        database=settings.database_address,
        registry=settings.registry_address,
        keys=str(settings.keys_folder),
        folder=str(settings.folder),
        world="emoji",
        device="cpu",
        job="a" * 32,
        attempt=1,
    )
    command = [sys.executable, "-m", "dekag.serving.cloud.worker"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stderr is not None
        process.stdin.write(order.to_line())
        process.stdin.flush()
        said = process.stderr.read().decode()
    assert process.returncode == LOST
    assert len(said.strip().splitlines()) == 1
    assert "the database is damaged; restore a backup of it" in said


# --- random damage


def check_damage(settings: CloudSettings, caplog: pytest.LogCaptureFixture, seeds: range) -> None:
    """Never a traceback, never ready with a file that SQLite's check refuses, and every answer is one that is known."""
    file = settings.folder / "cloud.db"
    raw, refusals, answered = file.read_bytes(), list[str](), 0
    with closing(sqlite3.connect(file)) as database:
        ids = [row[0] for row in database.execute("SELECT id FROM jobs")]
    for seed in seeds:
        for ending in ("-wal", "-shm"):
            file.with_name(f"cloud.db{ending}").unlink(missing_ok=True)
        file.write_bytes(random_damage(raw, random.Random(seed)))
        try:
            require_sound(file)
            sound = True
        except InputError:
            sound = False
        try:
            app = create(settings)
        except InputError as error:
            refusals.append(str(error))
            continue
        assert sound, f"seed {seed}: served, though SQLite's check refuses it"
        answered += 1
        with TestClient(app, base_url=HOST, raise_server_exceptions=False) as client:
            paths = ["/v1/jobs?limit=100", "/v1/ledger", *(f"/v1/jobs/{job}" for job in ids)]
            answers = [client.get(path) for path in paths] + [client.post("/v1/jobs", json=SPEC)]
            statuses = {answer.status_code for answer in answers}
            assert statuses <= {200, 201, 404, 503, 507}, f"seed {seed}: {statuses}"
        check_log(caplog)
        caplog.clear()
    print(f"{len(seeds)} files: {len(refusals)} refused, {answered} served")
    assert all(refusal.isprintable() for refusal in refusals)
    file.write_bytes(raw)


def test_random_damage(settings: CloudSettings, caplog: pytest.LogCaptureFixture) -> None:
    """16, as the 400 below."""
    check_damage(settings, caplog, range(16))


@pytest.mark.slow
def test_much_random_damage(settings: CloudSettings, caplog: pytest.LogCaptureFixture) -> None:
    """400 files, each damaged in its own way."""
    check_damage(settings, caplog, range(1000, 1400))
