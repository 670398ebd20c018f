"""The cloud as a model that clients ask for images, by the same interfaces as an edge."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from prometheus_client import CollectorRegistry

from dekag.serving.cloud.settings import CloudSettings
from dekag.serving.http.errors import ApiError
from dekag.serving.images.api import ImageService, unknown_model
from dekag.serving.images.engine import Engine, Model
from dekag.serving.images.metrics import EngineMetrics
from dekag.training.processes import device_of
from dekag.world import World

NAME = "cloud"


class CloudModel:
    """The one model of the cloud; it carries no update."""

    def __init__(self, model: Model) -> None:
        self._model = model

    def names(self) -> Sequence[str]:
        """Its name."""
        return [NAME]

    @asynccontextmanager
    async def using(self, name: str | None, bundle: str | None) -> AsyncIterator[Model]:
        """The model. Raises ApiError for another name, or if an update is asked for."""
        if name not in (None, NAME):
            raise unknown_model(name or "")
        if bundle not in (None, "none"):
            raise ApiError(400, "the cloud draws without updates", param="bundle", code="invalid_value")
        yield self._model


def image_service(world: World, settings: CloudSettings, registry: CollectorRegistry) -> ImageService:
    """Load the world's cloud and put an engine before it."""
    generator = world.cloud(device=device_of(settings.device))
    pixels = generator.pixels or world.side
    return ImageService(
        engine=Engine(batch=settings.batch, queue=settings.queue, metrics=EngineMetrics(registry)),
        models=CloudModel(Model(generator=generator)),
        size=f"{pixels}x{pixels}",
    )
