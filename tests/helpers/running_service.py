"""A service in a process of its own, as `dekag serve` starts it, for tests that are its clients."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

START_SECONDS = 120.0


@dataclass(kw_only=True)
class RunningService:
    """A running service."""

    url: str
    command: Sequence[str]
    environment: dict[str, str]
    log: Path
    process: subprocess.Popen[bytes]
    probe: str = "/readyz"
    """What answers 200 once it is up."""

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    @property
    def resident_bytes(self) -> int:
        return int(psutil.Process(self.process.pid).memory_info().rss)

    @property
    def descriptors(self) -> int:
        return int(psutil.Process(self.process.pid).num_fds())

    @property
    def threads(self) -> int:
        return int(psutil.Process(self.process.pid).num_threads())

    def logged(self) -> list[dict[str, Any]]:
        """The lines of its log that are events."""
        lines = self.log.read_text().splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]

    @property
    def errors(self) -> int:
        """Lines of its log that tell of a failure."""
        return sum(line["level"] == "error" for line in self.logged())

    def number(self, name: str) -> float:
        """One of its metrics, summed over the labels."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        values = [float(line.split()[-1]) for line in lines if line.split("{")[0].split(" ")[0] == name]
        return sum(values)

    def kill(self) -> None:
        """As a power cut: no clean-up runs."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def restart(self) -> None:
        """Start what was killed, and wait until it is ready."""
        self.process = launch(self.command, self.environment, self.log)
        self.wait()

    def wait(self) -> None:
        """Until it is ready."""
        deadline = time.monotonic() + START_SECONDS
        while not ready(self.url, self.probe):
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.process.kill()
                raise RuntimeError(f"{self.command} did not start:\n{self.log.read_text()[-3000:]}")
            time.sleep(0.05)


def free_port() -> int:
    """A port on loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def ready(url: str, probe: str = "/readyz") -> bool:
    """Whether a service says by its probe that it can work."""
    try:
        with urllib.request.urlopen(f"{url}{probe}", timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def launch(command: Sequence[str], environment: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("ab") as out:
        return subprocess.Popen([sys.executable, *command], stdout=out, stderr=out, env=environment)


@contextmanager
def run_service(party: str, folder: Path, *options: str, **settings: object) -> Iterator[RunningService]:
    """`dekag serve PARTY` with these options, and settings that go into its environment by their names."""
    port = free_port()
    command = ["-m", "dekag", "serve", party, "--folder", str(folder / party), "--port", str(port), *options]
    prefix = f"DEKAG_{party.upper()}_"
    variables = {f"{prefix}{name.upper()}": str(value) for name, value in settings.items()}
    with run_command(command, folder / f"{party}.log", port, variables) as service:
        yield service


@contextmanager
def run_command(
    command: Sequence[str], log: Path, port: int, settings: dict[str, str], *, probe: str = "/readyz"
) -> Iterator[RunningService]:
    """A service for the time of a test, once its probe answers."""
    # most tests have nobody in front of the service who has to be told before it stops
    drain = {f"DEKAG_{party}DRAIN_SECONDS": "0" for party in ("", "EDGE_", "CLOUD_")}
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **drain, **settings}
    service = RunningService(
        url=f"http://127.0.0.1:{port}",
        command=command,
        environment=environment,
        log=log,
        process=launch(command, environment, log),
        probe=probe,
    )
    try:
        service.wait()
        yield service
    finally:
        with suppress(ProcessLookupError):
            service.process.send_signal(signal.SIGTERM)
        try:
            service.process.wait(20)
        except subprocess.TimeoutExpired:
            service.kill()
            raise
