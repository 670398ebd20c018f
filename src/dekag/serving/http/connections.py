"""The sockets of a service: how it listens, and which of its connections it ends.

A client that reads nothing is ended by the kernel, which keeps little for it meanwhile. What the kernel has no
rule for is looked at twice a second, through /proc/self/fd as the server gives its sockets to nobody: clients
that read too slowly to ever be done, and peers with too many connections.
"""

import logging
import os
import socket
import stat
import struct
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from dekag.errors import InputError
from dekag.serving.http.logs import facts
from dekag.serving.http.settings import ServiceSettings

log = logging.getLogger("dekag.serving")
BACKLOG = 1024
SEND_BUFFER_BYTES = 2**17
"""Asked of the kernel for each connection, which takes twice that; by itself it keeps 4 MiB for who reads nothing."""
LOOK_SECONDS = 0.5
_DESCRIPTORS = Path("/proc/self/fd")
_BYTES_ACKED = slice(120, 128)
"""Of struct tcp_info, linux/tcp.h."""
_MAPPED = bytes(10) + b"\xff\xff"
"""What stands before an IPv4 address in an IPv6 one, RFC 4291, 2.5.5.2."""


def listen(settings: ServiceSettings) -> socket.socket:
    """A socket whose connections keep to the settings. Raises InputError if the address is taken or not ours."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    # connections inherit all of these
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        milliseconds = round(1000 * settings.write_seconds)
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
    try:
        listening.bind((settings.host, settings.port))
        listening.listen(BACKLOG)
    except OSError as error:
        listening.close()
        raise InputError(
            f"{settings.host} port {settings.port} cannot be listened on ({error.strerror}); choose another"
        ) from error
    return listening


@contextmanager
def watched(settings: ServiceSettings) -> Iterator[None]:
    """Within, connections that cost too much are ended. Where there is no /proc, none is, and the log says so."""
    if not _DESCRIPTORS.is_dir():
        log.warning("this system has no /proc: connections are limited in all, but not by peer or speed")
        yield
        return
    connections, done = Connections(settings), threading.Event()

    def look() -> None:
        while not done.wait(LOOK_SECONDS):
            try:
                connections.look()
            except Exception:
                log.exception("connections could not be looked at")

    # a thread of its own: the loop's threads may all be at work
    thread = threading.Thread(target=look, name="connections", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


@dataclass(frozen=True, kw_only=True)
class _Connection:
    """A connection at one moment. acked, queued: bytes that the client has, and that wait for it."""

    descriptor: int
    identity: tuple[int, object]
    peer: bytes
    acked: int
    queued: int


@dataclass(frozen=True, kw_only=True)
class _Mark:
    """What a client must have before its time is over. acked: bytes. since: of the clock, when it was set."""

    acked: int
    since: float


class Connections:
    """The connections of this process's server, from one look to the next."""

    def __init__(self, settings: ServiceSettings) -> None:
        self._port = settings.port
        self._by_peer = settings.max_connections_by_peer
        self._seconds = settings.answer_seconds
        self._marks: dict[tuple[int, object], _Mark] = {}

    def look(self) -> int:
        """End what is too slow, and what is too many of a peer, the newest first; returns how many that were."""
        now, before = time.monotonic(), self._marks
        # those that were there before come first, so a crowd does not push them out
        found = sorted(_connections(self._port), key=lambda one: one.identity not in before)
        self._marks = {one.identity: _marked(one, before.get(one.identity), now) for one in found}
        slow = [one for one in found if now - self._marks[one.identity].since > self._seconds]
        peers, crowd = Counter[bytes](), []
        for one in found:
            peers[one.peer] += 1
            if peers[one.peer] > self._by_peer:
                crowd.append(one)
        for one in (*slow, *crowd):
            _end(one)
        if slow or crowd:
            log.warning("connections were ended", extra=facts(too_slow=len(slow), too_many=len(crowd)))
        return len(slow) + len(crowd)


def _marked(one: _Connection, mark: _Mark | None, now: float) -> _Mark:
    """The mark to be reached next: the same until then. What comes after it counts for the next one.

    So an endless answer is none that is too slow, as long as what is sent arrives.
    """
    if mark is None or not one.queued or one.acked >= mark.acked:
        return _Mark(acked=one.acked + one.queued, since=now)
    return mark


def _connections(port: int) -> Iterator[_Connection]:
    for name in os.listdir(_DESCRIPTORS):
        with suppress(OSError):  # it may be closed by now
            if (found := _connection(int(name), port)) is not None:
                yield found


def _connection(descriptor: int, port: int) -> _Connection | None:
    """What is known of a descriptor, None if it is no connection to this port."""
    import fcntl
    import termios

    if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
        return None
    # a copy: the number can come to mean another file at any time
    with socket.fromfd(descriptor, socket.AF_INET, socket.SOCK_STREAM) as copy:
        here = copy.getsockname()
        if not isinstance(here, tuple) or here[1] != port:
            return None
        there = copy.getpeername()
        information = copy.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BYTES_ACKED.stop)
        queued = fcntl.ioctl(copy.fileno(), termios.TIOCOUTQ, bytes(4))
        return _Connection(
            descriptor=descriptor,
            identity=(os.fstat(copy.fileno()).st_ino, there),
            peer=_peer(there[0]),
            acked=int.from_bytes(information[_BYTES_ACKED], sys.byteorder),
            queued=int.from_bytes(queued, sys.byteorder),
        )


def _peer(address: str) -> bytes:
    """Whom an address belongs to: in IPv6 that is a network of 64 bits, which one machine has for itself."""
    if ":" not in address:
        return socket.inet_pton(socket.AF_INET, address)
    packed = socket.inet_pton(socket.AF_INET6, address.partition("%")[0])
    return packed[12:] if packed[:12] == _MAPPED else packed[:8]


def _end(one: _Connection) -> None:
    """End a connection; the server notices and closes it, and the kernel drops what waits for the client."""
    with suppress(OSError), socket.fromfd(one.descriptor, socket.AF_INET, socket.SOCK_STREAM) as copy:
        if (os.fstat(copy.fileno()).st_ino, copy.getpeername()) == one.identity:
            copy.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            copy.shutdown(socket.SHUT_RDWR)
