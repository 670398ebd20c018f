"""What an edge offers beside images: deliveries, bundles, and the decoders of its users."""

import asyncio
import base64
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Path, Request
from starlette.responses import Response

from dekag.registry import Shelved
from dekag.serving.edge.bundles import KINDS, Bundles, Coder
from dekag.serving.edge.decoders import DecoderFiles
from dekag.serving.edge.deliveries import (
    Delivery,
    Picture,
    Recent,
    encode,
    frame_bytes,
    ledger_json,
    see,
    sigmf_bytes,
)
from dekag.serving.edge.pulls import Puller
from dekag.serving.edge.requests import (
    BundleList,
    BundleReply,
    DecodersReply,
    DeliveryRequest,
    PullReply,
    SeenReply,
    SeeRequest,
)
from dekag.serving.edge.traffic import Traffic
from dekag.serving.http.errors import ApiError
from dekag.serving.http.files import FileAnswer
from dekag.serving.images.api import while_connected
from dekag.serving.images.engine import Engine, Model, Order
from dekag.types import Channel
from dekag.wire.frame import MEDIA_TYPE
from dekag.wire.png import png_bytes

BundleId = Annotated[str, Path(pattern="^[0-9a-f]{6,64}$", description="The id, or its head.")]
DeliveryId = Annotated[str, Path(pattern="^[0-9a-f]{32}$")]
Digest = Annotated[str, Path(pattern="^[0-9a-f]{64}$")]
FRAMES: dict[int | str, dict[str, Any]] = {200: {"content": {MEDIA_TYPE: {}, "application/x-tar": {}}}}
FILES: dict[int | str, dict[str, Any]] = {200: {"content": {"application/octet-stream": {}}}}


@dataclass(frozen=True, kw_only=True)
class EdgeService:
    """What the routes need. puller: none without a registry. most_uses: that the codec serves.

    air: the channel to a user that is simulated.
    """

    engine: Engine
    bundles: Bundles
    puller: Puller | None
    decoders: DecoderFiles
    traffic: Traffic
    world: str
    channel: str
    most_uses: int
    pictures: Recent[Picture]
    deliveries: Recent[Delivery]
    air: Channel


def deliveries_router(service: EdgeService) -> APIRouter:
    """Pictures as symbols, and what becomes of them on the way."""
    router = APIRouter(tags=["deliveries"])

    @router.post("/v1/deliveries", response_class=Response, responses=FRAMES)
    async def deliver(asked: DeliveryRequest, request: Request) -> Response:
        """Draw an image and put it on the air; the answer is a frame, or a tar of a SigMF recording."""
        return await _deliver(service, asked, request)

    @router.post("/v1/deliveries/{delivery_id}/image")
    async def received(delivery_id: DeliveryId, asked: SeeRequest) -> SeenReply:
        """What a user at this channel would see of a delivery."""
        return await _received(service, delivery_id, asked)

    @router.get("/v1/decoders")
    async def decoders() -> DecodersReply:
        """The decoders that belong to this edge's symbols, as ONNX."""
        return await service.decoders.current()

    @router.get("/v1/decoders/{sha256}.onnx", response_class=FileAnswer, responses=FILES)
    async def decoder(sha256: Digest) -> FileAnswer:
        """One of them; what has this name never changes."""
        path = service.decoders.path(sha256)
        if path is None:
            raise ApiError(404, f"there is no decoder {sha256[:12]}; ask for /v1/decoders first")
        headers = {"cache-control": "public, max-age=31536000, immutable"}
        return FileAnswer(path, media_type="application/octet-stream", headers=headers)

    return router


def bundles_router(service: EdgeService) -> APIRouter:
    """The shelf of the edge."""
    router, bundles = APIRouter(prefix="/v1/bundles", tags=["bundles"]), service.bundles
    _add_changes(router, bundles)

    @router.get("")
    async def listing() -> BundleList:
        """All bundles on the shelf."""
        puller = service.puller
        return BundleList(
            bundles=[_told(bundles, bundle) for bundle in bundles.shelf.bundles()],
            channel=None if puller is None else service.channel,
            checked=None if puller is None else puller.checked,
            error=None if puller is None else puller.error,
        )

    @router.post("/pull")
    async def pull() -> PullReply:
        """Look at the registry now."""
        if service.puller is None:
            raise ApiError(409, "this edge has no registry", code="no_registry")
        new = await service.puller.pull()
        return PullReply(new=new, active={kind: bundles.active(kind) for kind in KINDS})

    return router


