"""What an edge offers beside images: deliveries, bundles, and the decoders of its users."""

import asyncio
import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request
from starlette.responses import Response

from dekag.registry import Shelved
from dekag.serving.alignment import Alignment
from dekag.serving.edge.alignment import Alignments, RequiredModels
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
from dekag.serving.edge.recipes import HEAD, LONGEST_ID, Recipe, read_id
from dekag.serving.edge.requests import (
    AlignmentReply,
    BundleList,
    BundleReply,
    DecodersReply,
    DeliveryRequest,
    PullReply,
    SeenReply,
    SeeRequest,
)
from dekag.serving.edge.traffic import Traffic
from dekag.serving.http.callers import caller_of
from dekag.serving.http.errors import ApiError
from dekag.serving.http.files import FileAnswer
from dekag.serving.images.api import while_connected
from dekag.serving.images.engine import Engine, Model, Order
from dekag.types import Channel
from dekag.wire.frame import MEDIA_TYPE
from dekag.wire.png import png_bytes

BundleId = Annotated[str, Path(pattern="^[0-9a-f]{6,64}$", description="The id, or its head.")]
DeliveryId = Annotated[
    str, Path(pattern=f"^[A-Za-z0-9_-]{{8,{LONGEST_ID}}}$", description="As x-delivery-id says it.")
]
Digest = Annotated[str, Path(pattern="^[0-9a-f]{64}$")]
Update = Annotated[str | None, Query(pattern="^(none|[0-9a-f]{6,64})$")]
FRAMES: dict[int | str, dict[str, Any]] = {200: {"content": {MEDIA_TYPE: {}, "application/x-tar": {}}}}
FILES: dict[int | str, dict[str, Any]] = {200: {"content": {"application/octet-stream": {}}}}


@dataclass(frozen=True, kw_only=True)
class EdgeService:
    """What the routes need. most_uses: that the codec serves. air: the channel to a user that is simulated."""

    engine: Engine
    alignments: Alignments
    decoders: DecoderFiles
    traffic: Traffic
    world: str
    channel: str
    most_uses: int
    pictures: Recent[Picture]
    deliveries: Recent[Delivery]
    air: Channel

    @property
    def bundles(self) -> Bundles:
        """The updates."""
        return self.alignments.bundles

    @property
    def puller(self) -> Puller | None:
        """What pulls them; none without a registry."""
        return self.alignments.puller

    @property
    def models(self) -> RequiredModels:
        """What draws."""
        return RequiredModels(bundles=self.bundles, alignments=self.alignments)


def deliveries_router(service: EdgeService) -> APIRouter:
    """Pictures as symbols, and what becomes of them on the way."""
    router = APIRouter(tags=["deliveries"])

    @router.post("/v1/deliveries", response_class=Response, responses=FRAMES)
    async def deliver(asked: DeliveryRequest, request: Request) -> Response:
        """Draw an image and put it on the air; the answer is a frame, or a tar of a SigMF recording."""
        return await _deliver(service, asked, request)

    @router.post("/v1/deliveries/{delivery_id}/image")
    async def received(delivery_id: DeliveryId, asked: SeeRequest, request: Request) -> SeenReply:
        """What a user at this channel would see of a delivery, made here or at an edge with the same updates."""
        return await _received(service, delivery_id, asked, request)

    @router.get("/v1/decoders")
    async def decoders() -> DecodersReply:
        """The decoders that belong to this edge's symbols, as ONNX."""
        return await service.decoders.current()

    @router.get("/v1/decoders/{sha256}.onnx", response_class=FileAnswer, responses=FILES)
    async def decoder(sha256: Digest, transmission: Update = None) -> FileAnswer:
        """One of them; what has this name never changes. With its update, also one that another edge has named."""
        path = await service.decoders.find(sha256, transmission)
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
            alignment=_alignment(service.alignments.all()),
            channel=None if puller is None else service.channel,
            checked=None if puller is None or puller.looked is None else puller.looked.checked,
            error=None if puller is None else puller.error,
            expires={} if puller is None else {r: int(t.timestamp()) for r, t in puller.expiries.items()},
        )

    @router.post("/pull")
    async def pull() -> PullReply:
        """Look at the registry now."""
        if service.puller is None:
            raise ApiError(409, "this edge has no registry", code="no_registry")
        new = await service.puller.pull()
        active: dict[str, str | None] = {kind: bundles.active(kind) for kind in KINDS}
        return PullReply(new=new, active=active, alignment=_alignment(service.alignments.all()))

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


def _alignment(states: Sequence[Alignment]) -> list[AlignmentReply]:
    return [AlignmentReply(**state.to_json()) for state in states]


