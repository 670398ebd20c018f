"""How a service stops: told to a balancer first, with what has begun, at once, or with whoever started it."""

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import httpx2
import pytest
from places import HELPERS
from running_service import RunningService, free_port, ready
from test_serving_http import tiny_process
from test_serving_readers import ask, begun, read_at
from tiny_service import LARGE
from waiting import wait_for


def poll(service: RunningService, seen: list[str]) -> None:
    """What a balancer that asks /readyz sees, up to the first refused connection."""
    while True:
        try:
            answer = httpx2.get(f"{service.url}/readyz")
        except httpx2.TransportError:
            seen.append("refused")
            return
        seen.append("ready" if answer.status_code == 200 else answer.json()["error"]["message"])
        time.sleep(0.02)


def test_a_balancer_sees_it_before_anybody_is_refused(tmp_path: Path) -> None:
    """Half a dozen clients go on until a balancer would have seen it; none of their requests fails, nor a long one."""
    statuses, failures, seen = list[int](), list[Exception](), list[str]()
    with tiny_process(tmp_path, drain_seconds=1) as service:
        stop_sending = threading.Event()

        def work(path: str) -> None:
            with httpx2.Client(base_url=service.url, timeout=10) as client:
                while not stop_sending.is_set():
                    try:
                        statuses.append(client.get(path).status_code)
                    except Exception as error:
                        failures.append(error)

        paths = ["/page/a", "/page/slow/answer?seconds=0.05", "/page/slow/answer?seconds=1.8"]
        threads = [threading.Thread(target=work, args=(path,)) for path in 2 * paths]
        balancer = threading.Thread(target=poll, args=(service, seen))
        for thread in (*threads, balancer):
            thread.start()
        time.sleep(0.5)
        started = time.monotonic()
        service.process.send_signal(signal.SIGTERM)
        wait_for(lambda: "stopping" in seen)
        time.sleep(0.3)  # a balancer may take its time
        stop_sending.set()
        for thread in (*threads, balancer):
            thread.join()
        service.process.wait(10)
        lasted = time.monotonic() - started
    print(
        f"{len(statuses)} requests, {len(failures)} failed; {seen.count('stopping')} polls saw it; {lasted:.1f} s"
    )
    assert not failures
    assert set(statuses) == {200}
    assert sorted(set(seen), key=seen.index) == ["ready", "stopping", "refused"]
    assert seen.count("stopping") >= 5
    assert service.process.returncode == 0
    assert 1 <= lasted < 4


@pytest.mark.parametrize(
    "signals", [[signal.SIGINT], [signal.SIGTERM, signal.SIGTERM], [signal.SIGTERM, signal.SIGINT]]
)
def test_an_interrupt_or_a_second_signal_stops_at_once(signals: list[signal.Signals], tmp_path: Path) -> None:
    with tiny_process(tmp_path, drain_seconds=60) as service:
        for number in signals:
            service.process.send_signal(number)
            time.sleep(0.2)
        assert service.process.wait(3) == 0


def test_answers_say_that_the_next_one_comes_from_elsewhere(tmp_path: Path) -> None:
    """While it drains, each answer ends its connection."""
    with tiny_process(tmp_path, drain_seconds=60) as service, httpx2.Client(base_url=service.url) as client:
        assert "connection" not in client.get("/page/a").headers
        service.process.send_signal(signal.SIGTERM)
        wait_for(lambda: not ready(service.url))
        assert client.get("/page/a").headers["connection"] == "close"
        assert client.get("/healthz").status_code == 200
        service.process.send_signal(signal.SIGTERM)


def test_what_has_begun_is_finished_and_who_does_not_read_is_not_waited_for(tmp_path: Path) -> None:
    """A download goes on after the port has closed, a stream ends in order; unread files end with their deadline."""
    with tiny_process(tmp_path, write_seconds=2) as service, ExitStack() as stack:
        unread = [stack.enter_context(begun(service, "/page/large/file")) for _ in range(5)]
        download = stack.enter_context(begun(service, "/page/large/file"))
        stream = stack.enter_context(ask(service, "/page/events/0.1"))
        time.sleep(0.3)
        service.process.send_signal(signal.SIGTERM)
        said, _ = read_at(download, 3e6, within=10)
        assert said.endswith(LARGE.read_bytes())
        assert read_at(stream, 1e7, within=3)[0].endswith(b"\r\n0\r\n\r\n")
        assert service.process.wait(8) == 0
        assert len(unread) == 5
        assert service.errors == 0


def started(port: int, stdin: int) -> "subprocess.Popen[bytes]":
    """The tiny service, told to stop with its standard input."""
    environment = {**os.environ, "DEKAG_STOP_WITH_INPUT": "1", "DEKAG_DRAIN_SECONDS": "60"}
    command = [sys.executable, str(HELPERS / "tiny_service.py"), str(port)]
    return subprocess.Popen(command, stdin=stdin, stderr=subprocess.PIPE, env=environment)


def test_a_service_stops_with_who_holds_its_input() -> None:
    port = free_port()
    with started(port, subprocess.PIPE) as process:
        assert process.stdin is not None
        wait_for(lambda: ready(f"http://127.0.0.1:{port}"))
        process.stdin.write(b"whatever\n")
        process.stdin.flush()
        time.sleep(0.3)
        assert ready(f"http://127.0.0.1:{port}")
        process.stdin.close()
        assert process.wait(3) == 0


def test_an_input_that_cannot_end_is_refused() -> None:
    with started(free_port(), subprocess.DEVNULL) as process:
        assert process.stderr is not None
        assert b"STOP_WITH_INPUT needs a pipe as standard input" in process.stderr.read()
        assert process.wait(5) != 0
