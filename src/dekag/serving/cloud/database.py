"""The cloud's database: SQLite in write-ahead mode, or PostgreSQL by address; its schema and its backup."""

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url, text
from sqlalchemy.exc import ArgumentError, OperationalError

from dekag.errors import StepError
from dekag.types import InputError
from dekag.wire.files import replacing

BUSY_SECONDS = 30
"""How long a writer of SQLite waits for another one."""
CONNECT_SECONDS = 10
MIGRATION_LOCK = 0x64656B6167
"""PostgreSQL's advisory lock that one migration at a time holds: "dekag" in ASCII."""
MIGRATIONS = Path(__file__).parent / "migrations"


def open_database(address: str) -> Engine:
    """An engine for `sqlite:///FILE` or `postgresql://...`; of SQLite the folder is made, and nothing else.

    Raises InputError for any other address.
    """
    url = _url(address)
    if url.get_backend_name() == "postgresql":
        return create_engine(
            url.set(drivername="postgresql+psycopg"),
            connect_args={"connect_timeout": CONNECT_SECONDS},
            pool_pre_ping=True,
        )
    _file(url).parent.mkdir(parents=True, exist_ok=True)
    # IMMEDIATE: a transaction takes the lock before it writes, so it never has to start anew half-way
    engine = create_engine(url, connect_args={"timeout": BUSY_SECONDS, "isolation_level": "IMMEDIATE"})
    event.listen(engine, "connect", _prepare)
    return engine


def migrate(engine: Engine, revision: str = "head") -> None:
    """Bring the schema up to date; of several processes one does it and the others wait."""
    config = _config()
    with engine.begin() as connection:
        _lock(connection)
        config.attributes["connection"] = connection
        command.upgrade(config, revision)


def check_schema(engine: Engine) -> None:
    """Raise InputError unless the schema is the one that this version needs."""
    script = ScriptDirectory.from_config(_config())
    head = script.get_current_head()
    try:
        with engine.connect() as connection:
            found = MigrationContext.configure(connection).get_current_revision()
    except OperationalError as error:
        raise InputError(f"the database cannot be reached: {_first_line(error)}") from error
    if found == head:
        return
    if found is None or found in {each.revision for each in script.walk_revisions()}:
        has = "has no tables" if found is None else f"is at revision {found}"
        raise StepError(f"the database {has} and this dekag needs {head}", "migrate it first")
    raise InputError(f"the database is at revision {found}, of a newer dekag; upgrade dekag on this machine")


def back_up(address: str, out: Path) -> None:
    """Copy a SQLite database that may be in use to a file, which appears whole or not at all.

    To restore it, stop the cloud and put the copy in the database's place, without the files that end in -wal and -shm.
    """
    url = _url(address)
    if url.get_backend_name() == "postgresql":
        raise InputError("this copies SQLite; back up PostgreSQL with pg_dump")
    source = _file(url)
    if not source.is_file():
        raise InputError(f"there is no database {source}; name the file that it is in")
    with (
        replacing(out) as part,
        closing(sqlite3.connect(source)) as database,
        closing(sqlite3.connect(part)) as copy,
    ):
        database.backup(copy)


def _url(address: str) -> URL:
    try:
        url = make_url(address)
    except ArgumentError:
        # the address may hold a password, so it is not repeated
        raise InputError("the database must be sqlite:///FILE or postgresql://USER@HOST/NAME") from None
    if url.get_backend_name() not in ("sqlite", "postgresql"):
        raise InputError(f"the database must be SQLite or PostgreSQL, got {url.get_backend_name()}")
    return url


def _file(url: URL) -> Path:
    if not url.database or url.database == ":memory:":
        raise InputError("the database must be a file, which several processes share: sqlite:///cloud.db")
    return Path(url.database).absolute()


def _prepare(connection: sqlite3.Connection, _: Any) -> None:
    """Readers beside one writer, references that hold, and commits that outlive a power cut."""
    for pragma in ("journal_mode = WAL", "foreign_keys = ON", "synchronous = FULL"):
        connection.execute(f"PRAGMA {pragma}").close()


def _lock(connection: Connection) -> None:
    """Let one migration at a time pass, until the transaction ends."""
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:number)"), {"number": MIGRATION_LOCK})
    else:
        connection.exec_driver_sql("BEGIN IMMEDIATE")


def _config() -> Config:
    config = Config()
    # % begins a reference in Alembic's configuration
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    return config


def _first_line(error: OperationalError) -> str:
    return str(error.orig).strip().partition("\n")[0]
