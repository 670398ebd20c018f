"""The edge as an application: its model, its shelf and its routes."""

import asyncio
import logging
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

from fastapi import FastAPI

from dekag.alignment.generation.bundles import pipeline_digest
from dekag.alignment.transmission.bundles import codec_digest
from dekag.bundle.bundle import load_bundle
from dekag.bundle.manifest import Kind
from dekag.bundle.sound import pack
from dekag.channel import BlockFading
from dekag.engine.drawing import EngineChoice
from dekag.registry import Shelf
from dekag.registry.client import RegistryClient
from dekag.registry.source import open_source
from dekag.serving.edge.alignment import AlignmentMetrics, Alignments
from dekag.serving.edge.api import EdgeService, bundles_router, deliveries_router
from dekag.serving.edge.bundles import KINDS, Bundles
from dekag.serving.edge.decoders import DecoderFiles
from dekag.serving.edge.deliveries import Recent
from dekag.serving.edge.pulls import Puller
from dekag.serving.edge.settings import EdgeSettings
from dekag.serving.edge.traffic import Reporter, Traffic, cloud_client
from dekag.serving.http.app import create_app
from dekag.serving.http.metrics import HttpMetrics
from dekag.serving.images.api import ImageService, images_router
from dekag.serving.images.engine import Engine
from dekag.serving.images.metrics import EngineMetrics
from dekag.serving.images.requests import Details
from dekag.serving.page import PUBLIC, PageConfig, PageDefaults, PageLimits, page_router
from dekag.serving.traffic import TrafficReport
from dekag.training.processes import device_of
from dekag.types import Channel, InputError
from dekag.world import UPDATE_NAMES, World, load_world

log = logging.getLogger("dekag.serving")


def create(settings: EdgeSettings, world: World | None = None, *, air: Channel | None = None) -> FastAPI:
    """Load the model and make the application; the world is that of the settings if None.

    air: the channel to a user that is simulated, `BlockFading` if None.
    Raises InputError if the world has no codec, or the shelf or the registry cannot be used.
    """
    settings.require_safe()
    world = load_world(settings.world) if world is None else world
    metrics = HttpMetrics()
    service = _service(settings, world, metrics, BlockFading() if air is None else air)
    app = create_app(
        title="dekag edge",
        settings=settings,
        lifespan=_lifespan(settings, service),
        ready=lambda: service.engine.failure or service.alignments.missing(),
        metrics=metrics,
        public=PUBLIC,
    )
    side = world.side
    images = ImageService(
        engine=service.engine,
        models=service.models,
        size=f"{side}x{side}",
        log_prompts=settings.log_prompts,
        alignment=service.alignments.of_model,
        on_answer=_counting(service.traffic),
    )
    page = page_router(_page(settings, world, service.most_uses))
    for router in (images_router(images), deliveries_router(service), bundles_router(service), page):
        app.include_router(router)
    return app


def _page(settings: EdgeSettings, world: World, most_uses: int) -> PageConfig:
    """What the page is told; its sliders go as far as the codec does."""
    limits, defaults = PageLimits(), PageDefaults()
    return PageConfig(
        world=world.name,
        cloud=settings.cloud_url,
        limits=replace(limits, uses=(min(limits.uses[0], most_uses), most_uses)),
        defaults=replace(defaults, uses=min(defaults.uses, most_uses)),
    )


