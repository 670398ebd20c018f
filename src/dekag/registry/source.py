"""Where an edge reads a registry from: a server, an object store, a folder. Bytes come as they arrive."""

import re
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable
from urllib.parse import urlsplit

import httpx2
from fsspec.core import url_to_fs  # type: ignore[import-untyped]

from dekag.errors import InputError
from dekag.registry.faults import RegistryError
from dekag.wire.http import client_options, through

_CHUNK = 1 << 16
_OBJECT_CHUNK = 1 << 20
_OBJECTS = ("s3://", "gs://", "az://", "abfs://", "memory://")
"""Beginnings of the addresses of object stores."""
_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})")


class BrokenOffError(Exception):
    """The bytes stopped coming; another try may go on. The text says why."""


@dataclass(frozen=True, kw_only=True)
class Stream:
    """A file from one place on.

    start: where the first byte belongs; 0 if the source would not begin elsewhere. total: bytes of the whole file,
    if the source says. tag: names these very contents, so that a later range is of the same ones.
    """

    start: int
    total: int | None
    tag: str | None
    chunks: Iterator[bytes]


@runtime_checkable
class Source(Protocol):
    """A registry to read from."""

    @property
    def name(self) -> str:
        """The address for messages, without what could be secret in it."""
        ...

    def open(self, path: str, *, start: int = 0, tag: str | None = None) -> AbstractContextManager[Stream]:
        """A file below the registry from a byte on, of the contents of `tag` if given.

        Raises RegistryError if there is no such file or the source points elsewhere, BrokenOffError if it breaks off.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class FolderSource:
    """A registry in a folder, or on a medium that was carried here."""

    folder: Path

    @property
    def name(self) -> str:
        """The folder."""
        return str(self.folder)

    @contextmanager
    def open(self, path: str, *, start: int = 0, tag: str | None = None) -> Iterator[Stream]:
        """As `Source.open`."""
        try:
            file = (self.folder / path).open("rb")
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
            raise RegistryError("missing", f"{self.name} has no {path}") from error
        with file:
            total = file.seek(0, 2)
            file.seek(start)
            yield Stream(start=start, total=total, tag=None, chunks=iter(lambda: file.read(_CHUNK), b""))


class HttpSource:
    """A registry behind HTTP. Redirects are refused, and so is whatever is encoded on the way.

    timeout_s: longest silence, and longest time to connect. head_s: longest time from there until an answer begins.
    edge: what the edge calls itself, for the ledger of a cloud that serves the registry.
    Raises InputError if the URL is no address, or the environment's proxy for it is none.
    """

    def __init__(self, url: str, *, timeout_s: float = 10.0, head_s: float = 30.0, edge: str = "") -> None:
        try:
            address = urlsplit(url)
            port = f":{address.port}" if address.port else ""
        except ValueError as error:
            raise InputError(f"the registry's address is none: {error}") from error
        if (
            address.scheme not in {"http", "https"}
            or not address.hostname
            or address.query
            or address.fragment
        ):
            raise InputError(
                "the registry's address is like https://host/registry, s3://bucket/registry, a file:// URL or a folder"
            )
        self._name = f"{address.scheme}://{address.hostname}{port}{address.path}".rstrip("/")
        self._url = url.rstrip("/")
        headers = {"accept-encoding": "identity", "x-dekag-edge": edge}
        # a pull is a few requests once in a while: no connection is kept for the next one
        limits = httpx2.Limits(max_keepalive_connections=0)
        self._head_s = head_s
        self._through = through(url)
        self._client = httpx2.Client(**client_options(url), timeout=timeout_s, headers=headers, limits=limits)

    @property
    def name(self) -> str:
        """The address without user, password and query."""
        return self._name

    @contextmanager
    def open(self, path: str, *, start: int = 0, tag: str | None = None) -> Iterator[Stream]:
        """As `Source.open`."""
        headers = {"range": f"bytes={start}-"} if start else {}
        if start and tag is not None:
            headers["if-range"] = tag
        head, address = _Head(self._head_s), f"{self._url}/{path}"
        extensions = {"trace": head.trace}
        try:
            with (
                head,
                self._client.stream("GET", address, headers=headers, extensions=extensions) as response,
            ):
                head.end()
                yield self._stream(response, path, start)
        except httpx2.TransportError as error:
            if head.late:
                text = f"{self.name}/{path} comes too slowly: no answer began within {self._head_s:g} s"
                raise RegistryError("slow", f"{text}{self._through}") from error
            raise BrokenOffError(f"{type(error).__name__}: {error}{self._through}") from error

    def _stream(self, response: httpx2.Response, path: str, start: int) -> Stream:
        where, status = f"{self.name}/{path}", response.status_code
        if response.is_redirect:
            raise RegistryError(
                "redirect",
                f"{where} points elsewhere{self._through}, which is refused; give the registry's own address",
            )
        if status in {403, 404, 410}:
            raise RegistryError("missing", f"{where} is not there ({status}{self._through})")
        if status == 429 or status >= 500:
            raise BrokenOffError(f"the server answers {status}{self._through}")
        if status not in {200, 206} or response.headers.get("content-encoding", "identity") != "identity":
            text = f"{where} cannot be read: the server answers {status}{self._through}"
            raise RegistryError("unreachable", text)
        begin, total = _extent(response, where, start)
        tag = response.headers.get("etag")
        strong = tag if tag is not None and tag.startswith('"') else None
        return Stream(start=begin, total=total, tag=strong, chunks=response.iter_raw())


class _Head:
    """Ends a connection on which the head of the answer does not come in time; the client bounds a silence alone."""

    def __init__(self, seconds: float) -> None:
        self.late = False
        self._timer = threading.Timer(seconds, self._close)
        self._timer.daemon = True
        self._sockets: list[socket.socket] = []

    def __enter__(self) -> None:
        """Nothing begins before there is a connection."""

    def __exit__(self, *_: object) -> None:
        """Let go of everything."""
        self.end()

    def trace(self, name: str, info: Mapping[str, Any]) -> None:
        """What the client calls as it goes on; see `trace` in the documentation of httpcore."""
        if name == "connection.connect_tcp.complete" and not self._sockets:
            # a copy outlives that the client puts its own into a wrapper for TLS
            self._sockets.append(info["return_value"].get_extra_info("socket").dup())
            self._timer.start()

    def end(self) -> None:
        """The answer has begun, or never will."""
        self._timer.cancel()
        while self._sockets:
            self._sockets.pop().close()

    def _close(self) -> None:
        self.late = True
        for held in self._sockets:
            with suppress(OSError):
                held.shutdown(socket.SHUT_RDWR)


class ObjectSource:
    """A registry in an object store that fsspec reaches, such as s3://bucket/registry.

    Raises InputError if what reaches it is not installed.
    """

    def __init__(self, url: str) -> None:
        self._name = url.rstrip("/")
        try:
            self._system, self._base = url_to_fs(self._name)
        except (ImportError, ValueError) as error:
            raise InputError(f"{url} cannot be reached: {error}") from error

    @property
    def name(self) -> str:
        """The address."""
        return self._name

    @contextmanager
    def open(self, path: str, *, start: int = 0, tag: str | None = None) -> Iterator[Stream]:
        """As `Source.open`."""
        address = f"{self._base}/{path}"
        try:
            total = int(self._system.size(address))
        except FileNotFoundError as error:
            raise RegistryError("missing", f"{self.name} has no {path}") from error
        except OSError as error:
            raise BrokenOffError(f"{type(error).__name__}: {error}") from error
        yield Stream(start=start, total=total, tag=None, chunks=self._chunks(address, start, total))

    def _chunks(self, address: str, start: int, total: int) -> Iterator[bytes]:
        for first in range(start, total, _OBJECT_CHUNK):
            try:
                yield bytes(
                    self._system.cat_file(address, start=first, end=min(first + _OBJECT_CHUNK, total))
                )
            except OSError as error:
                raise BrokenOffError(f"{type(error).__name__}: {error}") from error


def open_source(url: str, *, edge: str = "") -> Source:
    """The source at an address or in a folder; `edge` as for `HttpSource`. Raises InputError if it is neither."""
    if url.startswith("file://"):
        return FolderSource(folder=Path(url.removeprefix("file://")))
    if url.startswith(_OBJECTS):
        return ObjectSource(url)
    return HttpSource(url, edge=edge) if "://" in url else FolderSource(folder=Path(url))


def _extent(response: httpx2.Response, where: str, start: int) -> tuple[int, int | None]:
    """Where an answer begins and how long the whole file is."""
    if response.status_code == 206:
        found = _RANGE.fullmatch(response.headers.get("content-range", ""))
        if found is None or int(found[1]) != start:
            raise RegistryError("length", f"{where} came from another place than was asked for")
        return start, int(found[3])
    length = response.headers.get("content-length", "")
    return 0, int(length) if re.fullmatch(r"\d{1,18}", length) else None
