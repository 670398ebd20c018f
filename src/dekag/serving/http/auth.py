"""Bearer tokens: who may call a service."""

import hashlib
import hmac
import logging
from collections.abc import Sequence
from pathlib import Path

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from dekag.errors import InputError
from dekag.serving.http.errors import ApiError
from dekag.serving.http.settings import ServiceSettings
from dekag.wire.http import is_loopback

log = logging.getLogger("dekag.serving")
Stamp = tuple[int, int, int]


class Tokens:
    """The tokens of the settings and of their file; the file is read again when it changes.

    Only digests are kept. A file that has become unreadable leaves the tokens as they were; an empty one lets
    nobody in. Raises InputError if the file cannot be read at the start.
    """

    def __init__(self, settings: ServiceSettings) -> None:
        self._fixed = [_digest(token.get_secret_value()) for token in settings.tokens]
        self._file = None if settings.tokens_file is None else Path(settings.tokens_file)
        self._stamp: Stamp | None = None
        self._listed: list[bytes] = []
        if self._file is not None:
            try:
                self._read(self._file)
            except (OSError, UnicodeDecodeError) as error:
                raise InputError(f"the tokens of {self._file} cannot be read: {error}") from error

    def allow(self, token: str) -> bool:
        """Whether the token is one of them; takes as long for every wrong one."""
        if self._file is not None:
            try:
                self._read(self._file)
            except (OSError, UnicodeDecodeError) as error:
                log.warning("the file of tokens cannot be read, the last ones stay: %s", error)
        given, found = _digest(token), False
        for known in [*self._fixed, *self._listed]:
            found |= hmac.compare_digest(given, known)
        return found

    def _read(self, file: Path) -> None:
        status = file.stat()
        stamp = (status.st_mtime_ns, status.st_size, status.st_ino)
        if stamp != self._stamp:
            lines = [line.strip() for line in file.read_text("utf-8").splitlines()]
            self._listed = [_digest(line) for line in lines if line and not line.startswith("#")]
            self._stamp = stamp


class Authentication:
    """Middleware: lets through who has a token, what is public, and on an open service who calls it by loopback.

    tokens: None for an open service. public: paths that anyone may read; one that ends in /* stands for all below it.
    metrics: whether /metrics is open to this machine.
    """

    def __init__(
        self, app: ASGIApp, *, tokens: Tokens | None, public: Sequence[str], metrics: bool = True
    ) -> None:
        self._app = app
        self._tokens = tokens
        self._metrics = metrics
        self._public = frozenset(path for path in public if not path.endswith("/*"))
        self._below = tuple(path[:-1] for path in public if path.endswith("/*"))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 401 or 403, or go on."""
        if scope["type"] == "http" and (error := self._refusal(scope)):
            await error.response()(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _refusal(self, scope: Scope) -> ApiError | None:
        headers = Headers(scope=scope)
        if self._tokens is None:
            # a stranger's page whose name points to loopback must not reach an open service
            return None if _names_loopback(headers.get("host", "")) else _FOREIGN
        if self._is_public(scope):
            return None
        kind, _, token = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer" and self._tokens.allow(token.strip()):
            return None
        text = (
            "this service needs a bearer token"
            if not token
            else "the bearer token is not one of this service's"
        )
        return ApiError(401, text, headers={"www-authenticate": "Bearer"})

    def _is_public(self, scope: Scope) -> bool:
        path: str = scope["path"]
        method: str = scope["method"]
        if method not in {"GET", "HEAD"}:
            return method == "OPTIONS"
        if path == "/metrics":
            return self._metrics and _from_here(scope)
        return path in self._public or path.startswith(self._below)


_FORWARDED = ("forwarded", "via", "x-real-ip")


def _from_here(scope: Scope) -> bool:
    """Whether a program of this machine asks by itself, and no proxy of this machine for somebody else.

    A proxy is known by what it adds, by the name that it was asked for, or by HTTP/1.0, which nginx speaks.
    """
    client, headers = scope.get("client"), Headers(scope=scope)
    if client is None or not is_loopback(client[0]) or scope["http_version"] != "1.1":
        return False
    forwarded = any(name in _FORWARDED or name.startswith("x-forwarded-") for name in headers)
    return not forwarded and _names_loopback(headers.get("host", ""))


_FOREIGN = ApiError(403, "an open service is called by the name localhost or 127.0.0.1", code="wrong_host")


def _names_loopback(host: str) -> bool:
    name = host.rpartition(":")[0] if not host.endswith("]") and ":" in host else host
    return is_loopback(name)


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()
