"""Every route of the cloud takes whatever comes: no failure, nothing that is not described."""

from collections.abc import Iterator

import pytest
from served import Served, serving
from test_serving_fuzz import fuzz

from dekag.registry import Repository
from dekag.serving.cloud.database import migrate, open_database
from dekag.serving.cloud.settings import CloudSettings


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A cloud that draws nothing, as the images' routes are the edge's, and leaves its jobs in the queue."""
    folder = tmp_path_factory.mktemp("site")
    chosen = CloudSettings(folder=folder / "cloud")
    engine = open_database(chosen.database_address)
    migrate(engine)
    engine.dispose()
    Repository.init(chosen.registry_address, chosen.keys_folder)
    with serving("cloud", folder, device="cpu", images="false", job_workers="0") as cloud:
        yield cloud


@pytest.mark.alone
def test_every_route_does_what_its_description_says(cloud: Served) -> None:
    """`test_every_route_a_thousand_times` is the long one."""
    fuzz(cloud, 20)


@pytest.mark.slow
def test_every_route_a_thousand_times(cloud: Served) -> None:
    fuzz(cloud, 1000)
