"""One command starts the cloud, an edge and the page; an interrupt stops all of it."""

import base64
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import psutil
import pytest
from running_service import free_port
from waiting import wait_for

from dekag.bundle.bundle import load_bundle
from dekag.serving.up import Site
from dekag.types import InputError
from dekag.world import shipped


def command(site: Site) -> list[str]:
    options = ["--folder", site.folder, "--port", site.port, "--cloud-port", site.cloud_port]
    return [sys.executable, "-m", "dekag", "up", *map(str, options)]


@contextmanager
def up(site: Site) -> Iterator[subprocess.Popen[str]]:
    """The command, once it has said that everything runs."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command(site), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline().split() == ["page", "and", "edge", site.edge_url]
            assert process.stdout.readline().split() == ["cloud", site.cloud_url]
            yield process
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(60)


@pytest.mark.slow
def test_what_up_started_ends_with_it(tmp_path: Path) -> None:
    """kill -9 runs no clean-up: the edge, the cloud and the worker of a job end, and leave their ports."""
    site = Site(folder=tmp_path / "site", port=free_port(), cloud_port=free_port())
    job = {"name": "fruit", "prompts": ["a red apple on a blue background"], "steps": 10_000}
    with up(site) as process:
        assert httpx2.post(f"{site.cloud_url}/v1/jobs", json=job).status_code == 201
        itself = psutil.Process(process.pid)
        # the edge, the cloud and its worker
        wait_for(lambda: len(itself.children(recursive=True)) >= 3, seconds=60)
        family = itself.children(recursive=True)
        process.kill()
        started = time.monotonic()
        gone, left = psutil.wait_procs(family, timeout=10)
        print(f"{len(gone)} processes ended {time.monotonic() - started:.1f} s after kill -9")
        assert not left, [one.cmdline() for one in left]
    for port in (site.port, site.cloud_port):
        with socket.socket() as taken:
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            taken.bind(("127.0.0.1", port))


def png(url: str, **fields: object) -> bytes:
    """A picture from one of the parties."""
    body = {"prompt": "a red apple on a blue background", "seed": 3, **fields}
    answer = httpx2.post(f"{url}/v1/images/generations", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    return base64.b64decode(answer.json()["data"][0]["b64_json"])


def listens(url: str) -> bool:
    try:
        return httpx2.get(f"{url}/healthz").status_code == 200
    except httpx2.TransportError:
        return False


@pytest.mark.slow
def test_up_serves_three_parties_and_stops_in_order(tmp_path: Path) -> None:
    """The edge draws with the updates that the cloud publishes; the second start finds everything there."""
    site = Site(folder=tmp_path / "site", port=free_port(), cloud_port=free_port())
    made_for = {kind: load_bundle(shipped(f"emoji/{name}")).id for kind, name in
                (("generation", "makd"), ("transmission", "cala"))}  # fmt: skip
    with up(site) as process:
        bundles = httpx2.get(f"{site.edge_url}/v1/bundles").json()["bundles"]
        assert {b["kind"]: b["id"] for b in bundles if b["active"]} == made_for
        assert png(site.edge_url) != png(site.edge_url, bundle="none") != png(site.cloud_url, model="cloud")
        assert "<html" in httpx2.get(site.edge_url).text
    assert process.returncode == 0
    assert not listens(site.edge_url)
    assert not listens(site.cloud_url)


@pytest.mark.slow
def test_a_second_start_finds_everything_there(tmp_path: Path) -> None:
    """Nothing is published or made twice."""
    site = Site(folder=tmp_path / "site", port=free_port(), cloud_port=free_port())
    with up(site):
        pass
    metadata = site.folder / "cloud" / "registry" / "metadata"
    published = sorted(path.name for path in metadata.glob("*.targets.json"))
    with up(site) as process:
        assert sorted(path.name for path in metadata.glob("*.targets.json")) == published
        assert len(httpx2.get(f"{site.edge_url}/v1/bundles").json()["bundles"]) == 2
    assert process.returncode == 0


@pytest.mark.slow
def test_a_taken_port_is_one_line_and_nothing_is_made(tmp_path: Path) -> None:
    """Bad input: one line, exit 2, nothing half-written."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        site = Site(folder=tmp_path / "site", port=int(taken.getsockname()[1]), cloud_port=free_port())
        done = subprocess.run(command(site), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert f"port {site.port} is taken" in done.stderr.splitlines()[-1]
    assert not site.folder.exists()


def test_one_port_for_both_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a port each"):
        Site(folder=tmp_path, port=9000, cloud_port=9000)
