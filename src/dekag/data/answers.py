"""What an endpoint answers: the bytes of a picture, in the answer or at the address that it names."""

import base64
import time
from typing import Any
from urllib.parse import urljoin, urlsplit

from dekag.types import InputError
from dekag.wire.http import client_options, is_loopback, through

MOST_BYTES = 64 * 2**20
"""Longest file of a picture that is fetched."""
REDIRECTS = 3
_BUSY = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
_MOVED = frozenset({301, 302, 303, 307, 308})


def embedded(reply: Any) -> bytes | str:
    """The file of the one picture in an answer, or its address; the client does not check the answer's types.

    Raises InputError, whose message begins with "is", if it holds neither.
    """
    try:
        (image,) = reply.data
        text, url = image.b64_json, image.url
    except (AttributeError, TypeError, ValueError):
        raise InputError("is not one image; check base_url") from None
    if text is None and isinstance(url, str) and url:
        return url
    try:
        return base64.b64decode(text, validate=True)
    except (TypeError, ValueError):
        raise InputError("is no base64; choose a server that gives b64_json") from None


def fetched(url: str, *, origin: str, retries: int, timeout_s: float) -> bytes:
    """The file at an address that the endpoint at `origin` named, asked for again while its server is busy.

    It is paid for, so a broken connection does not lose it. Raises InputError, whose message begins with "is", if it
    cannot be had or must not be asked for.
    """
    import httpx2

    check_address(url, origin=origin)
    for attempt in range(retries + 1):
        if attempt:
            time.sleep(min(0.5 * 2 ** (attempt - 1), 8.0))
        try:
            status, body = _get(url, origin=origin, timeout_s=timeout_s)
        except httpx2.HTTPError:
            continue
        if status == 200:
            return body
        if status not in _BUSY:
            raise InputError(f"is an address, {_shown(url)}, that answers {status}; choose b64_json")
    raise InputError(
        f"is an address, {_shown(url)}, that cannot be reached{through(url)} in {retries + 1} calls;"
        " check that it can be reached from here"
    )


def check_address(url: str, *, origin: str) -> None:
    """Refuse an address of anything but the web, or of this machine where the endpoint is another one."""
    try:
        address = urlsplit(url)
        host, scheme = address.hostname or "", address.scheme
    except ValueError:
        host, scheme = "", ""
    if scheme not in {"http", "https"} or not host:
        raise InputError("is an address that is not of http or https; choose a server that gives b64_json")
    if is_loopback(host) and not is_loopback(urlsplit(origin).hostname or ""):
        raise InputError("is an address of this very machine; choose a server that gives b64_json")


def _get(url: str, *, origin: str, timeout_s: float) -> tuple[int, bytes]:
    """Status and body at an address, or where it leads to; no longer than MOST_BYTES."""
    import httpx2

    until = time.monotonic() + timeout_s
    for _ in range(REDIRECTS + 1):
        with (
            httpx2.Client(**client_options(url), timeout=timeout_s, follow_redirects=False) as client,
            client.stream("GET", url, headers={"accept-encoding": "identity"}) as answer,
        ):
            if answer.status_code not in _MOVED:
                return answer.status_code, _body(answer, url, until)
            url = _next(url, answer.headers.get("location", ""), origin)
    raise InputError(f"is an address, {_shown(url)}, that leads on more than {REDIRECTS} times")


def _next(url: str, location: str, origin: str) -> str:
    """Where an address leads; another scheme is refused."""
    target = urljoin(url, location)
    check_address(target, origin=origin)
    if urlsplit(target).scheme != urlsplit(url).scheme:
        raise InputError(f"is an address, {_shown(url)}, that leads to another scheme; choose b64_json")
    return target


def _body(answer: Any, url: str, until: float) -> bytes:
    import httpx2

    parts, length = [], 0
    for part in answer.iter_bytes():
        parts.append(part)
        length += len(part)
        if length > MOST_BYTES:
            raise InputError(f"is an address, {_shown(url)}, of more than {MOST_BYTES // 2**20} MiB")
        if time.monotonic() > until:
            raise httpx2.ReadTimeout("the file takes too long")
    return b"".join(parts)


def _shown(url: str) -> str:
    """An address without its path and query, which may be signed."""
    address = urlsplit(url)
    return f"{address.scheme}://{address.hostname}"
