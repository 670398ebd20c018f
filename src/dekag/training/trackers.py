"""Experiment trackers by name: tensorboard, wandb, mlflow and whatever else accelerate knows."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

from dekag.types import InputError

PROJECT = "dekag"
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
    names, folder = tracking.trackers, tracking.folder
    for name in names:
        _check(name, folder)
    started = []
    try:
        for name in names if main else ():
            kind = LOGGER_TYPE_TO_CLASS[name]
            tracker = kind(PROJECT, folder) if kind.requires_logging_directory else kind(PROJECT)
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


def _check(name: str, folder: Path | None) -> None:
    if name not in LOGGER_TYPE_TO_CLASS:
        raise InputError(
            f"there is no tracker {name!r}; choose from {', '.join(sorted(LOGGER_TYPE_TO_CLASS))}"
        )
    if name not in {str(kind) for kind in get_available_trackers()}:
        package = "dekag[trackers]" if name == "tensorboard" else name
        raise InputError(f"the tracker {name} needs a package that is missing: pip install '{package}'")
    if folder is None and LOGGER_TYPE_TO_CLASS[name].requires_logging_directory:
        raise InputError(f"the tracker {name} writes to a folder: give one")


def _plain(value: object) -> bool | int | float | str:
    """What every tracker can store."""
    return value if isinstance(value, bool | int | float | str) else str(value)
