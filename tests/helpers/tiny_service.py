"""A service without a model, for tests of what every service has: `tiny_service.py PORT`; settings as DEKAG_..."""

import asyncio
import errno
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from fastapi.sse import EventSourceResponse, ServerSentEvent

from dekag.serving.http.app import create_app
from dekag.serving.http.files import FileAnswer
from dekag.serving.http.server import leave, serve
from dekag.serving.http.settings import ServiceSettings, load_settings
from dekag.serving.page import page_files
from dekag.types import InputError

LARGE = page_files()["vendor/onnxruntime-web-1.30.0/ort-wasm-simd-threaded.wasm"].path
"""The largest file of the page, 3.6 MB."""


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    """Nothing runs beside the requests."""
    yield


def tiny_app(settings: ServiceSettings) -> FastAPI:
    """Routes that answer, refuse and fail."""
    app = create_app(
        title="tiny", settings=settings, lifespan=lifespan, ready=lambda: None, public=("/page/*",)
    )

    @app.post("/v1/images/generations")
    async def echo(asked: dict[str, Any]) -> dict[str, Any]:
        return asked

    add_pages(app)
    add_failures(app)
    return app


def add_pages(app: FastAPI) -> None:
    """What anybody may ask for."""

    @app.get("/page/{name}")
    async def page(name: str) -> dict[str, str]:
        return {"page": name}

    @app.get("/page/large/file")
    async def large() -> FileAnswer:
        return FileAnswer(LARGE)

    @app.get("/page/slow/answer")
    async def slow(seconds: float) -> dict[str, float]:
        await asyncio.sleep(seconds)
        return {"seconds": seconds}

    @app.get("/page/events/{pause}", response_class=EventSourceResponse)
    async def events(pause: float) -> AsyncIterator[ServerSentEvent]:
        while not app.state.stopping:
            yield ServerSentEvent(data="x" * 100)
            await asyncio.sleep(pause)


def add_failures(app: FastAPI) -> None:
    """What goes wrong."""

    @app.get("/v1/refuse")
    async def refuse() -> None:
        raise InputError("uses must be at least 1,\ngot 0")

    @app.get("/v1/fail")
    async def fail() -> None:
        raise RuntimeError("the secret of the machine")

    @app.get("/v1/full")
    async def full() -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "/a/path/of/the/machine")

    @app.get("/v1/full/{kind}")
    async def full_and_told_otherwise(kind: str) -> None:
        try:
            await full()
        except OSError as error:
            if kind == "input":
                raise InputError(f"it cannot be written: {error}") from error
            if kind == "cause":
                raise RuntimeError("the store failed") from error
            raise RuntimeError("the store failed")  # noqa: B904


if __name__ == "__main__":
    chosen = load_settings(ServiceSettings, port=int(sys.argv[1]))
    serve(tiny_app(chosen), chosen)
    leave()
