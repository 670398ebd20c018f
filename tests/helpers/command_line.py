"""The command line as a user has it: what it prints, and its exit code."""

from collections.abc import Callable
from typing import NamedTuple

import pytest

from dekag.cli import main


class Done(NamedTuple):
    """What a command came to."""

    code: int
    out: str
    err: str

    @property
    def complaints(self) -> list[str]:
        """The lines that say what was wrong; warnings are none."""
        lines = [line for line in self.err.splitlines() if line.startswith("dekag: ")]
        return [line for line in lines if not line.startswith("dekag: warning")]


Say = Callable[..., Done]
"""Runs `dekag` with some words."""


def dekag(capsys: pytest.CaptureFixture[str], *words: object) -> Done:
    """Run `dekag WORDS...`."""
    capsys.readouterr()
    code = exit_code(*words)
    out, err = capsys.readouterr()
    return Done(code=code, out=out, err=err)


def exit_code(*words: object) -> int:
    """Run `dekag WORDS...` where nobody reads what it prints."""
    with pytest.raises(SystemExit) as exit_:
        main([str(word) for word in words])
    return int(exit_.value.code or 0)
