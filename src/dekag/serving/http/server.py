"""Granian, in this process and with one worker: a model is held once, and kill -9 leaves nothing behind."""

import asyncio
import atexit
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable
from typing import NoReturn

from fastapi import FastAPI
from granian._granian import SocketHolder
from granian.constants import HTTPModes, Interfaces
from granian.http import HTTP1Settings
from granian.log import LogLevels
from granian.server.embed import Server

from dekag.errors import InputError
from dekag.serving.http.connections import BACKLOG, listen, watched
from dekag.serving.http.logs import configure_logs, facts
from dekag.serving.http.settings import ServiceSettings
from dekag.serving.supported import check_service

log = logging.getLogger("dekag.serving")
BUFFER_BYTES = 2**15
"""Most of a request's head, and of an answer before the kernel takes it."""

LAST_SECONDS = 1.0


def serve(app: FastAPI, settings: ServiceSettings) -> None:
    """Serve until SIGTERM, SIGINT or, by the settings, the end of standard input.

    SIGTERM first makes `app.state.draining` true for `drain_seconds`: the service answers, but says that it is not
    ready. Then, and at once after SIGINT or a second signal, the port closes, `app.state.stopping` is true, which
    is for what goes on for ever, and requests that have begun are finished.
    Raises InputError if the address cannot be listened on, or on a system where no service runs.
    """
    check_service()
    settings.require_safe()
    listening = listen(settings)
    with watched(settings):
        asyncio.run(_serve(app, settings, listening))


def leave() -> NoReturn:
    """End this process with 0 after `serve`, once all that is registered for its end is done.

    The interpreter is not taken apart: a thread of Granian's may still be about to call it, and that would abort.
    """
    atexit._run_exitfuncs()
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


class _Server(Server):
    """Granian's, on a socket of ours: its own would keep no deadline for who reads nothing."""

    def __init__(self, app: FastAPI, settings: ServiceSettings, listening: socket.socket) -> None:
        super().__init__(
            app,
            settings.host,
            settings.port,
            interface=Interfaces.ASGI,
            http=HTTPModes.http1,
            websockets=False,
            backlog=BACKLOG,
            backpressure=settings.max_connections,
            http1_settings=HTTP1Settings(
                # applies to the wait between two requests of a connection as well
                header_read_timeout=round(1000 * settings.header_seconds),
                max_buffer_size=BUFFER_BYTES,
            ),
            log_level=LogLevels.error,
            log_dictconfig=configure_logs(settings.log_level),
        )
        self._listening = listening

    def _init_shared_socket(self) -> None:
        # the worker closes it; Granian's description of itself leaves out what its holders are made of
        self._shd = SocketHolder(self._listening.detach(), False, self.backlog)  # type: ignore[assignment, call-arg]
        self._ssp = None


async def _serve(app: FastAPI, settings: ServiceSettings, listening: socket.socket) -> None:
    server, loop, asked = _Server(app, settings, listening), asyncio.get_running_loop(), asyncio.Event()

    def stop() -> None:
        asked.set()
        app.state.draining = app.state.stopping = True
        server.stop()  # type: ignore[no-untyped-call]

    def drain() -> None:
        if app.state.draining or not settings.drain_seconds:
            stop()
        else:
            app.state.draining = True
            log.info("draining", extra=facts(seconds=settings.drain_seconds))
            loop.call_later(settings.drain_seconds, stop)

    loop.add_signal_handler(signal.SIGINT, stop)
    loop.add_signal_handler(signal.SIGTERM, drain)
    if settings.stop_with_input:
        _at_the_end_of_input(loop, stop)
    log.info("serving", extra=facts(title=app.title, address=f"http://{settings.host}:{settings.port}"))
    await server.serve()
    if not asked.is_set():
        raise InputError(f"{app.title} could not start; its log says why")
    # answers whose clients have gone may not have noticed yet; cut off, each would be a failure in the log
    if others := asyncio.all_tasks() - {asyncio.current_task()}:
        await asyncio.wait(others, timeout=LAST_SECONDS)
    log.info("stopped")


def _at_the_end_of_input(loop: asyncio.AbstractEventLoop, stop: Callable[[], None]) -> None:
    """Have the loop call `stop` once nobody holds the other end of standard input any more."""
    descriptor = sys.stdin.fileno()

    def read() -> None:
        if not os.read(descriptor, 4096):
            loop.remove_reader(descriptor)
            stop()

    try:
        loop.add_reader(descriptor, read)
    except PermissionError as error:  # a file, or nothing at all
        raise InputError("STOP_WITH_INPUT needs a pipe as standard input; leave it out") from error
