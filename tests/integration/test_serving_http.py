"""What every service has: tokens, limits, deadlines, errors, logs, probes and metrics."""

import json
import logging
import socket
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx2
import openai
import pytest
from places import HELPERS
from running_service import RunningService, free_port, run_command, run_service
from starlette.testclient import TestClient
from tiny_service import tiny_app

from dekag.serving.http.logs import JsonLines, facts
from dekag.serving.http.server import serve
from dekag.serving.http.settings import ServiceSettings, load_settings
from dekag.types import InputError

TOKEN = "a-token-of-the-tests"


def tiny(**settings: object) -> TestClient:
    """The tiny service in this process."""
    app = tiny_app(load_settings(ServiceSettings, **settings))
    return TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False)


@contextmanager
def tiny_process(folder: Path, **settings: object) -> Iterator[RunningService]:
    """The tiny service behind the real server."""
    port = free_port()
    variables = {f"DEKAG_{name.upper()}": str(value) for name, value in settings.items()}
    command = [str(HELPERS / "tiny_service.py"), str(port)]
    with run_command(command, folder / "tiny.log", port, variables) as service:
        yield service


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


def test_only_a_right_token_gets_in() -> None:
    client = tiny(tokens=[TOKEN, "the-next-one"])
    body = {"prompt": "x"}
    assert client.post("/v1/images/generations", json=body, headers=bearer(TOKEN)).json() == body
    assert client.post("/v1/images/generations", json=body, headers=bearer("the-next-one")).status_code == 200
    wrong = [{}, bearer(""), bearer(TOKEN[:-1]), bearer(TOKEN + "x"), {"authorization": f"Basic {TOKEN}"}]
    for headers in wrong:
        answer = client.post("/v1/images/generations", json=body, headers=headers)
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "Bearer"
        assert answer.json()["error"]["code"] == "invalid_api_key"


def test_probes_and_the_page_are_open_and_nothing_else() -> None:
    client = tiny(tokens=[TOKEN])
    assert client.get("/healthz").json() == {"status": "ok"}
    assert client.get("/readyz").json() == {"status": "ready"}
    assert client.get("/page/main.js").status_code == 200
    assert client.post("/page/main.js").status_code == 401
    assert client.get("/page").status_code == 401
    assert client.get("/v1/refuse").status_code == 401
    assert client.get("/openapi.json").status_code == 401
    assert client.get("/metrics").status_code == 401  # the client is not on loopback
    assert client.get("/metrics", headers=bearer(TOKEN)).status_code == 200


def test_tokens_are_rotated_by_changing_their_file(tmp_path: Path) -> None:
    """The old and the new one side by side, then the new one alone; an empty file lets nobody in."""
    file = tmp_path / "tokens"
    file.write_text("# of this spring\nold-token\n")
    client = tiny(tokens_file=str(file))

    def allowed(token: str) -> bool:
        return client.get("/v1/refuse", headers=bearer(token)).status_code != 401

    assert (allowed("old-token"), allowed("new-token")) == (True, False)
    file.write_text("old-token\nnew-token\n")
    assert (allowed("old-token"), allowed("new-token")) == (True, True)
    file.write_text("new-token\n")
    assert (allowed("old-token"), allowed("new-token")) == (False, True)
    file.unlink()
    assert (allowed("old-token"), allowed("new-token")) == (False, True)
    file.write_text("")
    assert (allowed("old-token"), allowed("new-token"), allowed("")) == (False, False, False)


def test_an_open_service_listens_on_loopback_only() -> None:
    with pytest.raises(InputError, match="can be reached from other machines: set DEKAG_TOKENS"):
        tiny(host="0.0.0.0")
    tiny(host="0.0.0.0", tokens=[TOKEN])


def test_an_open_service_is_not_reached_by_a_strangers_name() -> None:
    """A page whose name is made to point to loopback sends its own name as host."""
    client = tiny()
    assert client.get("/healthz", headers={"host": "evil.example:8000"}).status_code == 403
    for host in ("localhost:8000", "127.0.0.1", "[::1]:8000"):
        assert client.get("/healthz", headers={"host": host}).status_code == 200


