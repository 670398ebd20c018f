"""The codec and the channel that `docs/own_codec.md` shows are the ones that the tests use."""

import re

import pytest
from places import ROOT


@pytest.mark.parametrize("name", ["own_codec", "own_channel"])
def test_the_page_shows_the_tested_file(name: str) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "own_codec.md").read_text(), flags=re.DOTALL)
    assert (ROOT / "tests" / "helpers" / f"{name}.py").read_text() in blocks


def test_what_the_page_names_is_there() -> None:
    """Every import of its shorter blocks."""
    for line in re.findall(
        r"^from dekag.*$", (ROOT / "docs" / "own_codec.md").read_text(), flags=re.MULTILINE
    ):
        exec(line, {})
