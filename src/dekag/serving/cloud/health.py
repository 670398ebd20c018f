"""Whether the cloud's database can be worked with: looked at again and again, and doubted where a request failed."""

import logging
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from shutil import disk_usage
from typing import Final

from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from dekag.errors import InputError
from dekag.serving.cloud.database import file_of, probe, require_schema, require_sound
from dekag.serving.cloud.trouble import NoRoomError, Trouble, details, trouble_of
from dekag.serving.http.logs import facts

log = logging.getLogger("dekag.serving")
CHECK_LOOKS: Final = 60
"""All pages of a SQLite file are read every so many looks, and whenever something was wrong."""


ROOM: Final = 1 << 20
"""Bytes that must be free on the disk of SQLite's file."""


class Health:
    """What is known of the database; each trouble is logged once, in one line, and so is its end."""

    def __init__(self, engine: Engine, *, room: int = ROOM) -> None:
        self._engine = engine
        self._room = room
        self._file = file_of(engine)
        self._seen = _identity(self._file)
        self._looks = 0
        self._doubted = False
        self._missing: str | None = None

    def missing(self) -> str | None:
        """What keeps the database from being used; None if nothing does."""
        return self._missing

    def look(self, work: Callable[[], None]) -> bool:
        """See whether the database can be read and written and do some work with it; whether that went well."""
        self._looks += 1
        thorough = self._doubted or self._missing is not None or self._looks % CHECK_LOOKS == 0
        try:
            self._reopen_if_replaced()
            if thorough and self._file is not None:
                require_sound(self._file)
            require_schema(self._engine)
            self._require_room()
            # what failed to be written before must be seen to be written
            probe(self._engine, keep=self._missing is not None)
            work()
        except SQLAlchemyError as error:
            self._note(trouble_of(error).text, details(error))
            self._engine.dispose()  # a connection may be of a file that is no more
            return False
        except InputError as error:
            self._note(_without(str(error), self._file), str(error))
            self._engine.dispose()
            return False
        if self._missing is not None:
            log.info("the database can be used again")
        self._missing, self._doubted = None, False
        return True

    def failed(self, error: SQLAlchemyError) -> Trouble:
        """What went wrong for a request; the next look finds out whether it is still so."""
        trouble = trouble_of(error)
        if not trouble.lasting:
            log.error(trouble.text, extra=facts(why=details(error)))
        elif self._missing is None:
            self._note(trouble.text, details(error))
        self._doubted = self._doubted or trouble.damaged
        return trouble

    def _note(self, reason: str, why: str) -> None:
        if reason != self._missing:
            log.error("the database cannot be used", extra=facts(reason=reason, why=why, file=self._file))
        self._missing = reason

    def _require_room(self) -> None:
        if self._file is not None and (free := disk_usage(self._file.parent).free) < self._room:
            raise NoRoomError(f"{free} bytes are free, of {self._room} that are needed")

    def _reopen_if_replaced(self) -> None:
        found = _identity(self._file)
        if found != self._seen:
            self._seen, self._doubted = found, True
            self._engine.dispose()


def _identity(file: Path | None) -> tuple[int, int] | None:
    """Which file it is that has the name; None if there is none."""
    if file is not None:
        with suppress(OSError):
            found = file.stat()
            return found.st_dev, found.st_ino
    return None


def _without(text: str, file: Path | None) -> str:
    """A message for anyone who asks whether the cloud is ready: one line without the file's name."""
    return " ".join((text if file is None else text.replace(str(file), "the database")).split())
