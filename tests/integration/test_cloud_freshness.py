"""A cloud whose registry was signed long ago: renewed before it is ready, told as numbers, and loud where it cannot."""

import logging
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from published_registry import RegistrySetup, before, http_server
from running_service import run_service
from starlette.testclient import TestClient
from waiting import wait_for

from dekag.registry import RegistryError
from dekag.registry.keys import ROLES
from dekag.registry.signed import now
from dekag.serving.cloud.app import create
from dekag.serving.cloud.database import migrate, open_database
from dekag.serving.cloud.freshness import Freshness
from dekag.serving.cloud.settings import CloudSettings
from dekag.serving.cloud.static import Files

HOST = "http://127.0.0.1"


def cloud_of(folder: Path, days: float) -> tuple[RegistrySetup, CloudSettings]:
    """The folder of a cloud whose registry was signed so long ago, and whose root keys are in a safe."""
    setup = RegistrySetup(folder / "cloud", clock=before(days))
    setup.publish()
    for path in setup.keys.glob("root-*"):
        path.unlink()
    settings = CloudSettings(folder=folder / "cloud", images=False)
    engine = open_database(settings.database_address)
    migrate(engine)
    engine.dispose()
    return setup, settings


def gauges(client: TestClient) -> dict[str, float]:
    """When each role expires, as Prometheus is told."""
    name = "dekag_registry_expiry_timestamp_seconds"
    lines = [line for line in client.get("/metrics").text.splitlines() if line.startswith(f"{name}{{")]
    return {line.split('"')[1]: float(line.split()[-1]) for line in lines}


@pytest.mark.parametrize("days", [20, 100])
def test_a_registry_is_renewed_before_the_cloud_is_ready(tmp_path: Path, days: int) -> None:
    """The first request finds all of it good, root keys or not; a new edge pulls."""
    setup, settings = cloud_of(tmp_path, days)
    with TestClient(create(settings), base_url=HOST) as client:
        assert client.get("/readyz").status_code == 200
        told = gauges(client)
        roles = setup.repository.describe()["roles"]
        assert told == {
            role: datetime.fromisoformat(part["expires"]).timestamp() for role, part in roles.items()
        }
        assert min(told.values()) > now().timestamp()
    with http_server(setup.registry) as server:
        assert setup.pull(f"http://127.0.0.1:{server.port}") == setup.ids


def test_a_registry_whose_root_has_expired_is_loud(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """400 days and no root key: not ready, with the role and what renews it; an edge names the role as well."""
    setup, settings = cloud_of(tmp_path, 400)
    with (
        caplog.at_level(logging.INFO, "dekag.serving"),
        TestClient(create(settings, look_seconds=0.02), base_url=HOST) as client,
    ):
        answer = client.get("/readyz")
        assert answer.status_code == 503
        message = answer.json()["error"]["message"]
        assert "the registry's root expired on" in message
        assert "refresh the registry where the keys of root are" in message
        assert gauges(client)["root"] < now().timestamp() < gauges(client)["timestamp"]
        with pytest.raises(RegistryError) as caught:
            setup.pull()
        assert caught.value.fault == "expired"
        assert "metadata/root.json has expired" in str(caught.value)
        wait_for(lambda: len([r for r in caplog.records if "refreshed" in r.message]) == 1)
    expired = [
        record for record in caplog.records if record.message == "a signature of the registry has expired"
    ]
    assert len(expired) == 1  # not with each of the many looks


def test_a_cloud_without_keys_tells_what_others_signed(tmp_path: Path) -> None:
    """Not ready once anything has expired, and ready when whoever has the keys has refreshed."""
    setup, settings = cloud_of(tmp_path, 20)
    without = settings.model_copy(update={"keys": tmp_path / "none", "job_workers": 0})
    with TestClient(create(without, look_seconds=0.02), base_url=HOST) as client:
        assert set(gauges(client)) == set(ROLES)
        assert "timestamp expired on" in client.get("/readyz").json()["error"]["message"] or (
            "snapshot expired on" in client.get("/readyz").json()["error"]["message"]
        )
        RegistrySetup(setup.folder).repository.refresh()
        wait_for(lambda: client.get("/readyz").status_code == 200)


def test_a_registry_that_goes_is_told_and_comes_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    setup, settings = cloud_of(tmp_path, 0)
    with TestClient(create(settings, look_seconds=0.02), base_url=HOST) as client:
        timestamp = setup.registry / "metadata" / "timestamp.json"
        raw = timestamp.read_bytes()
        timestamp.write_bytes(raw[:40])
        wait_for(lambda: client.get("/readyz").status_code == 503)
        assert "timestamp.json is damaged" in client.get("/readyz").json()["error"]["message"]
        timestamp.write_bytes(raw)
        wait_for(lambda: client.get("/readyz").status_code == 200)
    assert not any(record.exc_info for record in caplog.records)


def test_a_warning_comes_once_a_day_for_each_role(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """From a quarter of the lifetime on: of 90 days from day 67.5, of 365 from day 273.75. No keys are here."""
    setup = RegistrySetup(tmp_path)
    moment = [now()]
    freshness = Freshness(
        Files(str(setup.registry)),
        str(setup.registry),
        tmp_path / "none",
        CollectorRegistry(),
        clock=lambda: moment[0],
    )

    def warned(days: float) -> list[str]:
        caplog.clear()
        moment[0] = now() + timedelta(days=days)
        for _ in range(3):
            freshness.refresh()
        return [f"{record.levelname} {record.facts['role']}" for record in caplog.records]  # type: ignore[attr-defined]

    assert warned(5) == []
    assert warned(5.5) == ["WARNING timestamp"]
    assert warned(6) == []
    assert warned(6.6) == ["WARNING timestamp"]
    assert freshness.missing() is None
    assert warned(8) == ["ERROR timestamp"]
    assert "timestamp expired" in str(freshness.missing())
    assert set(warned(274)) == {"WARNING root", "ERROR targets", "ERROR snapshot", "ERROR timestamp"}
    assert warned(274.5) == []


@pytest.mark.slow
def test_a_served_registry_of_100_days(tmp_path: Path) -> None:
    """The same with the cloud as a process, and an edge that pulls from it."""
    setup, _ = cloud_of(tmp_path, 100)
    with run_service("cloud", tmp_path, device="cpu", images="false") as cloud:
        assert setup.pull(f"{cloud.url}/registry") == setup.ids
