"""What the tests of tasks share."""

from functools import partial

import pytest
from command_line import Say, dekag


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Say:
    """The command line."""
    return partial(dekag, capsys)
