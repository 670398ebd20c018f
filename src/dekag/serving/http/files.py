"""Files as answers, in pieces that are taken up when the client has taken the ones before."""

from starlette.responses import FileResponse
from starlette.types import Message, Receive, Scope, Send

PIECE_BYTES = 2**13
"""Sent at a time: the server holds up to a dozen of them for a client that does not read."""
BLOCK_BYTES = 2**15
"""Read at a time."""


class FileAnswer(FileResponse):
    """A file, or the ranges of it that are asked for. Some 150 kB of memory for each client, however slow it is."""

    chunk_size = BLOCK_BYTES

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it. The server's own way for whole files would take twice that memory."""

        async def in_pieces(message: Message) -> None:
            *first, last = pieces(message.get("body", b"")) or [b""]
            for piece in first:
                await send({**message, "body": piece, "more_body": True})
            await send({**message, "body": last} if first else message)

        others = {name: it for name, it in scope.get("extensions", {}).items() if name != _WHOLE}
        await super().__call__({**scope, "extensions": others}, receive, in_pieces)


_WHOLE = "http.response.pathsend"


def pieces(block: bytes) -> list[bytes]:
    """A block as it is sent."""
    return [block[place : place + PIECE_BYTES] for place in range(0, len(block), PIECE_BYTES)]
