"""Experiment trackers by name: tensorboard, wandb, mlflow and whatever else accelerate knows.

Accelerate itself is imported once a run is tracked, so that a wrong name is refused at once.
"""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from dekag.choices import TRACKERS
from dekag.errors import FieldError, InputError
from dekag.wire.places import check_folder

PROJECT = "dekag"
WRITING = ("tensorboard", "aim")
"""Trackers that write to a folder."""
Log = Callable[[Mapping[str, float], int], None]
"""Takes the values of one step and the step."""


@dataclass(frozen=True, kw_only=True)
class Tracking:
    """Names of accelerate's trackers, and the folder for those that write files."""

    trackers: tuple[str, ...] = ()
    folder: Path | None = None


UNTRACKED = Tracking()


@contextmanager
def tracked(tracking: Tracking, settings: Mapping[str, object], *, main: bool = True) -> Iterator[Log]:
    """Start the trackers and finish them afterwards; yields what sends values to all of them.

    `settings` are stored with the run. Only the main process talks to the trackers, but every process checks
    their names, so that all of them stop.
    Raises InputError for an unknown tracker, a package that is not installed or a missing folder.
    """
    check_tracking(tracking)
    started: list[Any] = []
    try:
        for name in tracking.trackers if main else ():
            from accelerate.tracking import LOGGER_TYPE_TO_CLASS

            kind = LOGGER_TYPE_TO_CLASS[name]
            tracker = kind(PROJECT, tracking.folder) if kind.requires_logging_directory else kind(PROJECT)
            tracker.start()
            started.append(tracker)
            tracker.store_init_configuration({key: _plain(value) for key, value in settings.items()})

        def log(values: Mapping[str, float], step: int) -> None:
            for tracker in started:
                tracker.log(dict(values), step=step)

        yield log
    finally:
        for tracker in started:
            tracker.finish()


def check_tracking(tracking: Tracking) -> None:
    """Raise InputError for an unknown tracker, a package that is not installed, or a folder that cannot be written."""
    for name in tracking.trackers:
        TRACKERS.require(name)
        if name in TRACKERS.usual and not any(map(_is_installed, _packages(name))):
            package = "dekag[trackers]" if name == "tensorboard" else name
            raise InputError(f"the tracker {name} needs a package that is missing: pip install '{package}'")
        if tracking.folder is None and name in WRITING:
            raise FieldError(f"the tracker {name} writes to a folder: give one as log", "log")
    if tracking.folder is not None:
        check_folder(tracking.folder)


def _packages(name: str) -> tuple[str, ...]:
    """The packages of which a tracker needs one."""
    return (name, "tensorboardX") if name == "tensorboard" else (name,)


def _is_installed(package: str) -> bool:
    return sys.modules.get(package, ...) is not None and find_spec(package) is not None


def _plain(value: object) -> bool | int | float | str:
    """What every tracker can store."""
    return value if isinstance(value, bool | int | float | str) else str(value)
