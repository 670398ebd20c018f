"""What CONTRIBUTING asks of tests."""

import re

from places import ROOT

REPLACES = re.compile(r"patch\.(setattr|setitem|delattr|delitem)\(|unittest\.mock")
GUARD = ROOT / "tests" / "conftest.py"
"""Keeps the tests from the network, which is Python's and not the package's."""


def test_no_test_replaces_a_part_of_a_program() -> None:
    """What a test has to change is an argument, or another process."""
    files = [path for path in (ROOT / "tests").rglob("*.py") if path != GUARD]
    assert [path.name for path in files if REPLACES.search(path.read_text())] == []
