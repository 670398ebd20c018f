"""The cloud as a process: jobs from submission to an update that edges accept, through kills and cancellations."""

import json
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any

import psutil
import pytest
from postgresql import INSTALLED, postgresql
from running_service import RunningService, run_service
from typer.testing import CliRunner
from waiting import wait_for

from dekag.bundle.bundle import load_bundle
from dekag.cli import app
from dekag.registry import RegistryClient, Repository, Shelf
from dekag.serving.cloud.client import CloudClient, Event
from dekag.serving.cloud.database import migrate, open_database
from dekag.serving.cloud.settings import CloudSettings
from dekag.serving.cloud.store import JobStore

WORKER = "dekag.serving.cloud.worker"
SECONDS = 120.0
"""Longest wait for anything; a busy machine is slow."""
PROMPTS = ["a red apple on a blue background", "a cat face on a pink background"]
TINY: dict[str, Any] = {
    "prompts": PROMPTS,
    "draws": 1,
    "metaword_steps": 10,
    "steps": 20,
    "frozen_steps": 4,
    "batch": 2,
    "rank": 2,
    "validation": False,
}
STEPS = 34


@contextmanager
def cloud_in(folder: Path, **settings: str) -> Iterator[RunningService]:
    """A cloud without images, on a folder whose database and registry are made first."""
    chosen = CloudSettings(folder=folder / "cloud", **settings)
    engine = open_database(chosen.database_address)
    migrate(engine)
    engine.dispose()
    Repository.init(chosen.registry_address, chosen.keys_folder)
    with run_service("cloud", folder, device="cpu", images="false", **settings) as cloud:
        yield cloud


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the cloud of this module is."""
    return tmp_path_factory.mktemp("site")


@pytest.fixture(scope="module")
def cloud(folder: Path) -> Iterator[RunningService]:
    with cloud_in(folder) as cloud:
        yield cloud


@pytest.fixture
def client(cloud: RunningService) -> Iterator[CloudClient]:
    with CloudClient(cloud.url) as client:
        yield client


def workers(cloud: RunningService) -> list[psutil.Process]:
    """The processes of its jobs."""
    found = []
    for child in psutil.Process(cloud.process.pid).children():
        with suppress(psutil.NoSuchProcess):  # it may end between two questions
            if WORKER in child.cmdline():
                found.append(child)
    return found


def edge_of(cloud: RunningService, folder: Path, trust: Path) -> RegistryClient:
    """An edge's view of the cloud's registry."""
    root = (folder / "cloud" / "keys" / "root.json").read_bytes()
    return RegistryClient(f"{cloud.url}/registry", trust, root=root)


def pulled(edge: RegistryClient, shelf: Shelf, name: str) -> str:
    """Id of the bundle of that name in channel canary, verified and put on a shelf."""
    (listing,) = [listing for listing in edge.channel("canary") if listing.name == name]
    edge.fetch(listing, shelf)
    assert listing.canary is not None
    return load_bundle(shelf.path(listing.id)).id


def trained(events: list[Event]) -> list[int]:
    """The steps of training that were told of."""
    return [event.data["step"] for event in events if event.data.get("loss") is not None]


@pytest.mark.slow
def test_a_job_outlives_its_worker_and_is_published(
    cloud: RunningService, client: CloudClient, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Submitted and watched by the command line; kill -9 in the second stage, and the next worker goes on there.

    Then an edge pulls, verifies and loads what came of it.
    """
    monkeypatch.setenv("DEKAG_CLOUD_URL", cloud.url)
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    (tmp_path / "spec.json").write_text(json.dumps({key: TINY[key] for key in TINY.keys() - {"prompts"}}))
    files = ["--prompts-file", str(tmp_path / "prompts.txt"), "--spec", str(tmp_path / "spec.json")]
    submitted = CliRunner().invoke(app, ["jobs", "submit", "fruit", *files])
    assert submitted.exit_code == 0
    job = submitted.output.strip()
    before = 0
    for event in client.events(job):
        before = event.data.get("step", 0)
        if before > TINY["metaword_steps"]:
            workers(cloud)[0].kill()
            break
    watched = CliRunner().invoke(app, ["jobs", "watch", job])
    assert watched.exit_code == 0, watched.output
    for stage in ("metaword", "joint", "frozen", "publish"):
        assert f'"stage": "{stage}"' in watched.output
    events = list(client.events(job))
    second = [place for place, event in enumerate(events) if event.kind == "running"][1]
    resumed = trained(events[second:])[0]
    print(f"killed at step {before} of {STEPS}, went on at {resumed}")
    assert TINY["metaword_steps"] < resumed <= before + 1
    done = client.job(job)
    assert (done["state"], done["step"], done["steps"], done["attempt"]) == ("done", STEPS, STEPS, 2)
    edge = edge_of(cloud, folder, tmp_path / "trust")
    assert pulled(edge, Shelf(tmp_path / "shelf"), "fruit") == done["bundle"]
    listed = CliRunner().invoke(app, ["jobs", "list"])
    assert f"{job} done fruit {done['bundle'][:12]}" in listed.output
    wait_for(lambda: not (folder / "cloud" / "jobs" / job).exists(), seconds=SECONDS)


