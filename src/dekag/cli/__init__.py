"""`dekag` on the command line: a thin tree over the package. Heavy imports happen inside the commands."""

import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from dekag.cli import align, bundle, cloud, evaluate, jobs, radio, registry, serve, system, train, world
from dekag.cli.console import complain, escape_unprintable, quiet_libraries
from dekag.errors import InputError, NotReceivedError
from dekag.version import __version__

__all__ = ["app", "main"]

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
app.add_typer(system.app)
app.add_typer(world.app, name="world")
app.add_typer(train.app, name="train")
app.add_typer(align.app, name="align")
app.add_typer(evaluate.app, name="evaluate")
app.add_typer(bundle.app, name="bundle")
app.add_typer(radio.app, name="radio")
app.add_typer(serve.app, name="serve")
app.add_typer(cloud.app, name="cloud")
app.add_typer(jobs.app, name="jobs")
app.add_typer(registry.app, name="registry")


def main(words: Sequence[str] | None = None) -> None:
    """Run the command line on these words, or on those of the process.

    Bad input is one line on standard error and exit code 2. A full disk or the like is 1, and so is a recording in
    which nothing was received.

    Of several processes the first one of each node says what is wrong with the input, as all find the same.
    """
    quiet_libraries()
    escape_unprintable()
    try:
        app(None if words is None else list(words), prog_name="dekag")
    except ValueError as error:
        if not isinstance(error, InputError):
            raise
        if os.environ.get("LOCAL_RANK", "0") == "0":
            complain(error)
        sys.exit(1 if isinstance(error, NotReceivedError) else 2)
    except OSError as error:
        complain(error)
        sys.exit(1)


def _version(show: bool) -> bool:
    if show:
        print(f"dekag {__version__}")
        raise typer.Exit
    return show


@app.callback()
def root(
    _: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Knowledge alignment for generative semantic communication."""
