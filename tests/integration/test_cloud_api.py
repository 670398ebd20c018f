"""The cloud over HTTP, in this process and without workers: jobs, the ledger, the registry's files, and refusals."""

import base64
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image as PillowImage
from pydantic import SecretStr
from sqlalchemy import text
from starlette.testclient import TestClient
from waiting import wait_for

from dekag.data.picture import picture_tensor
from dekag.registry.repository import Repository
from dekag.serving.cloud import api
from dekag.serving.cloud.app import create
from dekag.serving.cloud.database import migrate, open_database
from dekag.serving.cloud.settings import CloudSettings
from dekag.serving.cloud.store import PUBLISHING, Claim, JobStore, Reached
from dekag.types import InputError
from dekag.world import load_world, shipped

SPEC: dict[str, Any] = {"name": "fruit", "prompts": ["a red apple on a blue background"]}
HOST = "http://127.0.0.1"
BUNDLE = "b" * 64


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a cloud with a database and a registry, for copies."""
    settings = CloudSettings(folder=tmp_path_factory.mktemp("cloud"))
    engine = open_database(settings.database_address)
    migrate(engine)
    engine.dispose()
    Repository.init(settings.registry_address, settings.keys_folder)
    return settings.folder


@pytest.fixture
def settings(prepared: Path, tmp_path: Path) -> CloudSettings:
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    return CloudSettings(folder=tmp_path, images=False, max_queued_jobs=3)


@pytest.fixture
def client(settings: CloudSettings) -> TestClient:
    return TestClient(create(settings), base_url=HOST)


@pytest.fixture
def store(settings: CloudSettings) -> Iterator[JobStore]:
    """The store, as a worker has it."""
    engine = open_database(settings.database_address)
    yield JobStore(engine)
    engine.dispose()


def error(answer: Any) -> tuple[int, str]:
    """Status and message of an answer that is an error."""
    body = answer.json()
    assert body.keys() == {"error"}
    assert body["error"].keys() == {"message", "type", "param", "code"}
    return answer.status_code, body["error"]["message"]


def events(answer: Any) -> list[dict[str, str]]:
    """The server-sent events of an answer."""
    blocks = [block for block in answer.text.split("\n\n") if block and not block.startswith(":")]
    return [dict(line.split(": ", 1) for line in block.split("\n")) for block in blocks]


def test_jobs_are_submitted_listed_and_cancelled(client: TestClient) -> None:
    answer = client.post("/v1/jobs", json=SPEC)
    assert answer.status_code == 201
    job = answer.json()
    assert (job["state"], job["name"], job["step"], job["bundle"]) == ("queued", "fruit", 0, None)
    assert job["spec"]["prompts"] == SPEC["prompts"]
    assert job["spec"]["frozen_steps"] == 600
    assert client.get(f"/v1/jobs/{job['id']}").json() == job
    other = client.post("/v1/jobs", json={**SPEC, "name": "cats"}).json()
    page = client.get("/v1/jobs", params={"limit": 1}).json()
    assert ([each["id"] for each in page["data"]], page["has_more"]) == ([other["id"]], True)
    rest = client.get("/v1/jobs", params={"limit": 1, "after": page["last"]}).json()
    assert ([each["id"] for each in rest["data"]], rest["has_more"]) == ([job["id"]], False)
    assert rest["data"][0]["spec"] is None
    assert client.delete(f"/v1/jobs/{job['id']}").json()["state"] == "cancelled"
    assert error(client.delete(f"/v1/jobs/{job['id']}"))[0] == 409
    assert len(client.get("/v1/jobs", params={"state": "queued"}).json()["data"]) == 1


def test_the_events_of_a_job_go_on_where_a_client_was(client: TestClient, store: JobStore) -> None:
    job = client.post("/v1/jobs", json=SPEC).json()["id"]
    claimed = store.claim("host/1/a")
    assert claimed is not None
    claim = Claim(job=job, attempt=claimed.attempt)
    store.reach(claim, Reached(stage="joint", step=3, steps=8, loss=0.5))
    store.finish(claim, BUNDLE)
    answer = client.get(f"/v1/jobs/{job}/events")
    assert answer.headers["content-type"].startswith("text/event-stream")
    told = events(answer)
    assert [each["event"] for each in told] == ["queued", "running", "progress", "done"]
    progress = json.loads(told[2]["data"])
    assert (progress["stage"], progress["step"], progress["steps"], progress["loss"]) == ("joint", 3, 8, 0.5)
    assert json.loads(told[3]["data"])["bundle"] == BUNDLE
    again = client.get(f"/v1/jobs/{job}/events", headers={"last-event-id": told[1]["id"]})
    assert events(again) == told[2:]
    assert events(client.get(f"/v1/jobs/{job}/events", params={"after": told[2]["id"]})) == told[3:]


def test_a_job_that_is_being_published_is_not_cancelled(client: TestClient, store: JobStore) -> None:
    job = client.post("/v1/jobs", json=SPEC).json()["id"]
    store.claim("host/1/a")
    store.reach(Claim(job=job, attempt=1), Reached(stage=PUBLISHING, step=8, steps=8))
    assert error(client.delete(f"/v1/jobs/{job}")) == (409, f"job {job} is being published")


def test_a_full_queue_says_when_to_come_back(client: TestClient) -> None:
    for _ in range(3):
        assert client.post("/v1/jobs", json=SPEC).status_code == 201
    answer = client.post("/v1/jobs", json=SPEC)
    assert error(answer)[0] == 429
    assert int(answer.headers["retry-after"]) == api.RETRY_SECONDS
    assert len(client.get("/v1/jobs").json()["data"]) == 3


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no name": ({"name": None}, "name"),
    "a path as name": ({"name": "../keys"}, "name"),
    "no prompts": ({"prompts": []}, "prompts"),
    "an empty prompt": ({"prompts": ["a cat", " "]}, "prompt 1 is empty"),
    "a long prompt": ({"prompts": ["x" * 4001]}, "prompts.0: String should have at most 4000"),
    "a line break": ({"prompts": ["a cat\nand a dog"]}, "prompt 0 has a line break; a prompt is one line"),
    "many prompts": ({"prompts": ["a cat"] * 10_001}, "at most 10000 items"),
    "many images": ({"prompts": ["a cat"] * 9_000, "draws": 3}, "more than 20000 images"),
    "another world": ({"world": "paper"}, "this cloud is of the world emoji, and the job is for paper"),
    "prompts and domain": ({"domain": "food"}, "give prompts or a domain of the world, not both"),
    "an unknown domain": ({"prompts": None, "domain": "cars"}, "unknown split 'distill:cars'"),
    "an unknown method": ({"method": "full"}, "method"),
    "an unknown channel": ({"channel": "beta"}, "'canary' or 'stable'"),
    "many steps": ({"steps": 100_001}, "less than or equal to 100000"),
    "negative steps": ({"steps": -1}, "greater than or equal to 0"),
    "no steps": ({"steps": 0, "metaword_steps": 0, "frozen_steps": 0}, "all numbers of steps are 0"),
    "steps as text": ({"steps": "200"}, "valid integer"),
    "steps as yes": ({"steps": True}, "valid integer"),
    "a huge rank": ({"rank": 10**9}, "less than or equal to 256"),
    "few steps that do not divide": ({"few_steps": 5}, "few_steps must divide the edge's 12 steps, got 5"),
    "a word as token": ({"token": "apple"}, "token: String should match pattern"),
    "a wrong form": ({"quantisation": "int2"}, "quantisation"),
    "an unknown field": ({"lora_path": "/etc/passwd"}, "Extra inputs are not permitted"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_spec_is_one_line_and_no_job(client: TestClient, case: str) -> None:
    change, text = BAD[case]
    status, message = error(client.post("/v1/jobs", json=SPEC | change))
    assert status == 400
    assert text in message
    assert "\n" not in message
    assert client.get("/v1/jobs").json()["data"] == []


@pytest.mark.parametrize(
    "spec", [{"name": "all", "world": "emoji"}, {"name": "f", "domain": "food"}, SPEC | {"few_steps": 4}]
)
def test_the_worlds_prompts_do_as_well(client: TestClient, spec: dict[str, Any]) -> None:
    assert client.post("/v1/jobs", json=spec).status_code == 201


def test_unknown_jobs_are_not_found(client: TestClient) -> None:
    missing = "0" * 32
    answers = [
        client.get(f"/v1/jobs/{missing}"),
        client.delete(f"/v1/jobs/{missing}"),
        client.get(f"/v1/jobs/{missing}/events"),
        client.get("/v1/jobs", params={"after": missing}),
    ]
    assert [error(answer) for answer in answers] == [(404, f"there is no job {missing}")] * 4
    assert error(client.get("/v1/jobs/..%2f..%2fkeys"))[0] in (400, 404)
    assert error(client.get("/v1/jobs", params={"limit": 101}))[0] == 400
    assert error(client.get("/v1/jobs", params={"state": "lost"}))[0] == 400


REPORT = {
    "report": "edge-1-0001",
    "edge": "edge-1",
    "ended": 6000,
    "active": {"generation": BUNDLE, "transmission": None},
    "rows": [{"bundle": BUNDLE, "images": 2, "prompt_bytes": 30, "uses": 512, "png_bytes": 9000}],
}


def test_the_ledger_counts_a_report_once(client: TestClient) -> None:
    assert client.post("/v1/ledger", json=REPORT).json() == {"counted": True}
    assert client.post("/v1/ledger", json=REPORT).json() == {"counted": False}
    told = client.get("/v1/ledger").json()
    assert told["entries"] == [{"edge": "edge-1", **REPORT["rows"][0], "pull_bytes": 0}]  # type: ignore[index]
    assert told["edges"][0]["active"] == REPORT["active"]
    assert client.get("/v1/ledger", params={"edge": "edge-2"}).json()["entries"] == []
    assert client.get("/v1/ledger", params={"since": 7000}).json()["entries"] == []


@pytest.mark.parametrize(
    "change",
    [
        {"edge": "../edge"},
        {"edge": ""},
        {"report": "x" * 65},
        {"ended": -1},
        {"ended": 2**62},
        {"rows": [{"images": -1}]},
        {"rows": [{"images": 2**60}]},
        {"rows": [{"images": 1.5}]},
        {"rows": [{"bundle": "makd"}]},
        {"rows": [{}] * 1001},
        {"active": {str(n): None for n in range(9)}},
    ],
)
def test_a_bad_report_changes_nothing(client: TestClient, change: dict[str, Any]) -> None:
    assert error(client.post("/v1/ledger", json=REPORT | change))[0] == 400
    assert client.get("/v1/ledger").json() == {"entries": [], "edges": []}


def test_only_the_registry_is_open_without_a_token(settings: CloudSettings) -> None:
    guarded = settings.model_copy(update={"tokens": [SecretStr("right")]})
    client = TestClient(create(guarded), base_url="http://cloud.example")
    assert client.get("/registry/metadata/timestamp.json").status_code == 200
    assert error(client.get("/v1/jobs"))[0] == 401
    assert error(client.post("/v1/ledger", json=REPORT))[0] == 401
    assert error(client.post("/registry/metadata/timestamp.json"))[0] == 401
    right = {"authorization": "Bearer right"}
    assert client.get("/v1/jobs", headers=right).status_code == 200


def test_a_cloud_without_schema_registry_or_keys_does_not_start(tmp_path: Path) -> None:
    settings = CloudSettings(folder=tmp_path)
    with pytest.raises(InputError, match="migrate it first"):
        create(settings)
    engine = open_database(settings.database_address)
    migrate(engine)
    engine.dispose()
    with pytest.raises(InputError, match="make a registry first"):
        create(settings)
    Repository.init(settings.registry_address, tmp_path / "elsewhere")
    with pytest.raises(InputError, match=r"holds no root\.json"):
        create(settings)
    create(CloudSettings(folder=tmp_path, job_workers=0))


def version(client: TestClient) -> int:
    """Of the registry's timestamp."""
    signed = client.get("/registry/metadata/timestamp.json").json()["signed"]
    return int(signed["version"])


