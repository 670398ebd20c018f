"""Many command lines in one process of their own, each with what it prints and what it has imported by then."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

PROGRAM = """
import contextlib, io, json, sys
absent, lines, watched = json.load(sys.stdin)
sys.modules.update(dict.fromkeys(absent))
from dekag.cli import main
for words, missing in lines:
    before = dict(sys.modules)
    sys.modules.update(dict.fromkeys(missing))
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        try:
            main(words)
            code = 0
        except SystemExit as exit_:
            code = exit_.code or 0
        except BaseException as error:
            code = repr(error)
    for name in missing:
        sys.modules.pop(name)
    print(json.dumps([code, out.getvalue(), [name for name in watched if sys.modules.get(name)]]))
"""


class Ended(NamedTuple):
    """How a command ended: its code or what it raised, what it printed, and which watched modules are imported."""

    code: object
    text: str
    imported: list[str]


def run_lines(
    lines: Sequence[tuple[Sequence[str], Sequence[str]]],
    folder: Path,
    *,
    absent: Sequence[str] = (),
    watched: Sequence[str] = (),
) -> list[Ended]:
    """Run words in a folder, where some packages are missing for each. absent: modules that cannot be imported."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        input=json.dumps([absent, lines, watched]),
        capture_output=True,
        text=True,
        check=True,
        cwd=folder,
    )
    return [Ended(*json.loads(line)) for line in done.stdout.splitlines()]