@pytest.mark.slow
def test_a_cancelled_job_ends_and_leaves_nothing(
    cloud: RunningService, client: CloudClient, folder: Path, tmp_path: Path
) -> None:
    job = client.submit({"name": "cancelled", **TINY, "steps": 100_000})["id"]
    wait_for(lambda: client.job(job)["step"] > 0, seconds=SECONDS)
    assert workers(cloud)
    assert client.cancel(job)["state"] == "cancelled"
    wait_for(lambda: not workers(cloud), seconds=SECONDS)
    wait_for(lambda: not (folder / "cloud" / "jobs" / job).exists(), seconds=SECONDS)
    assert [event.kind for event in client.events(job)][-1] == "cancelled"
    edge = edge_of(cloud, folder, tmp_path / "trust")
    assert all(listing.name != "cancelled" for listing in edge.channel("canary"))


@pytest.mark.parametrize(
    "path",
    ["/registry/../cloud.db", "/registry/%2e%2e/cloud.db", "/registry/metadata/%2e%2e/%2e%2e/keys/root.json"],
)
def test_no_path_leads_out_of_the_registry(cloud: RunningService, path: str) -> None:
    """Sent as it is, by no client that would tidy it up."""
    with socket.create_connection(("127.0.0.1", cloud.port)) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        answer = b"".join(iter(lambda: connection.recv(1 << 16), b""))
    assert answer.split(b" ")[1] == b"404"
    assert b"SQLite" not in answer


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_a_killed_cloud_goes_on_and_ends_in_the_same_bytes(tmp_path: Path, kind: str) -> None:
    """kill -9 of the whole cloud, four times in two stages or three; the update is that of an undisturbed job.

    Its worker dies with it, so that no two ever work on one job.
    """
    spec = {**TINY, "metaword_steps": 20, "steps": 150, "frozen_steps": 250}
    with database(kind) as options, cloud_in(tmp_path, **options) as cloud, CloudClient(cloud.url) as client:
        undisturbed = client.submit({"name": "one", **spec})["id"]
        for _ in client.events(undisturbed):
            pass
        job = client.submit({"name": "two", **spec})["id"]
        killed = []

        def reached(step: int) -> bool:
            return bool(client.job(job)["step"] >= step)

        for step in (1, 145, 295, 330):
            wait_for(partial(reached, step), seconds=SECONDS)
            (worker,) = workers(cloud)
            cloud.kill()
            worker.wait(10)
            cloud.restart()
            killed.append(client.job(job)["step"])
        events = list(client.events(job))
        starts = [place for place, event in enumerate(events) if event.kind == "running"]
        resumed = [trained(events[place:])[0] for place in starts[1:]]
        print(f"{kind}: killed at steps {killed} of 420, went on at {resumed}")
        # ends of stages are kept, and every 100th step within one
        assert all(kept < step for kept, step in zip((0, 120, 270, 270), resumed, strict=True))
        assert client.job(job)["bundle"] == client.job(undisturbed)["bundle"]


@contextmanager
def database(kind: str) -> Iterator[dict[str, str]]:
    """Settings of a cloud's database."""
    if kind == "sqlite":
        yield {}
        return
    if not INSTALLED:
        pytest.skip("PostgreSQL is not installed: apt install postgresql")
    with postgresql() as address:
        yield {"database": address.format(database="postgres")}


@pytest.mark.slow
def test_a_stopped_cloud_ends_soon_and_its_job_goes_on(tmp_path: Path) -> None:
    """SIGTERM, with a watcher connected: the worker ends, the job waits, and the watcher sees its end in the next."""
    with cloud_in(tmp_path) as cloud, CloudClient(cloud.url) as client:
        job = client.submit({"name": "stopped", **TINY, "steps": 150})["id"]
        events: list[Event] = []
        watcher = Thread(target=lambda: events.extend(client.events(job)))
        watcher.start()
        wait_for(lambda: client.job(job)["step"] > 20, seconds=SECONDS)
        (worker,) = workers(cloud)
        started = time.monotonic()
        cloud.process.send_signal(signal.SIGTERM)
        assert cloud.process.wait(SECONDS) == 0
        print(f"stopped in {time.monotonic() - started:.1f} s with a job and a watcher")
        assert time.monotonic() - started < 15
        assert not worker.is_running()
        engine = open_database(CloudSettings(folder=tmp_path / "cloud").database_address)
        waiting = JobStore(engine).get(job)
        engine.dispose()
        assert (waiting.state, waiting.failures) == ("queued", 0)
        cloud.restart()
        watcher.join(SECONDS)
    assert [event.kind for event in events if event.kind != "progress"] == [
        "queued",
        "running",
        "queued",
        "running",
        "done",
    ]
