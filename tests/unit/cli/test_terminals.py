"""What commands print is readable on any terminal: strict ASCII, no colour, a pipe, 40 columns."""

import contextlib
import io
import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from command_line import dekag, exit_code
from tiny_worlds import miniature

from dekag.bundle.sound import describe
from dekag.cli.tables import print_tables
from dekag.evaluation.table import Cell, Table, Tabular
from dekag.world import locate

METHODS = ("no_ka", "makd", "textual_inversion", "m\u00e9taphore")
JUDGES = ("DINO", "CLIP", "ImageNet", "LPIPS", "PSNR", "gap closed")
Printed = Callable[..., str]


@dataclass(frozen=True, kw_only=True)
class Result(Tabular):
    """A comparison of as many columns as the widest of the program's own."""

    def tables(self) -> list[Table]:
        rows = {
            name: [Cell(10 * place + column + 0.125, 3) for column in range(len(JUDGES))]
            for place, name in enumerate(METHODS)
        }
        caption = "means of 48 prompts, 95 % intervals"
        return [
            Table(title="Consistency on heldout", headings=("", *JUDGES), sections=(rows,), caption=caption)
        ]


@pytest.fixture
def printed(monkeypatch: pytest.MonkeyPatch) -> Printed:
    """What is printed to a file of an encoding, with variables of the environment."""

    def run(do: Callable[[], object], *, encoding: str = "ascii", **environment: str) -> str:
        raw = io.BytesIO()
        monkeypatch.delenv("COLUMNS", raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        with io.TextIOWrapper(raw, encoding=encoding, errors="strict", write_through=True) as stream:
            with contextlib.redirect_stdout(stream):
                do()
            return raw.getvalue().decode(encoding)

    return run


def commanded(*words: object) -> Callable[[], object]:
    return lambda: exit_code(*words)


ENVIRONMENTS = {
    "a pipe": {},
    "no colour": {"NO_COLOR": "1"},
    "40 columns": {"COLUMNS": "40"},
    "a narrow terminal without colour": {"COLUMNS": "40", "NO_COLOR": "1", "TERM": "dumb"},
}


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_a_bundle_is_readable_in_ascii(name: str, printed: Printed) -> None:
    """Every entry of the manifest stands whole in a line of its own."""
    text = printed(commanded("bundle", "inspect", "emoji/makd"), **ENVIRONMENTS[name])
    for key, value in describe(locate("emoji/makd", "bundle")).items():
        assert re.search(rf"^{key}:", text, re.MULTILINE)
        if isinstance(value, str):
            assert f"{key}: {value}" in text.splitlines()
    assert "\x1b" not in text


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_a_world_of_any_language_is_readable_in_ascii(name: str, printed: Printed, tmp_path: Path) -> None:
    folder = miniature(tmp_path / "world", licence="CC-BY \u2013 \u00e9t\u00e9")
    text = printed(commanded("world", "show", folder), **ENVIRONMENTS[name])
    assert "licence   CC-BY \\u2013 \\xe9t\\xe9" in text.splitlines()
    assert "CC-BY \u2013 \u00e9t\u00e9" in printed(commanded("world", "show", folder), encoding="utf-8")


@pytest.mark.parametrize("name", ENVIRONMENTS)
@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_tables_lose_nothing(name: str, encoding: str, printed: Printed) -> None:
    """Every number and every name is there, unbroken, however narrow the terminal is."""

    def do() -> None:
        from dekag.cli.console import escape_unprintable

        escape_unprintable()
        print_tables(Result())

    text = printed(do, encoding=encoding, **ENVIRONMENTS[name])
    names = METHODS if encoding == "utf-8" else (*METHODS[:3], "m\\xe9taphore")
    cells = [cell.text for table in Result().tables() for _, row in table.rows() for cell in row if cell]
    for part in ("Consistency on heldout", *names, *JUDGES, *cells):
        assert part in text, part
    assert "\u2026" not in text
    assert "\\u2026" not in text
    assert "\x1b" not in text
    if name == "40 columns":
        assert max(map(len, text.splitlines())) <= 40


@pytest.mark.parametrize(
    "words", ["--help", "align generation --help", "generate --nosuch", "bundle inspect nosuch"]
)
def test_help_and_complaints_are_ascii_on_a_narrow_terminal(words: str) -> None:
    """The process itself, on a terminal of 40 columns whose encoding is strict ASCII."""
    text, _ = on_terminal(*words.split())
    assert "Traceback" not in text
    assert text.isascii()
    assert "dekag" in text


def test_a_prompt_that_the_locale_cannot_read_is_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """What an argument of the command line is, whose bytes are no text in the encoding of the locale."""
    prompt = "a caf\u00e9".encode().decode("ascii", errors="surrogateescape")
    done = dekag(capsys, "deliver", prompt, "--out", tmp_path / "out")
    assert done.code == 2
    assert done.complaints == [
        "dekag: prompt 0 is no Unicode text; give it in UTF-8, in a locale such as LC_ALL=C.UTF-8"
    ]


@pytest.mark.slow
def test_a_delivery_with_a_spinner_is_readable_on_an_ascii_terminal(tmp_path: Path) -> None:
    text, code = on_terminal("deliver", "a caf\u00e9 on a blue background", "--out", str(tmp_path / "out"))
    assert code == 0, text
    assert text.isascii()
    assert "a caf\\xe9 on a blue background" in text.replace("\r\n", "")


def on_terminal(*words: str) -> tuple[str, int]:
    """What the process prints on a terminal of 40 columns in ASCII, and its exit code."""
    leader, follower = pty.openpty()
    environment = {**os.environ, "PYTHONIOENCODING": "ascii:strict", "LC_ALL": "C"}
    process = subprocess.Popen(
        [sys.executable, "-m", "dekag", *words],
        stdin=follower,
        stdout=follower,
        stderr=follower,
        env={**environment, "NO_COLOR": "1", "COLUMNS": "40", "TERM": "xterm"},
    )
    os.close(follower)
    parts = []
    while True:
        try:
            parts.append(os.read(leader, 4096))
        except OSError:  # the process has closed the terminal
            break
        if not parts[-1]:
            break
    os.close(leader)
    return b"".join(parts).decode("utf-8"), process.wait()