async def _deliver(service: EdgeService, asked: DeliveryRequest, request: Request) -> Response:
    if asked.format == "sigmf" and asked.channel_seed is not None:
        raise ApiError(400, "a recording has symbols as sent; leave out channel_seed", param="channel_seed")
    # before anything is drawn
    _require_uses(service, asked)
    service.alignments.require("transmission")
    coder = await service.bundles.coder()
    delivery = await _made(service, asked, coder, request)
    service.traffic.count(coder.bundle, uses=int(delivery.condition.uses.sum()))
    if asked.format == "sigmf":
        body, media_type = await asyncio.to_thread(sigmf_bytes, delivery), "application/x-tar"
    else:
        body, media_type = await service.engine.compute(frame_bytes, delivery, asked.channel_seed), MEDIA_TYPE
    return Response(body, media_type=media_type, headers=_headers(service, delivery))


def _headers(service: EdgeService, delivery: Delivery) -> dict[str, str]:
    """What the head of an answer says of a delivery."""
    states = {f"x-alignment-{state.kind}": state.state for state in _states(service, delivery)}
    used = {f"x-bundle-{kind}": bundle for kind, bundle in delivery.bundles.items()}
    return {"x-delivery-id": delivery.id, **used, **states}


def _states(service: EdgeService, delivery: Delivery) -> list[Alignment]:
    """The states of the updates that took part in a delivery."""
    alignments = service.alignments
    return [
        alignments.of_model(delivery.model),
        alignments.of_bundle("transmission", delivery.coder.bundle),
    ]


async def _made(service: EdgeService, asked: DeliveryRequest, coder: Coder, request: Request) -> Delivery:
    """Draw what is asked for, unless it was drawn before, and put it on the air."""
    model, picture = await _picture(service, asked, request)
    recipe = Recipe(
        prompt=asked.prompt,
        seed=asked.seed,
        steps=asked.steps,
        generation=model.bundle and model.bundle[:HEAD],
        transmission=coder.bundle and coder.bundle[:HEAD],
        world=service.world,
        condition=asked.condition,
    )
    delivery = await service.engine.compute(encode, recipe, picture, model, coder, service.air)
    service.deliveries.keep(delivery.id, delivery)
    return delivery


async def _made_again(service: EdgeService, name: str, prompt: str | None, request: Request) -> Delivery:
    """A delivery from its id alone. Raises ApiError 404 if that takes another world, or an update that is not here."""
    recipe = read_id(name).with_prompt(prompt)
    if recipe.world != service.world:
        text = f"this delivery is of the world {recipe.world}, and this edge serves {service.world}"
        raise ApiError(404, text, code="delivery_not_found")
    asked = recipe.request()
    _require_uses(service, asked)
    bundles = service.bundles
    coder = await bundles.coder_with(recipe.transmission and bundles.find(recipe.transmission).id)
    return await _made(service, asked, coder, request)


def _require_uses(service: EdgeService, asked: DeliveryRequest) -> None:
    """Raise ApiError unless the codec can send so much."""
    if int(asked.condition.condition().payload.max()) > service.most_uses:
        text = f"the codec sends at most {service.most_uses} symbols an image"
        raise ApiError(400, text, param="condition.uses")


async def _picture(service: EdgeService, asked: DeliveryRequest, request: Request) -> tuple[Model, Picture]:
    """What is asked for, drawn now or before; with a condition changed alone, nothing is drawn."""
    async with service.models.using("edge", asked.bundle) as model:
        key = (asked.prompt, asked.seed, asked.steps, model.bundle)
        if (known := service.pictures.get(key)) is not None:
            return model, known
        drawing = service.engine.submit(
            Order(
                model=model,
                prompt=asked.prompt,
                seeds=(asked.seed,),
                steps=asked.steps,
                caller=caller_of(request),
            )
        )
    (drawn,) = await while_connected(request, drawing)
    (png,) = await asyncio.to_thread(png_bytes, drawn.image)
    picture = Picture(drawn=drawn, png=png)
    service.pictures.keep(key, picture)
    prompt_bytes = len(asked.prompt.encode())
    service.traffic.count(model.bundle, images=1, prompt_bytes=prompt_bytes, png_bytes=len(png))
    return model, picture


async def _received(service: EdgeService, name: str, asked: SeeRequest, request: Request) -> SeenReply:
    delivery = service.deliveries.get(name) or await _made_again(service, name, asked.prompt, request)
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
        alignment=_alignment(_states(service, delivery)),
        ledger=ledger_json(seen.ledger),
        warnings=delivery.warnings,
    )
