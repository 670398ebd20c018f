"""What can be wrong with a database, each in one line with what would be right; no file, host or user is in it."""

import json
import sqlite3
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy.exc import SQLAlchemyError

from dekag.bundle.container import plain_text


class DamagedRowError(SQLAlchemyError):
    """A row holds what this program never wrote: the file is damaged where SQLite does not see it."""


class NoRoomError(SQLAlchemyError):
    """The disk of the database is as good as full: what is small may still be written, but no job."""


@dataclass(frozen=True, kw_only=True)
class Trouble:
    """Why the database could not be used.

    status: of the answer to whoever asked. lasting: whether more than what was asked for is concerned. damaged: whether
    the file itself must be checked.
    """

    text: str
    status: int = 503
    lasting: bool = True
    damaged: bool = False


AWAY: Final = Trouble(text="the database does not answer")
FULL: Final = Trouble(text="the database cannot grow: its disk is full; make room", status=507)
DAMAGED: Final = Trouble(text="the database is damaged; restore a backup of it", damaged=True)
LOCKED: Final = Trouble(text="the database is locked by another program; end what holds it")
READ_ONLY: Final = Trouble(
    text="the database is read-only; let the service write it and the folder that it is in"
)
FAILING: Final = Trouble(text="the database's disk fails; look after the disk", damaged=True)
CLOSED: Final = Trouble(text="the database cannot be opened; let the service write its file and folder")
ROW: Final = Trouble(text="this is damaged in the database; restore a backup", lasting=False, damaged=True)
_SQLITE: Final = {
    sqlite3.SQLITE_BUSY: LOCKED,
    sqlite3.SQLITE_LOCKED: LOCKED,
    sqlite3.SQLITE_READONLY: READ_ONLY,
    sqlite3.SQLITE_IOERR: FAILING,
    sqlite3.SQLITE_CORRUPT: DAMAGED,
    sqlite3.SQLITE_NOTADB: DAMAGED,
    sqlite3.SQLITE_FULL: FULL,
    sqlite3.SQLITE_CANTOPEN: CLOSED,
}
_POSTGRESQL: Final = {"53100": FULL, "25006": READ_ONLY, "XX001": DAMAGED, "XX002": DAMAGED, "58030": FAILING}
"""By SQLSTATE; see PostgreSQL's appendix A."""


def trouble_of(error: Exception) -> Trouble:
    """What an error of SQLAlchemy, or of the driver below it, says of the database."""
    if isinstance(error, DamagedRowError):
        return ROW
    if isinstance(error, NoRoomError):
        return FULL
    cause: object = getattr(error, "orig", None) or error
    code = getattr(cause, "sqlite_errorcode", None)
    if isinstance(code, int):  # the low byte is the class of SQLite's extended codes
        return _SQLITE.get(code & 0xFF, AWAY)
    if isinstance(cause, UnicodeDecodeError):  # SQLite's own message quotes what it found
        return DAMAGED
    if str(cause).startswith("Could not decode to UTF-8"):
        return ROW
    return _POSTGRESQL.get(str(getattr(cause, "sqlstate", "")), AWAY)


def details(error: Exception) -> str:
    """The driver's own words, in one line, for the log."""
    return plain_text(" ".join(str(getattr(error, "orig", None) or error).split()))


def read_json(raw: str) -> Any:
    """A value as it was stored. Raises DamagedRowError if it is no JSON."""
    try:
        return json.loads(raw)
    except (TypeError, ValueError) as error:
        raise DamagedRowError("a value is no JSON") from error
