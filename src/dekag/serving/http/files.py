"""Files as answers, in pieces that are read from the disk when the client has taken the ones before."""

from starlette.responses import FileResponse
from starlette.types import Receive, Scope, Send

PIECE_BYTES = 2**14
"""The server holds a dozen of them for a client that does not read."""


class FileAnswer(FileResponse):
    """A file, or the ranges of it that are asked for. Some 170 kB of memory for each client, however slow it is."""

    chunk_size = PIECE_BYTES

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it. The server's own way for whole files would take twice that memory, and a thread."""
        extensions = {
            name: value
            for name, value in scope.get("extensions", {}).items()
            if name != "http.response.pathsend"
        }
        await super().__call__({**scope, "extensions": extensions}, receive, send)