def test_while_it_serves_it_signs_anew_and_notes_what_was_pulled(settings: CloudSettings) -> None:
    with TestClient(create(settings), base_url=HOST) as client:
        client.post("/v1/ledger", json=REPORT)
        wait_for(lambda: version(client) == 2)
        pulled = client.get("/registry/metadata/timestamp.json", headers={"x-dekag-edge": "edge-1"})
        assert client.get("/readyz").status_code == 200
    again = TestClient(create(settings), base_url=HOST)
    sums = {entry["edge"]: entry["pull_bytes"] for entry in again.get("/v1/ledger").json()["entries"]}
    assert sums["edge-1"] == len(pulled.content)


def test_a_database_that_fails_is_503_and_not_ready(settings: CloudSettings) -> None:
    """Here its tables are gone; it is ready again when they are back."""
    engine = open_database(settings.database_address)
    with TestClient(create(settings, look_seconds=0.05), base_url=HOST) as client:
        with engine.begin() as connection:
            connection.execute(text("ALTER TABLE jobs RENAME TO lost"))
            connection.execute(text("UPDATE alembic_version SET version_num = '0001'"))
        assert error(client.get("/v1/jobs")) == (503, "the database does not answer")
        wait_for(lambda: client.get("/readyz").status_code == 503)
        wait_for(lambda: "is at revision 0001" in error(client.get("/readyz"))[1])
        assert 'dekag_jobs{state="queued"} 0.0' in client.get("/metrics").text
        with engine.begin() as connection:
            connection.execute(text("ALTER TABLE lost RENAME TO jobs"))
            connection.execute(text("UPDATE alembic_version SET version_num = '0002'"))
        wait_for(lambda: client.get("/readyz").status_code == 200)
        assert client.get("/v1/jobs").status_code == 200
    engine.dispose()


