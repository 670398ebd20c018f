"""Clients that read little or nothing of what they asked for, and peers with many connections."""

import random
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
from running_service import RunningService, free_port, run_service
from test_serving_http import TOKEN, tiny_process
from tiny_service import LARGE
from waiting import wait_for

from dekag.registry.repository import Repository
from dekag.serving.cloud.database import migrate, open_database
from dekag.serving.cloud.settings import CloudSettings
from dekag.serving.http.connections import SEND_BUFFER_BYTES, _Connection, _marked, _peer, listen
from dekag.serving.http.settings import ServiceSettings

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


def never_read(service: RunningService, path: str, *, copies: int, within: float) -> list[float]:
    """So many ask and read nothing: memory and the kernel's meanwhile, and when the last one is gone.

    Returns the seconds of the probes meanwhile.
    """
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
        gone, after = time.monotonic() - started, service.resident_bytes - before
    p99 = statistics.quantiles(times, n=100)[98]
    print(
        f"{copies} readers that read nothing, there after {opened:.1f} s, gone after {gone:.1f} s:"
        f" {most / 2**20:+.0f} MiB of {before / 2**20:.0f} MiB, {after / 2**20:+.0f} MiB afterwards;"
        f" {queued / 2**20:.0f} MiB in the kernel; {len(times)} probes, p99 {1000 * p99:.0f} ms,"
        f" slowest {1000 * max(times):.0f} ms"
    )
    assert most < 200 << 20
    assert queued < copies * 3 * SEND_BUFFER_BYTES
    return times


@pytest.mark.alone
def test_readers_that_read_nothing_cost_little_and_are_ended(tmp_path: Path) -> None:
    """`test_750_readers_that_read_nothing` has the real deadlines; with a fixed 2 s here, 60 are gone within 6 s."""
    with tiny_process(tmp_path, tokens=TOKENS, write_seconds=2) as service:
        before = service.resident_bytes
        times = never_read(service, FILE, copies=60, within=6)
        assert statistics.median(times) < 0.25  # too few for the tail
        assert service.resident_bytes - before < 30 << 20
        # what the allocator keeps, it uses again
        after, descriptors = service.resident_bytes, service.descriptors
        never_read(service, FILE, copies=60, within=6)
        assert service.resident_bytes - after < 6 << 20
        assert service.descriptors <= descriptors + 5


@pytest.mark.slow
@pytest.mark.alone
def test_750_readers_that_read_nothing(tmp_path: Path) -> None:
    """Without a token, against an edge with a model and the settings as they are."""
    with run_service("edge", tmp_path, tokens=TOKENS) as service:
        times = never_read(service, PAGE, copies=750, within=60)
        assert statistics.quantiles(times, n=100)[98] < 0.25


@pytest.mark.slow
@pytest.mark.alone
def test_readers_of_a_registry_that_read_nothing(tmp_path: Path) -> None:
    """A bundle of 64 MB costs the cloud no more than a small file."""
    chosen = CloudSettings(folder=tmp_path / "cloud")
    engine = open_database(chosen.database_address)
    migrate(engine)
    engine.dispose()
    Repository.init(chosen.registry_address, chosen.keys_folder)
    large = Path(chosen.registry_address, "targets", f"{'a' * 64}.large.tar")
    large.parent.mkdir(exist_ok=True)
    with large.open("wb") as file:
        file.truncate(64 << 20)
    given = {"tokens": TOKENS, "images": "false", "job_workers": "0", "write_seconds": "5"}
    with run_service("cloud", tmp_path, **given) as service:
        never_read(service, f"/registry/targets/{large.name}", copies=200, within=30)
        assert len(httpx2.get(f"{service.url}/registry/targets/{large.name}").content) == 64 << 20


def read_at(connection: socket.socket, rate: float, *, within: float) -> tuple[bytes, float]:
    """All that comes, in tenths of a second at so many bytes a second, and the seconds until the end."""
    said, started = b"", time.monotonic()
    while time.monotonic() - started < within:
        try:
            part = connection.recv(max(1, round(rate / 10)))
        except ConnectionError:
            break
        if not part:
            break
        said += part
        time.sleep(max(0.0, started + len(said) / rate - time.monotonic()))
    return said, time.monotonic() - started


def slow_but_honest(service: RunningService, path: str, *, rate: float) -> float:
    """A client that reads so many bytes a second gets the whole file; returns the seconds that it took."""
    with ask(service, path) as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        said, seconds = read_at(connection, rate, within=120)
    head, _, rest = said.partition(b"\r\n\r\n")
    assert b" 200 " in head
    file = LARGE.read_bytes()
    assert rest[: len(file)] == file
    assert b'{"status": "ok"}' in rest[len(file) :].replace(b'":"', b'": "')
    return seconds


@pytest.mark.slow
def test_an_honest_slow_client_gets_its_file(tmp_path: Path) -> None:
    """At 1.5 MB/s it takes some five times as long as either deadline; `..._at_100_kB_s` is the real one."""
    with tiny_process(tmp_path, write_seconds=0.5, answer_seconds=0.5) as service:
        assert slow_but_honest(service, FILE, rate=1.5e6) > 2


