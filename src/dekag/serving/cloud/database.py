"""The cloud's database: SQLite in write-ahead mode, or PostgreSQL by address; its schema and its backup."""

import errno
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util.exc import CommandError
from sqlalchemy import URL, Connection, Engine, ExceptionContext, create_engine, event, make_url, text
from sqlalchemy.exc import ArgumentError, DatabaseError, SQLAlchemyError

from dekag.bundle.container import plain_text
from dekag.errors import InputError, StepError
from dekag.serving.cloud.trouble import AWAY, details, read_json, trouble_of
from dekag.wire.files import replacing

BUSY_SECONDS = 30.0
"""How long a writer of SQLite waits for another one."""
CONNECT_SECONDS = 10
MIGRATION_LOCK = 0x64656B6167
"""PostgreSQL's advisory lock that one migration at a time holds: "dekag" in ASCII."""
MIGRATIONS = Path(__file__).parent / "migrations"


def open_database(address: str, *, busy_seconds: float = BUSY_SECONDS) -> Engine:
    """An engine for `sqlite:///FILE` or `postgresql://...`; of SQLite the folder is made, and nothing else.

    busy_seconds: how long SQLite waits for another writer. Raises InputError for any other address.
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
    options = {"timeout": busy_seconds, "isolation_level": "IMMEDIATE"}
    engine = create_engine(url, connect_args=options, json_deserializer=read_json)
    event.listen(engine, "connect", _prepare)
    event.listen(engine, "handle_error", _translate)
    return engine


def migrate(engine: Engine, revision: str = "head") -> None:
    """Bring the schema up to date; of several processes one does it and the others wait.

    Raises InputError if the database cannot be used.
    """
    config = _config()
    try:
        with engine.begin() as connection:
            _lock(connection)
            config.attributes["connection"] = connection
            command.upgrade(config, revision)
    except (SQLAlchemyError, CommandError) as error:
        raise _unusable(engine, error) from error


def check_database(engine: Engine) -> None:
    """Raise InputError unless the database is sound and has the schema of this version."""
    try:
        if (file := file_of(engine)) is not None and file.exists():
            require_sound(file)
        require_schema(engine)
    except SQLAlchemyError as error:
        raise _unusable(engine, error) from error


def check_schema(engine: Engine) -> None:
    """Raise InputError unless the schema is the one that this version needs."""
    try:
        require_schema(engine)
    except SQLAlchemyError as error:
        raise _unusable(engine, error) from error


def require_schema(engine: Engine) -> None:
    """As `check_schema`, but errors of SQLAlchemy stay what they are."""
    script = ScriptDirectory.from_config(_config())
    head = script.get_current_head()
    try:
        with engine.connect() as connection:
            found = MigrationContext.configure(connection).get_current_revision()
    except CommandError as error:
        raise InputError("the database says that it has several schemas; restore a backup of it") from error
    if found == head:
        return
    if found is None or found in {each.revision for each in script.walk_revisions()}:
        has = "has no tables" if found is None else f"is at revision {found}"
        raise StepError(f"the database {has} and this dekag needs {head}", "migrate it first")
    raise InputError(
        f"the database is at revision {plain_text(found)}, of a newer dekag; upgrade dekag on this machine"
    )


def require_sound(file: Path, *, check: str = "quick_check") -> None:
    """Read all pages of a SQLite file by SQLite's own check. Raises InputError that names the file if one is wrong.

    It is opened anew: an open connection would not see what became of the pages that it knows.
    """
    right = "restore a backup of it"
    try:
        # mode rw: a file that is gone is not made anew
        with closing(sqlite3.connect(f"file:{quote(str(file))}?mode=rw", uri=True)) as connection:
            (first, *_) = connection.execute(f"PRAGMA {check}(1)").fetchone()
    except (sqlite3.Error, UnicodeDecodeError) as error:
        trouble = trouble_of(error)
        text = f"{trouble.text} ({file}: {details(error)})"
        if trouble.damaged:
            text = f"{file} is damaged ({details(error)}); {right}"
        raise InputError(text) from error
    if first != "ok":
        raise InputError(f"{file} is damaged ({plain_text(first)}); {right}")


def probe(engine: Engine, *, keep: bool) -> None:
    """See that SQLite can be written, without a change; with `keep`, as far as to the disk."""
    if engine.dialect.name != "sqlite":
        return
    with engine.connect() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = version_num")
        connection.commit() if keep else connection.rollback()


def file_of(engine: Engine) -> Path | None:
    """The file of SQLite; None of another database."""
    return _file(engine.url) if engine.dialect.name == "sqlite" else None


def back_up(address: str, out: Path) -> None:
    """Copy a SQLite database that may be in use to a file, which appears whole and checked, or not at all.

    To restore it, stop the cloud and put the copy in the database's place, without the files that end in -wal and -shm.
    Raises InputError if there is no such database, OSError if it is damaged, is none of a cloud, or the disk refuses.
    """
    url = _url(address)
    if url.get_backend_name() == "postgresql":
        raise InputError("this copies SQLite; back up PostgreSQL with pg_dump")
    source = _file(url)
    if not source.is_file():
        raise InputError(f"there is no database {source}; name the file that it is in")
    with replacing(out) as part:
        try:
            with closing(sqlite3.connect(source)) as database, closing(sqlite3.connect(part)) as copy:
                database.backup(copy)
            require_sound(part, check="integrity_check")
            _require_tables(part)
        except (sqlite3.Error, UnicodeDecodeError) as error:
            text = f"{source} cannot be copied ({details(error)}): {trouble_of(error).text}"
            raise OSError(errno.EIO, text) from error
        except InputError as error:
            raise OSError(errno.EIO, str(error).replace(str(part), str(source))) from error


def _require_tables(file: Path) -> None:
    """Raise InputError unless a SQLite file has the table that says which schema it has."""
    with closing(sqlite3.connect(file)) as database:
        names = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if "alembic_version" not in names:
        raise InputError(f"{file} holds no tables of a cloud; name the file of its database")


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
    try:
        for pragma in ("journal_mode = WAL", "foreign_keys = ON", "synchronous = FULL"):
            connection.execute(f"PRAGMA {pragma}").close()
    except UnicodeDecodeError as error:  # here SQLAlchemy knows the driver's own errors alone
        damaged = sqlite3.DatabaseError("the schema is no text")
        damaged.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
        raise damaged from error


def _translate(context: ExceptionContext) -> SQLAlchemyError | None:
    """Python fails to read what SQLite says of a damaged file, if it quotes it: that is an error of the database."""
    error = context.original_exception
    return DatabaseError(None, None, error) if isinstance(error, UnicodeDecodeError) else None


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


def _unusable(engine: Engine, error: Exception) -> InputError:
    """An error of the database in one line, with its file."""
    trouble = trouble_of(error)
    if trouble is AWAY:
        return InputError(f"the database cannot be reached: {details(error)}")
    file = file_of(engine)
    where = details(error) if file is None else f"{file}: {details(error)}"
    return InputError(f"{trouble.text} ({where})")