def test_the_cloud_draws_by_the_same_interfaces_as_an_edge(settings: CloudSettings) -> None:
    """Model `cloud`, without updates; a seed gives the same picture, which is that of the world's cloud."""
    prompt = "a red apple on a blue background"
    drawing = settings.model_copy(update={"images": True, "device": "cpu", "batch": 1})
    asked = {"prompt": prompt, "model": "cloud", "seed": 7, "steps": 2}
    with TestClient(create(drawing), base_url=HOST) as client:
        assert [model["id"] for model in client.get("/v1/models").json()["data"]] == ["cloud"]
        answers = [client.post("/v1/images/generations", json=asked).json() for _ in range(2)]
        assert error(client.post("/v1/images/generations", json=asked | {"model": "edge"}))[0] == 404
        assert error(client.post("/v1/images/generations", json=asked | {"bundle": "active"}))[0] == 400
    pictures = [answer["data"][0]["b64_json"] for answer in answers]
    assert pictures[0] == pictures[1]
    assert answers[0]["gsc"]["bundle"] is None
    cloud = load_world("emoji").cloud()
    few = replace(cloud, sampling=replace(cloud.sampling, steps=2, batch=1))
    with PillowImage.open(BytesIO(base64.b64decode(pictures[0]))) as picture:
        drawn = picture_tensor(picture.convert("RGB"))
    reference = few.images([prompt], seeds=[7])[0]
    torch.testing.assert_close(drawn, reference, atol=1 / 255, rtol=0)


def test_what_is_published_is_served(client: TestClient, settings: CloudSettings) -> None:
    """Every file of a registry with bundle and channel comes as it lies there."""
    repository = Repository(settings.registry_address, settings.keys_folder)
    repository.publish(shipped("emoji/food"), channel="stable", name="food")
    folder = Path(settings.registry_address)
    paths = [
        path for part in ("metadata", "targets") for path in (folder / part).rglob("*") if path.is_file()
    ]
    assert len(paths) >= 6
    for path in paths:
        assert client.get(f"/registry/{path.relative_to(folder).as_posix()}").content == path.read_bytes()
