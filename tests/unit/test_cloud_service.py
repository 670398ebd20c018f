"""The cloud as a process: jobs from submission to an update that edges accept, through kills and cancellations."""

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cloud_process import CloudProcess, cloud_process, wait_for
from typer.testing import CliRunner

from dekag.alignment.bundle import load_bundle
from dekag.cli import app
from dekag.registry import RegistryClient, Shelf
from dekag.serving.cloud.client import CloudClient, Event

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


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CloudProcess]:
    with cloud_process(tmp_path_factory.mktemp("cloud")) as cloud:
        yield cloud


@pytest.fixture
def client(cloud: CloudProcess) -> Iterator[CloudClient]:
    with CloudClient(cloud.url) as client:
        yield client


def pulled(cloud: CloudProcess, folder: Path, name: str) -> str:
    """Id of the bundle of that name in channel canary, pulled and verified as an edge does it."""
    root = (cloud.folder / "keys" / "root.json").read_bytes()
    edge = RegistryClient(f"{cloud.url}/registry", folder / "trust", root=root)
    shelf = Shelf(folder / "shelf")
    (listing,) = [listing for listing in edge.channel("canary") if listing.name == name]
    edge.fetch(listing, shelf)
    assert listing.canary is not None
    return load_bundle(shelf.path(listing.id)).id


def trained(events: list[Event]) -> list[int]:
    """The steps of training that were told of."""
    return [event.data["step"] for event in events if event.data.get("loss") is not None]


def test_a_job_outlives_its_worker_and_is_published(
    cloud: CloudProcess, client: CloudClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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
            cloud.workers()[0].kill()
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
    assert pulled(cloud, tmp_path, "fruit") == done["bundle"]
    listed = CliRunner().invoke(app, ["jobs", "list"])
    assert f"{job} done fruit {done['bundle'][:12]}" in listed.output
    wait_for(lambda: not (cloud.folder / "jobs" / job).exists())


def test_a_cancelled_job_ends_and_leaves_nothing(cloud: CloudProcess, client: CloudClient) -> None:
    job = client.submit({"name": "cancelled", **TINY, "steps": 100_000})["id"]
    wait_for(lambda: client.job(job)["step"] > 0)
    assert cloud.workers()
    assert client.cancel(job)["state"] == "cancelled"
    wait_for(lambda: not cloud.workers())
    wait_for(lambda: not (cloud.folder / "jobs" / job).exists())
    assert [event.kind for event in client.events(job)][-1] == "cancelled"
    registry = RegistryClient(
        f"{cloud.url}/registry",
        cloud.folder / "trust",
        root=(cloud.folder / "keys" / "root.json").read_bytes(),
    )
    assert all(listing.name != "cancelled" for listing in registry.channel("canary"))


@pytest.mark.parametrize(
    "path",
    ["/registry/../cloud.db", "/registry/%2e%2e/cloud.db", "/registry/metadata/%2e%2e/%2e%2e/keys/root.json"],
)
def test_no_path_leads_out_of_the_registry(cloud: CloudProcess, path: str) -> None:
    """Sent as it is, by no client that would tidy it up."""
    with socket.create_connection(("127.0.0.1", cloud.port)) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        answer = b"".join(iter(lambda: connection.recv(1 << 16), b""))
    assert answer.split(b" ")[1] == b"404"
    assert b"SQLite" not in answer


@pytest.mark.slow
def test_a_killed_cloud_goes_on_and_ends_in_the_same_bytes(tmp_path: Path) -> None:
    """kill -9 of the whole cloud, four times in two stages or three; the update is that of an undisturbed job.

    Its worker dies with it, so that no two ever work on one job.
    """
    spec = {**TINY, "metaword_steps": 20, "steps": 150, "frozen_steps": 250}
    with cloud_process(tmp_path) as cloud, CloudClient(cloud.url) as client:
        undisturbed = client.submit({"name": "one", **spec})["id"]
        for _ in client.events(undisturbed):
            pass
        job = client.submit({"name": "two", **spec})["id"]
        killed = []
        for step in (1, 145, 295, 330):
            wait_for(lambda step=step: client.job(job)["step"] >= step)  # type: ignore[misc]
            (worker,) = cloud.workers()
            cloud.kill()
            worker.wait(10)
            cloud.start()
            killed.append(client.job(job)["step"])
        events = list(client.events(job))
        starts = [place for place, event in enumerate(events) if event.kind == "running"]
        resumed = [trained(events[place:])[0] for place in starts[1:]]
        print(f"killed at steps {killed} of 420, went on at {resumed}")
        # ends of stages are kept, and every 100th step within one
        assert all(kept < step for kept, step in zip((0, 120, 270, 270), resumed, strict=True))
        assert client.job(job)["bundle"] == client.job(undisturbed)["bundle"]
