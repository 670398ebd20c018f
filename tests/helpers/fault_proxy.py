"""A TCP proxy on loopback that does to a connection what networks do: cuts, resets, slowness and flipped bits.

with FaultProxy(port, Faults(cut_after=300_000)) as proxy:
    pull(f"http://127.0.0.1:{proxy.port}")
print(proxy.delivered)
"""

import asyncio
import fcntl
import random
import socket
import struct
import termios
import threading
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType

CHUNK = 4096


@dataclass(frozen=True, kw_only=True)
class Faults:
    """What befalls the bytes that a server sends; nothing by default.

    cut_after: each connection ends after so many bytes. reset: it ends without a farewell. bytes_per_s: of each
    connection. flip: share of chunks of 4096 bytes in which one bit is flipped.
    """

    cut_after: int | None = None
    reset: bool = False
    bytes_per_s: float | None = None
    flip: float = 0.0
    seed: int = 0


class FaultProxy:
    """Listens on a free port, in a thread of its own, and forwards to a port of this machine.

    delivered: bytes that were sent on to clients. connections: how many there were.
    """

    def __init__(self, target: int, faults: Faults) -> None:
        self.faults = faults
        self.delivered = 0
        self.connections = 0
        self.port = 0
        self._target = target
        self._random = random.Random(faults.seed)
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._open: set[asyncio.StreamWriter] = set()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "FaultProxy":
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def _run(self) -> None:
        self._loop.run_until_complete(self._serve())
        self._loop.close()

    async def _serve(self) -> None:
        self._stop = asyncio.Event()
        server = await asyncio.start_server(self._connection, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stop.wait()
        server.close()
        for writer in self._open:
            writer.transport.abort()
        if others := asyncio.all_tasks() - {asyncio.current_task()}:
            await asyncio.wait(others)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        writer.transport.set_write_buffer_limits(0)
        try:
            upstream, sender = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            writer.transport.abort()
            return
        self._open |= {writer, sender}
        ways = [
            asyncio.create_task(self._ask(reader, sender)),
            asyncio.create_task(self._answer(upstream, writer)),
        ]
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        await self._end(writer)
        sender.transport.abort()
        await asyncio.wait(ways)
        self._open -= {writer, sender}

    async def _ask(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while chunk := await reader.read(CHUNK):
                writer.write(chunk)
                await writer.drain()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        left = self.faults.cut_after
        with suppress(OSError):
            while left is None or left > 0:
                chunk = await reader.read(CHUNK if left is None else min(CHUNK, left))
                if not chunk:
                    return
                writer.write(self._flipped(chunk))
                await writer.drain()
                self.delivered += len(chunk)
                left = None if left is None else left - len(chunk)
                if self.faults.bytes_per_s is not None:
                    await asyncio.sleep(len(chunk) / self.faults.bytes_per_s)

    def _flipped(self, chunk: bytes) -> bytes:
        if self._random.random() >= self.faults.flip:
            return chunk
        flipped = bytearray(chunk)
        flipped[self._random.randrange(len(chunk))] ^= 1 << self._random.randrange(8)
        return bytes(flipped)

    async def _end(self, writer: asyncio.StreamWriter) -> None:
        """Close a client's connection, or reset it once what was sent has reached its machine."""
        held: socket.socket = writer.get_extra_info("socket")
        if not self.faults.reset or writer.is_closing():
            writer.close()
            return
        while struct.unpack("i", fcntl.ioctl(held.fileno(), termios.TIOCOUTQ, bytes(4)))[0]:
            await asyncio.sleep(0.001)
        held.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()
