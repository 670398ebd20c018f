"""The command line as a user has it: what it prints, and its exit code."""

from dataclasses import dataclass

import pytest

from dekag.cli import main


@dataclass(frozen=True, kw_only=True)
class Done:
    """What a command came to."""

    code: int
    out: str
    err: str

    @property
    def complaints(self) -> list[str]:
        """The lines that say what was wrong; warnings are none."""
        lines = [line for line in self.err.splitlines() if line.startswith("dekag: ")]
        return [line for line in lines if not line.startswith("dekag: warning")]


def dekag(capsys: pytest.CaptureFixture[str], *words: object) -> Done:
    """Run `dekag WORDS...`."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_:
        main([str(word) for word in words])
    out, err = capsys.readouterr()
    return Done(code=int(exit_.value.code or 0), out=out, err=err)
