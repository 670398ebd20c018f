"""Granian, in this process and with one worker: a model is held once, and kill -9 leaves nothing behind."""

import asyncio
import logging
import signal
import socket

from fastapi import FastAPI
from granian.constants import HTTPModes, Interfaces
from granian.http import HTTP1Settings
from granian.log import LogLevels
from granian.server.embed import Server

from dekag.serving.http.logs import configure_logs, facts
from dekag.serving.http.settings import ServiceSettings
from dekag.types import InputError

log = logging.getLogger("dekag.serving")


def serve(app: FastAPI, settings: ServiceSettings) -> None:
    """Serve until SIGINT or SIGTERM; requests that have begun are finished.

    What goes on for ever looks at `app.state.stopping`. Raises InputError if the address cannot be listened on.
    """
    settings.require_safe()
    _require_free(settings)
    asyncio.run(_serve(app, settings))


async def _serve(app: FastAPI, settings: ServiceSettings) -> None:
    server = Server(
        app,
        settings.host,
        settings.port,
        interface=Interfaces.ASGI,
        http=HTTPModes.http1,
        websockets=False,
        backlog=1024,
        backpressure=settings.max_connections,
        # applies to the wait between two requests of a connection as well
        http1_settings=HTTP1Settings(header_read_timeout=round(1000 * settings.header_seconds)),
        log_level=LogLevels.error,
        log_dictconfig=configure_logs(settings.log_level),
    )
    loop, asked = asyncio.get_running_loop(), asyncio.Event()

    def stop() -> None:
        asked.set()
        app.state.stopping = True
        server.stop()  # type: ignore[no-untyped-call]

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)
    log.info("serving", extra=facts(title=app.title, address=f"http://{settings.host}:{settings.port}"))
    await server.serve()
    if not asked.is_set():
        raise InputError(f"{app.title} could not start; its log says why")
    log.info("stopped")


def _require_free(settings: ServiceSettings) -> None:
    """InputError unless nobody listens there: Granian would share the port."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.host, settings.port))
        except OSError as error:
            raise InputError(
                f"{settings.host} port {settings.port} cannot be listened on ({error.strerror}); choose another"
            ) from error