def test_settings_come_from_the_environment_and_errors_show_no_value(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DEKAG_TOKENS", json.dumps([TOKEN]))
    monkeypatch.setenv("DEKAG_PORT", "9000")
    settings = load_settings(ServiceSettings, host=None)
    assert (settings.host, settings.port, settings.guarded) == ("127.0.0.1", 9000, True)
    assert TOKEN not in repr(settings)
    monkeypatch.setenv("DEKAG_PORT", TOKEN)
    with pytest.raises(InputError, match="port \\(DEKAG_PORT\\) is wrong") as refused:
        load_settings(ServiceSettings)
    assert TOKEN not in str(refused.value)
    with pytest.raises(InputError, match="cannot be read"):
        tiny(port=9000, tokens_file=str(tmp_path / "missing"))


def test_errors_are_in_one_envelope_and_tell_no_secret() -> None:
    client = tiny()
    answers = {
        404: client.get("/nothing"),
        405: client.put("/v1/refuse"),
        400: client.get("/v1/refuse"),
        500: client.get("/v1/fail"),
        507: client.get("/v1/full"),
    }
    for status, answer in answers.items():
        assert answer.status_code == status
        assert answer.json()["error"].keys() == {"message", "type", "param", "code"}
        assert answer.headers["x-request-id"]
    assert answers[400].json()["error"]["message"] == "uses must be at least 1, got 0"
    assert "secret" not in answers[500].text
    assert "disk is full" in answers[507].text
    assert "/a/path" not in answers[507].text
    assert answers[405].headers["allow"] == "GET"


@pytest.mark.parametrize("kind", ["input", "cause", "context"])
def test_a_full_disk_is_told_however_it_is_wrapped(kind: str) -> None:
    answer = tiny().get(f"/v1/full/{kind}")
    assert (answer.status_code, answer.json()["error"]["code"]) == (507, "disk_full")


def test_request_ids_are_kept_if_they_are_harmless() -> None:
    client = tiny()
    assert client.get("/healthz", headers={"x-request-id": "abc-1"}).headers["x-request-id"] == "abc-1"
    for odd in ("a b", "x" * 65, '"', "é"):
        given = client.get("/healthz", headers={"x-request-id": odd.encode("latin-1")}).headers[
            "x-request-id"
        ]
        assert given != odd
        assert len(given) == 32


def test_logs_are_lines_of_json_without_tokens_or_queries(caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("dekag").propagate = True
    with caplog.at_level(logging.INFO, "dekag.serving"):
        tiny(tokens=[TOKEN]).get(f"/v1/fail?key={TOKEN}", headers=bearer(TOKEN))
    lines = [json.loads(JsonLines().format(record)) for record in caplog.records]
    assert [line["event"] for line in lines] == ["a request failed", "request"]
    assert lines[1]["status"] == 500
    assert lines[1]["path"] == "/v1/fail"
    assert "RuntimeError" in lines[0]["error"]
    assert TOKEN not in json.dumps(lines)
    record = logging.LogRecord("dekag", logging.INFO, "", 0, "odd \ud800\n", (), None)
    record.__dict__ |= facts(name="x")
    assert json.loads(JsonLines().format(record))["name"] == "x"


def test_metrics_count_by_route_and_not_by_path() -> None:
    client = tiny()
    for number in range(20):
        client.get(f"/page/{number}")
        client.get(f"/nothing/{number}")
    told = client.get("/metrics").text
    assert 'dekag_http_requests_total{method="GET",route="/page/{name}",status="200"} 20.0' in told
    assert 'dekag_http_requests_total{method="GET",route="none",status="404"} 20.0' in told


def test_a_taken_port_is_one_clear_line() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        settings = load_settings(ServiceSettings, port=port)
        with pytest.raises(InputError, match=f"127.0.0.1 port {port} cannot be listened on"):
            serve(tiny_app(settings), settings)


def closed_after(port: int, first: bytes, drip: bytes | None, *, within: float) -> tuple[float, bytes]:
    """Seconds until the server closes a connection that sends little or nothing, and what it said."""
    said, started = b"", time.monotonic()
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(first)
        connection.settimeout(0.2)
        while time.monotonic() - started < within:
            try:
                part = connection.recv(4096)
            except TimeoutError:
                try:
                    connection.sendall(drip or b"")
                except OSError:
                    break
                continue
            except OSError:
                break
            if not part:
                break
            said += part
    return time.monotonic() - started, said


POST = b"POST /v1/images/generations HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
SLOW = {
    "no header": (b"", None),
    "half a header": (b"GET / HTTP/1.1\r\nHost: localhost\r\n", None),
    "dripping header": (b"GET / HTTP/1.1\r\nHost: localhost\r\n", b"a: b\r\n"),
    "dripping body": (POST + b"Content-Length: 1000\r\n\r\n{", b" "),
    "dripping chunks": (POST + b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n", b"1\r\n \r\n"),
    "no body": (POST + b"Content-Length: 1000\r\n\r\n", None),
    "idle": (b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n", None),
}


def attack(service: RunningService, *, copies: int, seconds: float) -> list[float]:
    """Every slow client so many times at once; returns the times of probes meanwhile."""
    results: dict[str, list[tuple[float, bytes]]] = {name: [] for name in SLOW}

    def run(name: str) -> None:
        results[name].append(closed_after(service.port, *SLOW[name], within=seconds + 10))

    threads = [threading.Thread(target=run, args=(name,)) for name in SLOW for _ in range(copies)]
    for thread in threads:
        thread.start()
    probes = []
    with httpx2.Client() as client:
        while any(thread.is_alive() for thread in threads):
            started = time.perf_counter()
            assert client.get(f"{service.url}/healthz").status_code == 200
            probes.append(time.perf_counter() - started)
            time.sleep(0.02)
    slowest = max(taken for all_ in results.values() for taken, _ in all_)
    for name in ("dripping body", "dripping chunks", "no body"):
        assert all(b" 408 " in said for _, said in results[name])
    p99 = statistics.quantiles(probes, n=100)[98]
    print(
        f"{len(threads)} slow connections: closed within {slowest:.1f} s, deadline {seconds:g} s;"
        f" {len(probes)} probes meanwhile, p99 {1000 * p99:.0f} ms"
    )
    assert slowest < seconds + 1.5
    return probes


def flood(service: RunningService, megabytes: int) -> None:
    """Send a body that is too large, with its length and without; both are refused and nothing is kept."""
    before = service.resident_bytes
    length = b"Content-Length: %d\r\n\r\n" % (megabytes << 20)
    for head, chunk in ((length, b" " * 65536), (b"Transfer-Encoding: chunked\r\n\r\n", CHUNK)):
        said, sent = b"", 0
        with socket.create_connection(("127.0.0.1", service.port)) as connection:
            connection.sendall(POST + head)
            try:
                while sent < megabytes << 20:
                    sent += connection.send(chunk)
            except OSError:
                pass
            connection.settimeout(5)
            try:
                said = connection.recv(4096)
            except OSError:
                said = b"reset"
        print(f"a body of {megabytes} MB: {sent / 2**20:.1f} MB were taken, {said[:20]!r}")
        assert b" 413 " in said or said == b"reset"
        assert sent < 32 << 20
    assert service.resident_bytes - before < 20 << 20


CHUNK = b"10000\r\n" + b" " * 65536 + b"\r\n"


@pytest.mark.alone
def test_slow_and_huge_requests_cost_nothing(tmp_path: Path) -> None:
    """Deadlines of one second; `test_slow_clients_do_not_disturb_an_edge` has the real ones."""
    with tiny_process(tmp_path, header_seconds=1, body_seconds=1, max_in_flight=16) as service:
        attack(service, copies=5, seconds=1)
        flood(service, 300)
        crowd(service, 16)


def crowd(service: RunningService, most: int) -> None:
    """As many requests as may be in flight: the next one is told to come back, and probes are answered."""
    with ExitStack() as stack, httpx2.Client(base_url=service.url) as client:
        for _ in range(most):
            address = ("127.0.0.1", service.port)
            stack.enter_context(socket.create_connection(address)).sendall(
                POST + b"Content-Length: 9\r\n\r\n"
            )
        time.sleep(0.3)
        busy, probe = client.get("/v1/refuse"), client.get("/healthz")
        assert (busy.status_code, probe.status_code) == (429, 200)
        assert busy.headers["retry-after"] == "1"
        time.sleep(1.5)
        assert client.get("/v1/refuse").status_code == 400


@pytest.mark.slow
def test_slow_clients_do_not_disturb_an_edge(tmp_path: Path) -> None:
    """500 slow connections against the deadlines of the settings; probes stay under 250 ms at p99."""
    with run_service("edge", tmp_path) as service:
        probes = attack(service, copies=72, seconds=10)
        assert statistics.quantiles(probes, n=100)[98] < 0.25
        flood(service, 300)


def test_a_wrong_key_is_an_authentication_error_and_leaves_no_trace(tmp_path: Path) -> None:
    with tiny_process(tmp_path, tokens=json.dumps([TOKEN])) as service:
        with openai.OpenAI(base_url=f"{service.url}/v1", api_key="a-wrong-key", max_retries=0) as wrong:
            with pytest.raises(openai.AuthenticationError) as refused:
                wrong.images.generate(prompt="x")
            assert refused.value.code == "invalid_api_key"
        with openai.OpenAI(base_url=f"{service.url}/v1", api_key=TOKEN) as right:
            right.images.generate(prompt="a-secret-prompt")
        text = service.log.read_text()
        assert service.number("dekag_http_requests_total") >= 2
    assert TOKEN not in text
    assert "a-wrong-key" not in text
    assert "a-secret-prompt" not in text
