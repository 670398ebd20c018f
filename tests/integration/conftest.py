"""What the tests of the services share."""

from collections.abc import Iterator

import pytest
from image_server import KEY, MODEL, Server, serving
from running_service import RunningService, run_service

from dekag.data.endpoint import ImageEndpoint


@pytest.fixture(scope="session")
def edge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    """An open edge of the emoji world with its shipped updates and a short line."""
    with run_service("edge", tmp_path_factory.mktemp("edge"), threads=1, queue=16) as service:
        yield service


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """An images endpoint, and its key in the environment."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serving(Server()) as state:
        yield state


@pytest.fixture
def endpoint(server: Server) -> ImageEndpoint:
    """That endpoint as a client knows it."""
    return ImageEndpoint(base_url=server.url, model=MODEL, size="16x16", timeout_s=60.0)
