"""A FastAPI application with what every service has around its routes."""

import logging
import re
import time
import uuid
from collections.abc import Callable, Sequence
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp, Lifespan, Message, Receive, Scope, Send

from dekag.serving.http.auth import Authentication, Tokens
from dekag.serving.http.errors import RESPONSES, ApiError, as_api_error, install_errors
from dekag.serving.http.limits import Limits
from dekag.serving.http.logs import facts, request_id
from dekag.serving.http.metrics import HttpMetrics
from dekag.serving.http.origins import OwnOrigins
from dekag.serving.http.settings import ServiceSettings
from dekag.version import __version__

log = logging.getLogger("dekag.serving")
PROBES = ("/healthz", "/readyz", "/metrics")
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


def create_app(
    *,
    title: str,
    settings: ServiceSettings,
    lifespan: Lifespan[FastAPI],
    ready: Callable[[], str | None],
    metrics: HttpMetrics | None = None,
    public: Sequence[str] = (),
) -> FastAPI:
    """An application to add routers to.

    ready: says what is missing for work to be done, None if nothing is. metrics: with the service's own numbers.
    public: paths that anyone may read; one that ends in /* stands for all below it.
    Raises InputError for settings that would let strangers in, or tokens that cannot be read.
    """
    settings.require_safe()
    app = FastAPI(
        title=title,
        version=__version__,
        lifespan=lifespan,
        docs_url=None,  # its page loads scripts from another host
        redoc_url=None,
        responses=RESPONSES,
        redirect_slashes=False,
    )
    app.state.draining = app.state.stopping = False
    app.state.guarded = settings.guarded
    measured = metrics or HttpMetrics()
    open_paths = ("/healthz", "/readyz", *public)
    install_errors(app)
    _add_probes(app, ready, measured)
    _surround(app, settings, measured, open_paths)
    if settings.guarded:
        _describe_tokens(app, frozenset(open_paths))
    return app


def _surround(app: FastAPI, settings: ServiceSettings, metrics: HttpMetrics, public: Sequence[str]) -> None:
    """Put the middleware around the routes; the last one added is the first to see a request."""
    app.add_middleware(Limits, settings=settings, free=PROBES)
    tokens = Tokens(settings) if settings.guarded else None
    app.add_middleware(Authentication, tokens=tokens, public=public, metrics=settings.open_metrics)
    app.add_middleware(OwnOrigins, allowed=settings.allowed_origins)
    if settings.allowed_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.allowed_origins,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["authorization", "content-type"],
            expose_headers=["retry-after", "x-request-id", "x-delivery-id"],
        )
    app.add_middleware(Observed, metrics=metrics)


class Observed:
    """Middleware: gives each request an id, a line in the log and a place in the metrics, and answers failures."""

    def __init__(self, app: ASGIApp, *, metrics: HttpMetrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Go on, and tell what came of it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        identity = _request_id(Headers(scope=scope).get("x-request-id", ""))
        token = request_id.set(identity)
        started, status = time.perf_counter(), 0

        async def named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = identity
                if scope["app"].state.draining:
                    headers["connection"] = "close"  # the next request should go elsewhere
            await send(message)

        try:
            await self._app(scope, receive, named)
        except Exception as error:
            log.exception("a request failed")
            if status:  # half an answer must not look like a whole one
                raise
            await as_api_error(error).response()(scope, receive, named)
        finally:
            self._tell(scope, status or 499, time.perf_counter() - started)
            request_id.reset(token)

    def _tell(self, scope: Scope, status: int, seconds: float) -> None:
        method = scope["method"] if scope["method"] in METHODS else "other"
        route = getattr(scope.get("route"), "path", "none")
        self._metrics.observe(method, route, status, seconds)
        level = logging.DEBUG if scope["path"] in PROBES else logging.INFO
        # the route's pattern: a delivery's id, which is in its path, holds a prompt
        path = scope["path"][:200] if route == "none" else route
        details = facts(method=method, path=path, status=status, ms=round(1000 * seconds, 1))
        log.log(level, "request", extra=details)


def _request_id(given: str) -> str:
    return given if _ID.fullmatch(given) else uuid.uuid4().hex


def _add_probes(app: FastAPI, ready: Callable[[], str | None], metrics: HttpMetrics) -> None:
    @app.get("/healthz", tags=["probes"])
    async def healthz() -> dict[str, str]:
        """The process answers."""
        return {"status": "ok"}

    @app.get("/readyz", tags=["probes"])
    async def readyz() -> dict[str, str]:
        """Work can be done."""
        if reason := "stopping" if app.state.draining else ready():
            raise ApiError(503, reason, code="not_ready", headers={"retry-after": "1"})
        return {"status": "ready"}

    @app.get("/metrics", tags=["probes"], response_class=Response, include_in_schema=False)
    async def numbers() -> Response:
        """The metrics as Prometheus reads them."""
        return metrics.response()


def _describe_tokens(app: FastAPI, public: frozenset[str]) -> None:
    """Have the description of the interface say which routes need a token."""

    def described() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = get_openapi(title=app.title, version=app.version, routes=app.routes)
            components = schema.setdefault("components", {})
            components["securitySchemes"] = {"bearer": {"type": "http", "scheme": "bearer"}}
            schema["security"] = [{"bearer": []}]
            for path in public & schema["paths"].keys():
                if "get" in schema["paths"][path]:
                    schema["paths"][path]["get"]["security"] = []
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = described  # type: ignore[method-assign]
