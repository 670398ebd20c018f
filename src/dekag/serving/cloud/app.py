"""The cloud as one application: the registry, jobs, the ledger and images."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request
from prometheus_client import CollectorRegistry, Gauge
from sqlalchemy import Engine as Database
from sqlalchemy.exc import SQLAlchemyError
from starlette.responses import Response

from dekag.errors import StepError
from dekag.registry.repository import Repository
from dekag.serving.cloud.api import jobs_router, ledger_router
from dekag.serving.cloud.database import check_database, open_database
from dekag.serving.cloud.drawing import image_service
from dekag.serving.cloud.freshness import Freshness
from dekag.serving.cloud.health import Health
from dekag.serving.cloud.ledger import Ledger
from dekag.serving.cloud.runner import Runner, Workplace
from dekag.serving.cloud.settings import CloudSettings
from dekag.serving.cloud.static import Files, Pulls, registry_router
from dekag.serving.cloud.store import JobStore
from dekag.serving.http.app import create_app
from dekag.serving.http.errors import ApiError
from dekag.serving.http.metrics import HttpMetrics
from dekag.serving.images.api import ImageService, images_router
from dekag.world import load_world

log = logging.getLogger("dekag.serving")
LEDGER_SECONDS = 10.0


def create(
    settings: CloudSettings, *, look_seconds: float = LEDGER_SECONDS, database: Database | None = None
) -> FastAPI:
    """The application, which looks at its database every `look_seconds`.

    database: another than the one that the settings name.
    Raises InputError if the database is damaged or has another schema, or there is no registry or no keys to publish
    in it.
    """
    settings.require_safe()
    world = load_world(settings.world)
    if database is None:
        database = open_database(settings.database_address, busy_seconds=settings.busy_seconds)
    check_database(database)
    metrics = HttpMetrics()
    cloud = Cloud(settings, database, metrics.registry, look_seconds=look_seconds)
    cloud.require_registry()
    if settings.images:
        cloud.images = image_service(world, settings, metrics.registry)
    app = create_app(
        title="dekag cloud",
        settings=settings,
        lifespan=cloud.lifespan,
        ready=cloud.missing,
        metrics=metrics,
        public=("/registry/*",),
    )
    app.add_exception_handler(SQLAlchemyError, cloud.lost)
    app.include_router(registry_router(cloud.files, cloud.pulls))
    app.include_router(jobs_router(cloud.store, world, most_queued=settings.max_queued_jobs))
    app.include_router(ledger_router(cloud.ledger))
    if cloud.images is not None:
        app.include_router(images_router(cloud.images))
    return app


class Cloud:
    """The parts of the cloud, and what they do by themselves while it serves."""

    def __init__(
        self,
        settings: CloudSettings,
        database: Database,
        registry: CollectorRegistry,
        *,
        look_seconds: float = LEDGER_SECONDS,
    ) -> None:
        self.settings = settings
        self.database = database
        self.store = JobStore(database)
        self.ledger = Ledger(database)
        self.files = Files(settings.registry_address)
        self.pulls = Pulls()
        self.freshness = Freshness(self.files, settings.registry_address, settings.keys_folder, registry)
        self.images: ImageService | None = None
        self._look_seconds = look_seconds
        self.health = Health(database)
        self._jobs = Gauge("dekag_jobs", "Jobs of the cloud.", ["state"], registry=registry)

    def require_registry(self) -> None:
        """Raise InputError if there is no registry, or no keys for the jobs to publish with."""
        settings = self.settings
        if self.files.find("metadata/timestamp.json") is None:
            raise StepError(f"there is no registry at {settings.registry_address}", "make a registry first")
        if settings.job_workers:
            _ = Repository(settings.registry_address, settings.keys_folder).root

    def missing(self) -> str | None:
        """What is not there for work to be done."""
        failure = None if self.images is None else self.images.engine.failure
        return self.health.missing() or self.freshness.missing() or failure

    @asynccontextmanager
    async def lifespan(self, _: FastAPI) -> AsyncIterator[None]:
        """Run jobs, keep the registry fresh and write the ledger, as long as the cloud serves."""
        settings = self.settings
        place = Workplace(
            database=settings.database_address,
            registry=settings.registry_address,
            keys=settings.keys_folder,
            folder=settings.jobs_folder,
            world=settings.world,
            device=settings.device,
            budget=settings.job_budget,
        )
        runner = Runner(self.store, place, workers=settings.job_workers)
        # before anyone is told that it is ready: edges would be sent to a registry that they refuse
        await _tried(self.freshness.refresh)
        await _tried(self._look_at_database)
        loops = [
            _every(self._look_seconds, self._look_at_database),
            _every(6 * self._look_seconds, self.freshness.look),
            _every(3600 * settings.refresh_hours, self.freshness.refresh),
        ]
        tasks = [asyncio.create_task(loop) for loop in loops]
        runner.start()
        if self.images is not None:
            await self.images.engine.start()
            async with self.images.models.using(None, None) as model:
                await self.images.engine.prepare(model)
        try:
            yield
        finally:
            if self.images is not None:
                await self.images.engine.stop()
            for task in tasks:
                task.cancel()
            await asyncio.to_thread(runner.stop)
            await asyncio.to_thread(self._look_at_database)
            self.database.dispose()

    def _look_at_database(self) -> None:
        """Count the jobs, and write to the ledger what was pulled; if that fails, it waits for the next time."""
        counted = self.pulls.take()

        def work() -> None:
            for state, number in self.store.counts().items():
                self._jobs.labels(str(state)).set(number)
            self.ledger.pulled(counted)

        if not self.health.look(work):
            for edge, size in counted.items():
                self.pulls.add(edge, size)

    async def lost(self, _: Request, error: Exception) -> Response:
        """The answer to a request that the database failed."""
        assert isinstance(error, SQLAlchemyError)
        trouble = self.health.failed(error)
        return ApiError(trouble.status, trouble.text, headers={"retry-after": "5"}).response()


async def _every(seconds: float, work: Callable[[], None]) -> None:
    """Do something every so many seconds."""
    while True:
        await asyncio.sleep(seconds)
        await _tried(work)


async def _tried(work: Callable[[], None]) -> None:
    """Do something beside the requests; a failure is logged, and the next time may go well."""
    try:
        await asyncio.to_thread(work)
    except Exception:
        log.exception("a regular task failed")
