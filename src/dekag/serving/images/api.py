"""The images interfaces of OpenAI and Hugging Face over an engine."""

import asyncio
import base64
import json
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from fastapi import APIRouter, Request
from fastapi.sse import format_sse_event
from starlette.responses import Response, StreamingResponse

from dekag.link import BUNDLE_ID_BYTES, SEED_BYTES
from dekag.serving.alignment import Alignment
from dekag.serving.http.callers import caller_of
from dekag.serving.http.errors import ApiError, as_api_error, json_response
from dekag.serving.http.logs import facts
from dekag.serving.images.engine import Drawing, Drawn, Engine, Model, Order
from dekag.serving.images.files import FORMATS, image_file
from dekag.serving.images.requests import (
    AlignmentDetails,
    Details,
    HubParameters,
    HubRequest,
    ImageData,
    ImageRequest,
    ImagesReply,
    ModelCard,
    ModelList,
    TokenDetails,
    Traffic,
    Usage,
    request_model,
)
from dekag.types import Image

log = logging.getLogger("dekag.serving")
JPEG_QUALITY = 90
OnAnswer = Callable[[Details], None]


@runtime_checkable
class Models(Protocol):
    """The models of a service by the names that clients use; the first is taken if none is named."""

    def names(self) -> Sequence[str]:
        """All names."""
        ...

    def using(self, name: str | None, bundle: str | None) -> AbstractAsyncContextManager[Model]:
        """A model with the update that is asked for, which stays loaded within. Raises ApiError for unknown ones."""
        ...


@dataclass(frozen=True, kw_only=True)
class ImageService:
    """What the routes need. size: WIDTHxHEIGHT of the images. on_answer: is given the details of every answer.

    alignment: says the state of what a model draws, None of a service that has no updates.
    """

    engine: Engine
    models: Models
    size: str
    log_prompts: bool = False
    alignment: Callable[[Model], Alignment | None] = field(default=lambda _: None)
    on_answer: OnAnswer = field(default=lambda _: None)
    started: int = field(default_factory=lambda: int(time.time()))


def images_router(service: ImageService) -> APIRouter:
    """OpenAI's images and models, and Hugging Face's text_to_image at the root and at a model's name."""
    router = APIRouter()
    create_image = request_model(service.size)

    @router.post("/v1/images/generations", tags=["images"], response_model=ImagesReply, responses=_STREAM)
    async def generate(asked: create_image, request: Request) -> Any:  # type: ignore[valid-type]
        """Draw images. With `stream`, answers server-sent events: pictures on the way, then the image."""
        return await _generate(service, asked, request)

    @router.get("/v1/models", tags=["models"])
    async def models() -> ModelList:
        """What can be named as `model`."""
        return ModelList(data=[_card(service, name) for name in service.models.names()])

    @router.get("/v1/models/{name:path}", tags=["models"])
    async def model(name: str) -> ModelCard:
        """One of them."""
        if name not in service.models.names():
            raise unknown_model(name)
        return _card(service, name)

    @router.post("/", tags=["images"], response_class=Response, responses=_PICTURE)
    async def text_to_image(asked: HubRequest, request: Request) -> Response:
        """Hugging Face's text_to_image: the answer is the picture."""
        return await _text_to_image(service, None, asked, request)

    @router.post("/models/{name:path}", tags=["images"], response_class=Response, responses=_PICTURE)
    async def text_to_image_with(name: str, asked: HubRequest, request: Request) -> Response:
        """The same with a model by its name."""
        return await _text_to_image(service, name, asked, request)

    return router


_STREAM: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {}}}}
_PICTURE: dict[int | str, dict[str, Any]] = {200: {"content": {"image/png": {}}}}


def unknown_model(name: str) -> ApiError:
    """The answer to a name that is none."""
    return ApiError(404, f"there is no model {ascii(name)[:80]}", code="model_not_found", param="model")


