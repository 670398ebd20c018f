"""Text files as people have them: marks, line ends, blank ends, and what is none."""

from pathlib import Path

import pytest

from dekag.data.prompts import read_prompts
from dekag.data.text import read_lines
from dekag.types import InputError

SEPARATORS = "\u2028\u2029\u0085\x0b\x0c\x1c\x1d\x1e"
"""All that `str.splitlines` takes for an end of a line besides LF and CR."""


@pytest.mark.parametrize(
    ("raw", "prompts"),
    [
        (b"\xef\xbb\xbfa cat\na dog\n", ["a cat", "a dog"]),
        (b"a cat\r\na dog\r\n", ["a cat", "a dog"]),
        (b"a cat\na dog", ["a cat", "a dog"]),
        (b"a cat\na dog\n\n \n\t\r\n", ["a cat", "a dog"]),
        (f"a{SEPARATORS}cat\na dog".encode(), [f"a{SEPARATORS}cat", "a dog"]),
        (b"a\rcat\na dog", ["a\rcat", "a dog"]),
        ("\ufeffun café\n猫\n".encode(), ["un café", "猫"]),
    ],
)
def test_only_line_feeds_end_a_prompt(tmp_path: Path, raw: bytes, prompts: list[str]) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes(raw)
    assert read_prompts(path) == prompts


@pytest.mark.parametrize(
    ("raw", "line"),
    [
        (b"", "it has no line"),
        (b"\n\n", "it has no line"),
        (b"a cat\n\na dog\n", "line 2 is empty"),
        (b"a \xe9\n", "is no UTF-8 text; save it as UTF-8"),
        ("a cat\n".encode("utf-16"), "is no UTF-8 text; save it as UTF-8"),
        (b"a\0cat\n", "holds a NUL"),
    ],
)
def test_what_is_no_list_of_prompts_is_one_line(tmp_path: Path, raw: bytes, line: str) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes(raw)
    with pytest.raises(InputError, match=line) as refused:
        read_prompts(path)
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_folder_and_nothing_are_no_text(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a folder; give a text file with one prompt a line"):
        read_prompts(tmp_path)
    with pytest.raises(InputError, match="does not exist; give"):
        read_lines(tmp_path / "none.txt", right="give another")


def test_the_field_s_own_files_are_read() -> None:
    """A mark is no part of the first prompt, and a prompt with a line separator is one."""
    cases = Path(__file__).parents[4] / "shared" / "cases"
    if not cases.is_dir():
        pytest.skip("the cases from the field are not beside this checkout")
    marked = read_prompts(cases / "bom.txt")
    assert not any(prompt.startswith("\ufeff") for prompt in marked)
    separated = read_prompts(cases / "line-separators.txt")
    assert len(separated) == (cases / "line-separators.txt").read_bytes().strip().count(b"\n") + 1
