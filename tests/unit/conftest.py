"""What the tests of the services share."""

from collections.abc import Iterator

import pytest
from served import Served, serving


@pytest.fixture(scope="session")
def edge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """An open edge of the emoji world with its shipped updates and a short line."""
    with serving("edge", tmp_path_factory.mktemp("edge"), threads=1, queue=16) as served:
        yield served