async def while_connected(request: Request, drawing: Drawing) -> list[Drawn]:
    """The images of an order; if the client hangs up before, its places are freed and ApiError says so."""
    result = asyncio.ensure_future(drawing.result())
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({result, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not result.done():
            raise ApiError(499, "the client hung up", type="client_error", code="client_gone")
        return result.result()
    finally:
        drawing.cancel()
        gone.cancel()
        result.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _generate(service: ImageService, asked: ImageRequest, request: Request) -> Any:
    images = asked.n or 1
    if asked.stream and images > 1:
        raise ApiError(400, "a stream has one image; leave out n or stream", param="n", code="invalid_value")
    if asked.partial_images and not asked.stream:
        raise ApiError(
            400, "pictures on the way come with stream", param="partial_images", code="invalid_value"
        )
    first = asked.seed or 0
    async with service.models.using(asked.model, asked.bundle) as model:
        order = Order(
            model=model,
            prompt=asked.prompt,
            seeds=tuple(range(first, first + images)),
            steps=asked.steps,
            partials=asked.partial_images or 0,
            caller=caller_of(request),
        )
        drawing = _submit(service, order)
    form = asked.output_format or "png"
    answer = _Answer(service=service, order=order, form=form, asked=asked, state=service.alignment(model))
    if asked.stream:
        events = _events(answer, drawing)
        return StreamingResponse(events, media_type="text/event-stream", headers=answer.headers)
    reply = await answer.reply(await while_connected(request, drawing))
    return json_response(reply.model_dump(), headers=answer.headers)


async def _text_to_image(
    service: ImageService, name: str | None, asked: HubRequest, request: Request
) -> Response:
    given = asked.parameters or HubParameters()
    width, height = service.size.split("x")
    if str(given.width or width) != width or str(given.height or height) != height:
        raise ApiError(400, f"images have {service.size} pixels", param="parameters.width")
    async with service.models.using(name, given.bundle) as model:
        order = Order(
            model=model,
            prompt=asked.inputs,
            seeds=(given.seed or 0,),
            steps=given.num_inference_steps,
            caller=caller_of(request),
        )
        drawing = _submit(service, order)
    answer = _Answer(service=service, order=order, form="png", asked=None, state=service.alignment(model))
    drawn = await while_connected(request, drawing)
    (file,) = await answer.files(drawn)
    answer.details(drawn, [file])
    return Response(file, media_type=FORMATS["png"], headers=answer.headers)


def _submit(service: ImageService, order: Order) -> Drawing:
    drawing = service.engine.submit(order)
    if service.log_prompts:
        log.info("order", extra=facts(prompt=order.prompt, seeds=order.seeds, bundle=order.model.bundle))
    return drawing


@dataclass(frozen=True, kw_only=True)
class _Answer:
    """An order's images in the form that was asked for. state: of what draws them."""

    service: ImageService
    order: Order
    form: str
    asked: ImageRequest | None
    state: Alignment | None

    @property
    def headers(self) -> dict[str, str]:
        """What the head of the answer says of them."""
        return {} if self.state is None else {"x-alignment": self.state.state}

    async def files(self, drawn: Sequence[Drawn]) -> list[bytes]:
        """The images as files."""
        return [await self._file(one.image, seed=one.seed) for one in drawn]

    async def _file(self, image: Image, *, seed: int) -> bytes:
        compression = None if self.asked is None else self.asked.output_compression
        notes = {"seed": str(seed), "bundle": self.order.model.bundle or "none", "software": "dekag"}
        if self.state is not None:
            notes["alignment"] = self.state.state
        quality = JPEG_QUALITY if compression is None else compression
        return await asyncio.to_thread(image_file, image, self.form, quality=quality, notes=notes)

    async def reply(self, drawn: Sequence[Drawn]) -> ImagesReply:
        """The answer without a stream."""
        files = await self.files(drawn)
        return ImagesReply(
            created=int(time.time()),
            data=[ImageData(b64_json=base64.b64encode(file).decode()) for file in files],
            output_format=self.form,  # type: ignore[arg-type]
            size=self.service.size,
            usage=_usage(drawn),
            gsc=self.details(drawn, files),
        )

    async def partial(self, image: Image, number: int) -> bytes:
        """The event of a picture on the way."""
        file = await self._file(image, seed=self.order.seeds[0])
        return self._event("image_generation.partial_image", file, {"partial_image_index": number})

    async def completed(self, drawn: Drawn) -> bytes:
        """The event of the image."""
        file = await self._file(drawn.image, seed=drawn.seed)
        more = {"usage": _usage([drawn]).model_dump(), "gsc": self.details([drawn], [file]).model_dump()}
        return self._event("image_generation.completed", file, more)

    def _event(self, name: str, file: bytes, more: dict[str, Any]) -> bytes:
        content = {
            "type": name,
            "b64_json": base64.b64encode(file).decode(),
            "created_at": int(time.time()),
            "size": self.service.size,
            "quality": "auto",
            "background": "opaque",
            "output_format": self.form,
        }
        return format_sse_event(event=name, data_str=json.dumps(content | more))

    def details(self, drawn: Sequence[Drawn], files: Sequence[bytes]) -> Details:
        """How the images were drawn; the service is told of it."""
        bundle, last, state = self.order.model.bundle, drawn[-1], self.state
        details = Details(
            bundle=bundle,
            seeds=list(self.order.seeds),
            steps=last.steps,
            milliseconds={"queue": round(last.queue_ms, 1), "draw": round(last.draw_ms, 1)},
            ledger=Traffic(
                prompt_bytes=len(self.order.prompt.encode()),
                seed_bytes=SEED_BYTES * len(drawn),
                id_bytes=BUNDLE_ID_BYTES if bundle else 0,
                image_bytes=sum(len(file) for file in files),
            ),
            alignment=None if state is None else AlignmentDetails(state=state.state, reason=state.reason),
            warnings=[]
            if not last.unread
            else [f"the text encoder does not read the last {last.unread} of {last.tokens} tokens"],
        )
        self.service.on_answer(details)
        return details


async def _events(answer: _Answer, drawing: Drawing) -> AsyncIterator[bytes]:
    """Pictures on the way as they come, then the image; an error is an event as well."""
    result = asyncio.ensure_future(drawing.result())
    number = 0
    try:
        while not result.done() or not drawing.partials.empty():
            partial = asyncio.ensure_future(drawing.partials.get())
            await asyncio.wait({partial, result}, return_when=asyncio.FIRST_COMPLETED)
            if not partial.done():
                partial.cancel()
                continue
            yield await answer.partial(partial.result(), number)
            number += 1
        (drawn,) = result.result()
        yield await answer.completed(drawn)
    except Exception as error:
        log.exception("a stream failed")
        yield format_sse_event(event="error", data_str=json.dumps(as_api_error(error).body()))
    finally:
        drawing.cancel()
        result.cancel()


def _usage(drawn: Sequence[Drawn]) -> Usage:
    text = drawn[0].tokens
    places = sum(0 if one.latent is None else one.latent.shape[-1] * one.latent.shape[-2] for one in drawn)
    return Usage(
        input_tokens=text,
        input_tokens_details=TokenDetails(image_tokens=0, text_tokens=text),
        output_tokens=places,
        total_tokens=text + places,
    )


def _card(service: ImageService, name: str) -> ModelCard:
    return ModelCard(id=name, created=service.started)
