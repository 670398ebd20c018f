"""A cloud as operators run it: `dekag serve cloud` in a process of its own, on a folder that outlives it."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx2
import psutil

from dekag.registry import Repository

WORKER = "dekag.serving.cloud.worker"
SECONDS = 120.0
"""Longest wait for anything; a busy machine is slow."""


class CloudProcess:
    """A cloud that can be killed and started again at the same address."""

    def __init__(self, folder: Path, **environment: str) -> None:
        self.folder = folder
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = folder / "server.log"
        own = {
            "DEKAG_CLOUD_FOLDER": str(folder),
            "DEKAG_CLOUD_PORT": str(self.port),
            "DEKAG_CLOUD_DEVICE": "cpu",
            "DEKAG_CLOUD_IMAGES": "false",
            "OMP_NUM_THREADS": "1",
        }
        self.environment = {**os.environ, **own, **environment}
        self._process: subprocess.Popen[bytes] | None = None

    def prepare(self) -> None:
        """Make the database and the registry."""
        self._dekag("cloud", "migrate").wait(SECONDS)
        Repository.init(str(self.folder / "registry"), self.folder / "keys")

    def start(self) -> None:
        """Start, and wait until it is ready."""
        self._process = self._dekag("serve", "cloud")
        wait_for(self._is_ready, lambda: self.log.read_text())

    def kill(self) -> None:
        """kill -9."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def stop(self) -> int:
        """As an operator stops it; the exit code."""
        assert self._process is not None
        self._process.terminate()
        return self._process.wait(SECONDS)

    def workers(self) -> list[psutil.Process]:
        """The processes of its jobs."""
        assert self._process is not None
        found = []
        for child in psutil.Process(self._process.pid).children():
            with suppress(psutil.NoSuchProcess):  # it may end between two questions
                if WORKER in child.cmdline():
                    found.append(child)
        return found

    def _is_ready(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self.log.read_text()
        try:
            return httpx2.get(f"{self.url}/readyz").status_code == 200
        except httpx2.TransportError:
            return False

    def _dekag(self, *words: str) -> "subprocess.Popen[bytes]":
        with self.log.open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "dekag", *words], stdout=log, stderr=log, env=self.environment
            )


@contextmanager
def cloud_process(folder: Path, **environment: str) -> Iterator[CloudProcess]:
    """A cloud that is ready; it is gone afterwards."""
    cloud = CloudProcess(folder, **environment)
    cloud.prepare()
    cloud.start()
    try:
        yield cloud
    finally:
        cloud.kill()


def wait_for(condition: Callable[[], bool], told: Callable[[], str] = lambda: "") -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, told()
        time.sleep(0.05)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
