"""Limits before work: how many requests at a time, how large a body and how long it may take.

A request holds its place until its answer is made. What its client takes long to read holds none: that is an answer
whose length is known when it begins, and `connections` ends those that are never read.
"""

import asyncio
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dekag.serving.http.errors import ApiError
from dekag.serving.http.settings import ServiceSettings


class Limits:
    """Middleware: reads the body, at most so long and so large, before anything else looks at it.

    free: paths that are always answered, so that probes see a busy service as alive.
    """

    def __init__(self, app: ASGIApp, *, settings: ServiceSettings, free: Sequence[str]) -> None:
        self._app = app
        self._settings = settings
        self._free = frozenset(free)
        self._in_flight = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 408, 413 or 429, or go on with the body in memory."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        counted = scope["path"] not in self._free
        if counted and self._in_flight >= self._settings.max_in_flight:
            await _BUSY.response()(scope, receive, send)
            return
        self._in_flight += counted

        async def noticed(message: Message) -> None:
            nonlocal counted
            if message["type"] == "http.response.start" and "content-length" in Headers(scope=message):
                self._in_flight -= counted
                counted = False
            await send(message)

        try:
            try:
                body = await self._body(scope, receive)
            except ApiError as error:
                await error.response()(scope, receive, send)
                return
            await self._app(scope, _replayed(body, receive), noticed)
        finally:
            self._in_flight -= counted

    async def _body(self, scope: Scope, receive: Receive) -> Message:
        """The whole body as one message, or that the client has gone."""
        max_bytes = self._settings.max_body_bytes
        declared = Headers(scope=scope).get("content-length", "0")
        if not (declared.isascii() and declared.isdigit()) or len(declared) > 18 or int(declared) > max_bytes:
            raise self._too_large()
        parts: list[bytes] = []
        size, more = 0, True
        try:
            async with asyncio.timeout(self._settings.body_seconds):
                while more:
                    message = await receive()
                    if message["type"] != "http.request":
                        return message
                    part = message.get("body", b"")
                    size, more = size + len(part), message.get("more_body", False)
                    if size > max_bytes:
                        raise self._too_large()
                    parts.append(part)
        except TimeoutError:
            seconds = self._settings.body_seconds
            raise ApiError(
                408, f"the body did not arrive within {seconds:g} s", headers={"connection": "close"}
            ) from None
        return {"type": "http.request", "body": b"".join(parts), "more_body": False}

    def _too_large(self) -> ApiError:
        max_bytes = self._settings.max_body_bytes
        return ApiError(413, f"a body has at most {max_bytes} bytes", headers={"connection": "close"})


_BUSY = ApiError(429, "too many requests at a time; try again in a second", headers={"retry-after": "1"})


def _replayed(body: Message, receive: Receive) -> Receive:
    """A `receive` that first gives what was read, then what comes from the server."""
    unread = [body]

    async def replay() -> Message:
        return unread.pop() if unread else await receive()

    return replay
