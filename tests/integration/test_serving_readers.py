"""Clients that read little or nothing of what they asked for, and peers with many connections."""

import socket
import statistics
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx2
import pytest
from running_service import RunningService, run_service
from test_serving_http import TOKEN, tiny_process
from tiny_service import LARGE
from waiting import wait_for

from dekag.serving.http.connections import SEND_BUFFER_BYTES

PAGE = "/page/vendor/onnxruntime-web-1.30.0/ort-wasm-simd-threaded.wasm"
FILE = "/page/large/file"
TOKENS = f'["{TOKEN}"]'
ESTABLISHED, LISTENING = "01", "0A"
"""States in /proc/net/tcp."""


def ask(service: RunningService, path: str, *, window: int | None = None) -> socket.socket:
    """A connection that has asked for something. window: the bytes that the client's kernel takes."""
    connection = socket.socket()
    if window is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window)
    connection.connect(("127.0.0.1", service.port))
    connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    return connection


def begun(service: RunningService, path: str) -> socket.socket:
    """A connection whose answer has begun, and of which nothing is read; who is told to come back does so."""
    while True:
        connection = ask(service, path)
        connection.settimeout(20)
        if b" 200 " in connection.recv(15, socket.MSG_PEEK):
            return connection
        connection.close()
        time.sleep(0.1)


def kept(port: int) -> tuple[int, int]:
    """Connections that a server has or for which its kernel keeps something, and the bytes that wait in them."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    ours = [(row[3], int(row[4].split(":")[0], 16)) for row in rows if row[1].endswith(f":{port:04X}")]
    queues = [queued for state, queued in ours if state == ESTABLISHED or (state != LISTENING and queued)]
    return len(queues), sum(queues)


@contextmanager
def probed(service: RunningService) -> Iterator[list[float]]:
    """Within, /healthz is asked again and again by new connections; the seconds of each answer."""
    times, done = list[float](), threading.Event()

    def probe() -> None:
        while not done.wait(0.02):
            started = time.perf_counter()
            assert httpx2.get(f"{service.url}/healthz", timeout=10).status_code == 200
            times.append(time.perf_counter() - started)

    thread = threading.Thread(target=probe)
    thread.start()
    try:
        yield times
    finally:
        done.set()
        thread.join()


def never_read(service: RunningService, path: str, *, copies: int, within: float) -> None:
    """So many ask and read nothing: memory, the kernel's and the probes meanwhile, and when the last one is gone."""
    before, most, queued = service.resident_bytes, 0, 0
    with ExitStack() as stack, probed(service) as times:
        started = time.monotonic()
        with ThreadPoolExecutor(32) as pool:
            for connection in pool.map(lambda _: begun(service, path), range(copies)):
                stack.enter_context(connection)
        opened = time.monotonic() - started
        while True:
            left, waiting = kept(service.port)
            most, queued = max(most, service.resident_bytes - before), max(queued, waiting)
            if left < 5:  # a probe or two
                break
            assert time.monotonic() - started < within, f"{left} are still there"
            time.sleep(0.2)
        gone = time.monotonic() - started
    p99 = statistics.quantiles(times, n=100)[98]
    print(
        f"{copies} readers that read nothing, there after {opened:.1f} s, gone after {gone:.1f} s:"
        f" {most / 2**20:+.0f} MiB of {before / 2**20:.0f} MiB, {queued / 2**20:.0f} MiB in the kernel;"
        f" {len(times)} probes, p99 {1000 * p99:.0f} ms, slowest {1000 * max(times):.0f} ms"
    )
    assert most < 200 << 20
    assert queued < copies * 3 * SEND_BUFFER_BYTES
    assert p99 < 0.25


@pytest.mark.alone
def test_readers_that_read_nothing_cost_little_and_are_ended(tmp_path: Path) -> None:
    """`test_750_readers_that_read_nothing` has the real deadlines; with a fixed 2 s here, 60 are gone within 6 s."""
    with tiny_process(tmp_path, tokens=TOKENS, write_seconds=2) as service:
        before = service.resident_bytes
        never_read(service, FILE, copies=60, within=6)
        assert service.resident_bytes - before < 30 << 20


@pytest.mark.slow
@pytest.mark.alone
def test_750_readers_that_read_nothing(tmp_path: Path) -> None:
    """Without a token, against an edge with a model and the settings as they are."""
    with run_service("edge", tmp_path, tokens=TOKENS) as service:
        never_read(service, PAGE, copies=750, within=60)
