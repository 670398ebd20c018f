"""What the tests of the services share."""

from collections.abc import Iterator

import pytest
from running_service import RunningService, run_service


@pytest.fixture(scope="session")
def edge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    """An open edge of the emoji world with its shipped updates and a short line."""
    with run_service("edge", tmp_path_factory.mktemp("edge"), threads=1, queue=16) as service:
        yield service
