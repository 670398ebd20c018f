"""Clients behind a proxy that is dead, refuses or fails: it is named; and this machine is called past it."""

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from published_registry import HASTE, RegistrySetup, http_server
from running_service import free_port
from server_thread import listening

from dekag.data.endpoint import ImageEndpoint
from dekag.registry import RegistryClient, RegistryError
from dekag.serving.cloud.client import CloudClient
from dekag.serving.edge.traffic import Reporter, cloud_client
from dekag.serving.traffic import TrafficReport
from dekag.types import InputError

SCHEMES = ("http", "https")


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """No proxy of whoever runs the tests."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


class Proxy(ThreadingHTTPServer):
    """A proxy that answers everything with one status."""

    daemon_threads = True

    def __init__(self, status: int) -> None:
        super().__init__(("127.0.0.1", 0), _Refusal)
        self.status = status
        self.asked: list[str] = []


class _Refusal(BaseHTTPRequestHandler):
    server: Proxy

    def do_GET(self) -> None:
        """The status."""
        self.server.asked.append(f"{self.command} {self.path}")
        self.send_response(self.server.status)
        self.send_header("content-length", "0")
        self.end_headers()

    def do_POST(self) -> None:
        """The status."""
        self.do_GET()

    def do_CONNECT(self) -> None:
        """The status."""
        self.do_GET()

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


@contextmanager
def proxy(status: int) -> Iterator[Proxy]:
    server = Proxy(status)
    with listening(server):
        yield server


@pytest.fixture(params=["dead", 403, 502])
def port(request: pytest.FixtureRequest) -> Iterator[int]:
    """Of a proxy that is not there, or refuses, or fails."""
    if request.param == "dead":
        yield free_port()
        return
    with proxy(request.param) as server:
        yield server.server_address[1]


@pytest.fixture
def named(port: int, monkeypatch: pytest.MonkeyPatch) -> str:
    """What every message must hold; the environment has the proxy, with a password."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, f"http://user:secret@127.0.0.1:{port}")
    return f"through the proxy http://127.0.0.1:{port}"


def check_named(text: str, named: str) -> None:
    print(text)
    assert named in text
    assert text.isprintable()
    assert "secret" not in text


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_registry_behind_it(scheme: str, named: str, tmp_path: Path) -> None:
    setup = RegistrySetup(tmp_path)
    client = setup.client(f"{scheme}://registry.example/registry")
    with pytest.raises(RegistryError) as caught:
        client.channel("stable")
    assert caught.value.fault == "unreachable"
    check_named(str(caught.value), named)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_cloud_behind_it(scheme: str, named: str) -> None:
    with CloudClient(f"{scheme}://cloud.example") as cloud, pytest.raises(InputError) as caught:
        cloud.jobs(1)
    check_named(str(caught.value), named)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_an_endpoint_behind_it(scheme: str, named: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "any")
    endpoint = ImageEndpoint(base_url=f"{scheme}://images.example/v1", model="m", retries=0)
    with pytest.raises(InputError) as caught:
        endpoint.draw(["a"], seeds=[1])
    check_named(str(caught.value), named)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_report_of_an_edge_behind_it(scheme: str, named: str, caplog: pytest.LogCaptureFixture) -> None:
    report = TrafficReport(report="r", edge="edge-1", ended=60, active={}, rows=[])
    reporter = Reporter(cloud_client(f"{scheme}://cloud.example", None), lambda: report)
    with caplog.at_level(logging.WARNING, "dekag.serving"):
        asyncio.run(reporter.report())
    (record,) = caplog.records
    check_named(record.facts["why"], named)  # type: ignore[attr-defined]


def test_this_machine_is_called_past_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The registry of `dekag up`, by each of its names; the proxy never hears of it."""
    setup = RegistrySetup(tmp_path)
    bundle = setup.publish()
    with proxy(502) as server, http_server(setup.registry) as registry:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{server.server_address[1]}")
        for host in ("127.0.0.1", "localhost"):
            assert setup.pull(f"http://{host}:{registry.port}", name=host) == [bundle]
        assert server.asked == []
        client = RegistryClient(
            "http://registry.example", tmp_path / "other", root=setup.root, patience=HASTE
        )
        with pytest.raises(RegistryError):
            client.channel("stable")
        assert server.asked[0] == "GET http://registry.example/metadata/2.root.json"