def _service(settings: EdgeSettings, world: World, metrics: HttpMetrics, air: Channel) -> EdgeService:
    """The parts of the edge."""
    client = _client(settings)  # first, as what is wrong with it should leave nothing behind
    device = device_of(settings.device)
    generator, codec = world.edge(device=device), world.codec(device=device)
    engine = Engine(
        batch=settings.batch,
        queue=settings.queue,
        threads=settings.threads,
        exact=settings.exact,
        metrics=EngineMetrics(metrics.registry),
    )
    shelf = Shelf(settings.folder / "bundles", keep=settings.keep)
    if settings.registry is None:
        _stock(shelf, world)
    choice = EngineChoice(name=settings.engine, threads=settings.threads)
    bundles = Bundles(
        generator=generator,
        codec=codec,
        shelf=shelf,
        engine=engine,
        max_loaded=settings.max_loaded,
        choice=choice,
    )
    alignments = Alignments(
        bundles=bundles,
        puller=None if client is None else _puller(settings, client, bundles, metrics),
        allow_unaligned=settings.allow_unaligned,
        max_offline_age=settings.max_offline_age,
    )
    AlignmentMetrics(alignments, metrics.registry)
    return EdgeService(
        engine=engine,
        alignments=alignments,
        decoders=DecoderFiles(settings.folder / "decoders", bundles),
        traffic=Traffic(metrics.registry),
        world=world.name,
        channel=settings.channel,
        most_uses=codec.max_uses,
        pictures=Recent(settings.deliveries),
        deliveries=Recent(settings.deliveries),
        air=air,
    )


def _stock(shelf: Shelf, world: World) -> None:
    """Put the world's own updates on the shelf, and use them where none is used yet."""
    for kind in world.updates:
        folder, name = world.update(kind), UPDATE_NAMES[kind]
        bundle = load_bundle(folder)
        if all(known.id != bundle.id for known in shelf.bundles()):
            with tempfile.TemporaryDirectory(prefix=".shipped-", dir=shelf.folder) as work:
                tar = Path(work) / f"{bundle.id}.tar"
                pack(folder, tar)
                shelf.put(tar, bundle_id=bundle.id, name=name)
        if shelf.active(bundle.manifest.kind) is None:
            shelf.activate(bundle.id)


def _client(settings: EdgeSettings) -> RegistryClient | None:
    """What pulls with, if there is a registry."""
    if settings.registry is None:
        return None
    try:
        root = None if settings.root is None else settings.root.read_bytes()
    except OSError as error:
        raise InputError(f"{settings.root} cannot be read: {error.strerror}") from error
    source = open_source(settings.registry, edge=settings.name)
    return RegistryClient(source, settings.folder / "registry", root=root)


def _puller(settings: EdgeSettings, client: RegistryClient, bundles: Bundles, metrics: HttpMetrics) -> Puller:
    bases: dict[Kind, str] = {
        "generation": pipeline_digest(bundles.generator),
        "transmission": codec_digest(bundles.codec),
    }
    return Puller(
        client,
        bundles,
        channel=settings.channel,
        bases=bases,
        follow=settings.follow,
        registry=metrics.registry,
    )


def _counting(traffic: Traffic) -> Callable[[Details], None]:
    def count(details: Details) -> None:
        ledger = details.ledger
        traffic.count(
            details.bundle,
            images=len(details.seeds),
            prompt_bytes=ledger.prompt_bytes,
            png_bytes=ledger.image_bytes,
        )

    return count


def _lifespan(
    settings: EdgeSettings, service: EdgeService
) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    """What runs beside the requests: the engine, the pulls and the reports."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await service.engine.start()
        await service.bundles.restore()
        tasks = [asyncio.create_task(service.alignments.follow())]
        if service.puller is not None:
            tasks.append(asyncio.create_task(service.puller.follow(settings.poll_seconds)))
        if settings.cloud_url is not None:
            client = cloud_client(settings.cloud_url, settings.cloud_token)
            reporter = Reporter(client, partial(_report, settings, service))
            tasks.append(asyncio.create_task(reporter.follow(settings.report_seconds)))
        yield
        for task in tasks:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        await service.engine.stop()

    return lifespan


def _report(settings: EdgeSettings, service: EdgeService) -> TrafficReport | None:
    active: dict[str, str | None] = {kind: service.bundles.active(kind) for kind in KINDS}
    return service.traffic.take(settings.name, active)