@pytest.mark.slow
def test_an_honest_slow_client_gets_its_file_at_100_kb_s(tmp_path: Path) -> None:
    with tiny_process(tmp_path) as service:
        seconds = slow_but_honest(service, FILE, rate=1e5)
    print(f"3.6 MB at 100 kB/s: {seconds:.1f} s")
    assert 30 < seconds < 45


def test_a_drip_of_reading_ends(tmp_path: Path) -> None:
    """Small windows and some bytes now and then are progress; the deadline of what was sent at one time ends it."""
    with tiny_process(tmp_path, answer_seconds=1) as service, ask(service, FILE, window=2304) as connection:
        said, seconds = read_at(connection, 2000, within=8)
        print(f"a reader of 2 kB/s was ended after {seconds:.1f} s and {len(said)} bytes")
        assert 1 <= seconds < 4
        wait_for(lambda: kept(service.port)[0] == 0, seconds=3)


def test_streams_outlive_every_deadline(tmp_path: Path) -> None:
    """One with many events and one with few, for many times the deadlines; the one that is not read is ended."""
    with tiny_process(tmp_path, write_seconds=0.5, answer_seconds=0.5, header_seconds=0.5) as service:
        streams = [ask(service, f"/page/events/{pause}") for pause in ("0.001", "1.5")]
        with ask(service, "/page/events/0", window=2304) as unread, streams[0] as many, streams[1] as few:
            said, _ = read_at(many, 1e7, within=3.2)
            assert said.count(b"data:") > 500
            assert few.recv(65536).count(b"data:") == 3
            read_at(unread, 1e7, within=3)
            with pytest.raises(OSError, match=r"connected|reset|pipe"):
                unread.shutdown(socket.SHUT_WR)


@pytest.mark.slow
def test_a_peer_has_no_more_connections_than_it_may(tmp_path: Path) -> None:
    """Its newest are ended; those that it had, and another peer's, are left alone."""
    with tiny_process(tmp_path, max_connections_by_peer=20) as service, ExitStack() as stack:
        old = [stack.enter_context(ask(service, "/page/slow/answer?seconds=3")) for _ in range(15)]
        other = stack.enter_context(
            socket.create_connection(("127.0.0.1", service.port), source_address=("127.0.0.2", 0))
        )
        time.sleep(1.2)
        for _ in range(25):
            stack.enter_context(ask(service, "/page/slow/answer?seconds=3"))
        wait_for(lambda: kept(service.port)[0] <= 21, seconds=3)
        other.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b" 200 " in other.recv(100)
        assert all(b" 200 " in connection.recv(100) for connection in old)
    (told,) = [line for line in service.logged() if line["event"] == "connections were ended"]
    assert told["too_many"] == 20


@pytest.mark.slow
def test_readers_take_no_places_of_those_who_work(tmp_path: Path) -> None:
    """A place is for what is being answered: twenty unread files leave all four free."""
    with tiny_process(tmp_path, max_in_flight=4) as service, ExitStack() as stack:
        for _ in range(20):
            stack.enter_context(begun(service, FILE))
        for _ in range(4):
            stack.enter_context(ask(service, "/page/slow/answer?seconds=2"))
        time.sleep(0.5)
        assert httpx2.get(f"{service.url}/v1/refuse").status_code == 429
        time.sleep(2)
        assert httpx2.get(f"{service.url}/v1/refuse").status_code == 400


@pytest.mark.parametrize("seed", range(20))
def test_who_reads_what_was_sent_in_time_is_never_late(seed: int) -> None:
    """However much comes after it, and though the queue is never empty: all arrives up to two rounds late here."""
    rng, mark, acked, sent = random.Random(seed), None, 0, [0, 0, 0]
    for now in range(200):
        sent.append(sent[-1] + rng.randrange(1, 1000))
        acked = max(acked, sent[-rng.randrange(2, 4)])
        state = _Connection(descriptor=0, identity=(0, 0), peer=b"", acked=acked, queued=sent[-1] - acked)
        mark = _marked(state, mark, float(now))
        assert mark.since <= now
        assert now - mark.since <= 2


def test_connections_inherit_what_the_server_does_not_set() -> None:
    """Events are sent when they happen (Granian's own sockets do the same), and nothing is kept for long."""
    settings = ServiceSettings(port=free_port(), write_seconds=7)
    with listen(settings) as listening, socket.create_connection(("127.0.0.1", settings.port)):
        connection, _ = listening.accept()
        with connection:
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 7000
            assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) == 2 * SEND_BUFFER_BYTES


def test_peers_are_addresses_and_networks() -> None:
    assert _peer("192.0.2.1") == _peer("::ffff:192.0.2.1") != _peer("192.0.2.2")
    assert _peer("2001:db8:1:2::3") == _peer("2001:db8:1:2:ffff::") != _peer("2001:db8:1:3::3")
    assert _peer("fe80::1%lo") == _peer("fe80::1")
