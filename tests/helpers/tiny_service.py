"""A service without a model, for tests of what every service has: `tiny_service.py PORT`; settings as DEKAG_..."""

import errno
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI

from dekag.serving.http.app import create_app
from dekag.serving.http.server import serve
from dekag.serving.http.settings import ServiceSettings, load_settings
from dekag.types import InputError


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

    @app.get("/page/{name}")
    async def page(name: str) -> dict[str, str]:
        return {"page": name}

    @app.get("/v1/refuse")
    async def refuse() -> None:
        raise InputError("uses must be at least 1,\ngot 0")

    @app.get("/v1/fail")
    async def fail() -> None:
        raise RuntimeError("the secret of the machine")

    @app.get("/v1/full")
    async def full() -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "/a/path/of/the/machine")

    return app


if __name__ == "__main__":
    chosen = load_settings(ServiceSettings, port=int(sys.argv[1]))
    serve(tiny_app(chosen), chosen)
