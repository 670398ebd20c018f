"""The registry as static files: `GET /registry/...`, in ranges, so that a pull that was cut goes on.

Only names that a registry has are looked up, so there is no way out of it, and no list of it.
"""

import hashlib
import re
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from fastapi import APIRouter, Request
from fsspec.core import url_to_fs  # type: ignore[import-untyped]
from fsspec.implementations.local import LocalFileSystem  # type: ignore[import-untyped]
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response, StreamingResponse

from dekag.errors import InputError
from dekag.serving.http.errors import ApiError
from dekag.serving.http.files import BLOCK_BYTES, pieces

FAR_BLOCK_BYTES = 2**20
"""Read at a time where each read is a request of its own."""
MOST_EDGES = 1000
"""Names that are told apart between two visits of the ledger."""
_METADATA = re.compile(r"metadata/(\d{1,18}\.)?(root|targets|snapshot|timestamp)\.json")
_TARGET = re.compile(r"targets/(channels/)?(?P<digest>[0-9a-f]{64})\.[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")
_EDGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class Pulls:
    """Bytes of the registry by the edge that fetched them, until the ledger takes them."""

    def __init__(self) -> None:
        self._bytes = Counter[str]()
        self._lock = threading.Lock()

    def add(self, edge: str, size: int) -> None:
        """Count bytes for an edge as it calls itself."""
        with self._lock:
            told_apart = edge in self._bytes or len(self._bytes) < MOST_EDGES
            self._bytes[edge if told_apart and _EDGE.fullmatch(edge) else ""] += size

    def take(self) -> dict[str, int]:
        """What was counted since the last time."""
        with self._lock:
            counted, self._bytes = dict(self._bytes), Counter()
        return counted


@dataclass(frozen=True, kw_only=True)
class File:
    """A file of the registry. `tag` stands for its bytes; `read` gives those from one place to another."""

    size: int
    tag: str
    cache: str
    """For how long others may keep it, as HTTP says it."""
    read: Callable[[int, int], bytes]
    block: int = BLOCK_BYTES
    """Bytes to read at a time."""


class Files:
    """A registry's files, in a folder or wherever fsspec reaches them."""

    def __init__(self, url: str) -> None:
        try:
            self._system, self._base = url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise InputError(f"{url} cannot be reached: {error}") from error

    def find(self, path: str) -> File | None:
        """A file, None if a registry has none of that name or this one has not."""
        address = f"{self._base.rstrip('/')}/{path}"
        try:
            if target := _TARGET.fullmatch(path):
                # its name holds the digest of its bytes, so it never changes
                return File(
                    size=self._system.size(address),
                    tag=f'"{target["digest"]}"',
                    cache="public, max-age=31536000, immutable",
                    read=lambda start, end: bytes(self._system.cat_file(address, start=start, end=end)),
                    block=BLOCK_BYTES if isinstance(self._system, LocalFileSystem) else FAR_BLOCK_BYTES,
                )
            if _METADATA.fullmatch(path):
                # small, and one of them is replaced with every change: size and bytes must be of one version
                raw = bytes(self._system.cat_file(address))
                tag = f'"{hashlib.sha256(raw).hexdigest()}"'
                return File(size=len(raw), tag=tag, cache="no-cache", read=lambda start, end: raw[start:end])
        except FileNotFoundError:
            return None
        return None


def registry_router(files: Files, pulls: Pulls) -> APIRouter:
    """The routes below /registry/."""
    router = APIRouter(tags=["registry"])
    responses: dict[int | str, dict[str, Any]] = {
        206: {"description": "Part of the file."},
        304: {"description": "Not changed."},
    }

    @router.head("/registry/{path:path}", include_in_schema=False)
    @router.get("/registry/{path:path}", response_class=Response, responses=responses)
    def file(path: str, request: Request) -> Response:
        """A file of the registry. An edge that says who it is by X-Dekag-Edge finds its pulls in the ledger."""
        found = files.find(path)
        if found is None:
            raise ApiError(404, "the registry has no such file")
        edge = request.headers.get("x-dekag-edge", "")
        return answer(found, request.method, request.headers, partial(pulls.add, edge))

    return router


def answer(file: File, method: str, asked: Mapping[str, str], count: Callable[[int], None]) -> Response:
    """The response to a request for a file with these headers; `count` is told of the bytes that are sent."""
    headers = {"etag": file.tag, "cache-control": file.cache, "accept-ranges": "bytes"}
    if asked.get("if-none-match") in (file.tag, "*"):
        return Response(status_code=304, headers=headers)
    start, end, status = 0, file.size, 200
    # a file that has changed meanwhile is sent as a whole
    if (span := _span(asked.get("range", ""), file.size)) and asked.get("if-range", file.tag) == file.tag:
        start, end = span
        status = 206
        if start >= end:
            text = f"the file has {file.size} bytes"
            raise ApiError(416, text, headers={"content-range": f"bytes */{file.size}"})
        headers["content-range"] = f"bytes {start}-{end - 1}/{file.size}"
    headers["content-length"] = str(end - start)
    if method == "HEAD":
        return Response(status_code=status, headers=headers, media_type="application/octet-stream")
    body = _pieces(file, start, end, count)
    return StreamingResponse(body, status, headers, "application/octet-stream")


def _span(text: str, size: int) -> tuple[int, int] | None:
    """Where a range begins and ends, empty if the file has none of it; None for what a server may pass over."""
    match = _RANGE.fullmatch(text)
    if match is None or match[0] == "bytes=-":
        return None
    if not match[1]:
        return max(0, size - int(match[2])), size
    start, end = int(match[1]), int(match[2] or size) + 1
    return None if match[2] and end <= start else (start, min(end, size))


async def _pieces(file: File, start: int, end: int, count: Callable[[int], None]) -> AsyncIterator[bytes]:
    """The bytes in pieces; each is taken up when the client has taken the ones before, so a slow one costs little."""
    for first in range(start, end, file.block):
        block = await run_in_threadpool(file.read, first, min(first + file.block, end))
        for piece in pieces(block):
            count(len(piece))
            yield piece
