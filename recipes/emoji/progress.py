"""Progress of a recipe: a rich bar on a terminal, a line every few hundred steps in a log file."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from dekag.training.loop import Progress as Step


@contextmanager
def progress_bar(name: str, every: int = 50) -> Iterator[Callable[[Step], None]]:
    """Yield the `on_step` callback of `dekag.training.loop.train`."""
    columns = (TextColumn(name), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[loss]}"))
    with Progress(*columns, TimeRemainingColumn(), disable=not sys.stdout.isatty()) as bar:
        task = bar.add_task(name, loss="")
        mean = 0.0

        def on_step(step: Step) -> None:
            nonlocal mean
            mean = step.loss if mean == 0.0 else 0.98 * mean + 0.02 * step.loss
            bar.update(task, completed=step.step, total=step.steps, loss=f"loss {mean:.5f}")
            if step.step % every == 0 and not sys.stdout.isatty():
                print(
                    f"{name} {step.step}/{step.steps} loss {mean:.5f} {step.steps_per_second:.2f}/s",
                    flush=True,
                )

        yield on_step
