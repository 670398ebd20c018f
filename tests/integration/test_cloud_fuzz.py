"""Every route of the cloud takes whatever comes: no failure, nothing that is not described."""

from collections.abc import Iterator

import pytest
from route_fuzz import fuzz
from running_service import RunningService, run_service

from dekag.registry import Repository
from dekag.serving.cloud.database import migrate, open_database
from dekag.serving.cloud.settings import CloudSettings


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    """A cloud that draws nothing, as the images' routes are the edge's, and leaves its jobs in the queue."""
    folder = tmp_path_factory.mktemp("site")
    chosen = CloudSettings(folder=folder / "cloud")
    engine = open_database(chosen.database_address)
    migrate(engine)
    engine.dispose()
    Repository.init(chosen.registry_address, chosen.keys_folder)
    with run_service("cloud", folder, device="cpu", images="false", job_workers="0") as cloud:
        yield cloud


@pytest.mark.alone
def test_every_route_does_what_its_description_says(cloud: RunningService) -> None:
    """`test_every_route_a_thousand_times` is the long one."""
    fuzz(cloud, 8)


@pytest.mark.slow
def test_every_route_a_thousand_times(cloud: RunningService) -> None:
    fuzz(cloud, 1000)