def _add_changes(router: APIRouter, bundles: Bundles) -> None:
    """The routes that change one bundle."""

    @router.post("/{bundle_id}/load")
    async def load(bundle_id: BundleId) -> BundleReply:
        """Bring a bundle into memory."""
        found = bundles.find(bundle_id)
        await bundles.load(found.id)
        return _told(bundles, bundles.find(found.id))

    @router.post("/{bundle_id}/activate")
    async def activate(bundle_id: BundleId) -> BundleReply:
        """Test a bundle and use it from now on; to keep the channel from changing that, pin it."""
        found = bundles.find(bundle_id)
        await bundles.activate(found.id)
        return _told(bundles, bundles.find(found.id))

    @router.post("/{bundle_id}/pin")
    async def pin(bundle_id: BundleId) -> BundleReply:
        """Keep a bundle on the shelf, and active if it is."""
        found = bundles.find(bundle_id)
        await asyncio.to_thread(bundles.shelf.pin, found.id)
        return _told(bundles, bundles.find(found.id))

    @router.post("/{bundle_id}/unpin")
    async def unpin(bundle_id: BundleId) -> BundleReply:
        """Let a bundle go again."""
        found = bundles.find(bundle_id)
        await asyncio.to_thread(bundles.shelf.unpin, found.id)
        return _told(bundles, bundles.find(found.id))

    @router.delete("/{bundle_id}")
    async def remove(bundle_id: BundleId) -> BundleReply:
        """Take a bundle out of memory and off the shelf, unless it is pinned or active."""
        found = bundles.find(bundle_id)
        await bundles.remove(found.id)
        return _told(bundles, found)


def _told(bundles: Bundles, bundle: Shelved) -> BundleReply:
    return BundleReply(
        id=bundle.id,
        kind=bundle.kind,
        name=bundle.name,
        bytes=bundle.bytes,
        pinned=bundle.pinned,
        active=bundles.active(bundle.kind) == bundle.id,
        loaded=bundles.loaded(bundle.id),
        bad=bundle.bad,
    )


async def _deliver(service: EdgeService, asked: DeliveryRequest, request: Request) -> Response:
    if asked.format == "sigmf" and asked.channel_seed is not None:
        raise ApiError(400, "a recording has symbols as sent; leave out channel_seed", param="channel_seed")
    # before anything is drawn
    condition, max_uses = asked.condition.condition(), service.most_uses
    if int(condition.payload.max()) > max_uses:
        raise ApiError(400, f"the codec sends at most {max_uses} symbols an image", param="condition.uses")
    model, picture = await _picture(service, asked, request)
    coder: Coder = await service.bundles.coder()
    delivery = await service.engine.compute(
        encode, asked.prompt, picture, model, coder, condition, service.world, service.air
    )
    service.deliveries.keep(delivery.id, delivery)
    service.traffic.count(coder.bundle, uses=int(condition.uses.sum()))
    if asked.format == "sigmf":
        body, media_type = await asyncio.to_thread(sigmf_bytes, delivery), "application/x-tar"
    else:
        body, media_type = await service.engine.compute(frame_bytes, delivery, asked.channel_seed), MEDIA_TYPE
    headers = {f"x-bundle-{kind}": bundle for kind, bundle in delivery.bundles.items()}
    return Response(body, media_type=media_type, headers={"x-delivery-id": delivery.id, **headers})


async def _picture(service: EdgeService, asked: DeliveryRequest, request: Request) -> tuple[Model, Picture]:
    """What is asked for, drawn now or before; with a condition changed alone, nothing is drawn."""
    async with service.bundles.using("edge", asked.bundle) as model:
        key = (asked.prompt, asked.seed, asked.steps, model.bundle)
        if (known := service.pictures.get(key)) is not None:
            return model, known
        drawing = service.engine.submit(
            Order(model=model, prompt=asked.prompt, seeds=(asked.seed,), steps=asked.steps)
        )
    (drawn,) = await while_connected(request, drawing)
    (png,) = await asyncio.to_thread(png_bytes, drawn.image)
    picture = Picture(drawn=drawn, png=png)
    service.pictures.keep(key, picture)
    prompt_bytes = len(asked.prompt.encode())
    service.traffic.count(model.bundle, images=1, prompt_bytes=prompt_bytes, png_bytes=len(png))
    return model, picture


async def _received(service: EdgeService, delivery_id: str, asked: SeeRequest) -> SeenReply:
    delivery = service.deliveries.get(delivery_id)
    if delivery is None:
        raise ApiError(404, "there is no such delivery any more; make it again", code="delivery_not_found")
    seen = await service.engine.compute(see, delivery, asked.channel_seed)
    (png,) = await asyncio.to_thread(png_bytes, seen.image)
    condition = delivery.condition
    names = ("uses", "snr_db", "rayleigh", "blocks", "correlation", "pilots")
    return SeenReply(
        b64_json=base64.b64encode(png).decode(),
        drawn_b64_json=base64.b64encode(delivery.picture.png).decode(),
        psnr_db=round(seen.psnr_db, 3),
        erased_uses=seen.erased_uses,
        condition={name: getattr(condition, name)[0].item() for name in names},
        bundles=delivery.bundles,
        ledger=ledger_json(seen.ledger),
        warnings=delivery.warnings,
    )
