"""What a command says: progress on standard error, results on standard output."""

import gc
import json
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from typing import Any

from rich.console import Console

from dekag.errors import (
    ConditionWarning,
    EndpointWarning,
    InputError,
    PromptTruncatedWarning,
    ReceptionWarning,
    SafetyWarning,
    SkippedWarning,
    StepError,
)

_TOLD = (PromptTruncatedWarning, ConditionWarning, ReceptionWarning, EndpointWarning, SkippedWarning)
"""Warnings that are shown every time."""

console = Console(stderr=True)


FLAGS = {"delay_spread_ns": "--delay-spread", "speed_m_s": "--speed"}
"""Options whose names are not those of their fields."""


COMMANDS = {
    "migrate it first": "dekag cloud migrate",
    "make a registry first": "dekag registry init",
    "train one that has it": "dekag align generation",
    "train it again": "dekag align transmission",
    "list what is published": "dekag registry list",
}
"""Commands for the steps that a `StepError` asks for."""


def complain(error: Exception) -> None:
    """Say what is wrong in one line on standard error; fields that it names become options, steps commands."""
    text = str(error)
    if isinstance(error, StepError) and error.step in COMMANDS:
        text = f"{error.message}: run {COMMANDS[error.step]}"
    text = " ".join(text.split())
    for name in getattr(error, "fields", ()):
        flag = FLAGS.get(name, f"--{name.replace('_', '-')}")
        text = re.sub(rf"(?<![\w-]){name}(?!\w)", flag, text)
    print(f"dekag: {text}", file=sys.stderr)


def warn(text: str) -> None:
    """Say something in one line on standard error that does not stop the command."""
    if not console.quiet:
        print(f"dekag: warning: {text}", file=sys.stderr)


def escape_unprintable() -> None:
    """Have what the terminal's encoding lacks printed as its code in place of a failure."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def quiet_libraries() -> None:
    """Show this package's own warnings alone, one line each."""

    def one_line(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
        if not console.quiet:
            print(f"dekag: warning: {message}", file=sys.stderr)

    warnings.simplefilter("ignore")
    warnings.filterwarnings("default", module="dekag")
    for category in _TOLD:
        warnings.filterwarnings("always", category=category)
    warnings.filterwarnings("once", category=SafetyWarning)
    warnings.showwarning = one_line


def quiet_loading() -> None:
    """Keep the libraries from telling how they load a model."""
    import diffusers
    import transformers

    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()


@contextmanager
def joined(device: str) -> Iterator[Any]:
    """Join the processes that were launched together; yields this one's device. Only the main one reports."""
    from dekag.training import processes

    with processes.joined(device) as resolved:
        console.quiet = not processes.is_main()
        yield resolved


@contextmanager
def working(text: str) -> Iterator[Callable[[str], None]]:
    """A spinner with the current stage on a terminal; a line each stage elsewhere."""
    quiet_loading()
    with console.status(text, spinner="line" if console.options.ascii_only else "dots") as status:

        def stage(name: str) -> None:
            status.update(f"{text}: {name}")
            if not console.is_terminal:
                console.print(f"{text}: {name}")

        yield stage


@contextmanager
def progress(text: str) -> Iterator[Callable[[str, Any], None]]:
    """A progress bar with the remaining time; `on_step(stage, progress)` moves it."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[loss]}"),
    )
    with Progress(*columns, TimeRemainingColumn(), console=console) as bar:
        task = bar.add_task(text, loss="")

        def on_step(stage: str, step: Any) -> None:
            description = f"{text}: {stage}"
            told = f"loss {step.loss:.4f}, {1 / step.steps_per_second:.2f} s a step"
            bar.update(
                task,
                description=description,
                total=step.steps,
                completed=step.step,
                loss=told,
            )
            if not console.is_terminal and step.step % 100 == 0:
                console.print(f"{description} {step.step}/{step.steps} {told}")

        yield on_step


def print_bundle(bundle: Any, out: Path) -> None:
    """Say what was written, once."""
    if not console.quiet:
        print(f"wrote bundle {bundle.id[:12]} ({bundle.size_bytes} bytes) to {out}")


def print_json(value: object) -> None:
    """Print numbers as JSON on standard output."""
    print(json.dumps(value, indent=2, allow_nan=False))


@contextmanager
def starting() -> Iterator[None]:
    """Import and load a service without the garbage collector, which takes a quarter of the time and finds nothing."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


@contextmanager
def needing(extra: str) -> Iterator[None]:
    """Import what an extra of the package brings; InputError says how to install it."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("dekag"):
            raise
        raise InputError(f'{error.name} is needed for this: pip install "dekag[{extra}]"') from error


def uses_text(ledger: Mapping[str, Any]) -> str:
    """Channel uses and what they were for."""
    parts = {name: ledger[f"{name}_uses"] for name in ("payload", "side", "pilot")}
    return (
        f"{sum(parts.values())} channel uses, {parts['payload']} payload, {parts['side']} side information and"
        f" {parts['pilot']} pilots"
    )
