"""Pages of other origins: they may look at what is open, and change nothing."""

from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from dekag.serving.http.errors import ApiError

HARMLESS = frozenset({"GET", "HEAD", "OPTIONS"})
"""Methods that change nothing."""
_PORTS = {"http": 80, "https": 443}
_REFUSED = ApiError(
    403,
    "a page of another origin may not do this; list its origin in the service's ALLOWED_ORIGINS",
    code="foreign_origin",
    headers={"connection": "close"},  # a body that nobody reads may follow
)


class OwnOrigins:
    """Middleware: refuses requests that change something, if a browser sends them for a page of another origin.

    Browsers say so themselves, and need no token or permission to send a request without a body. allowed: origins of
    pages that may, as https://page.example; "*" is all of them.
    """

    def __init__(self, app: ASGIApp, *, allowed: Sequence[str]) -> None:
        self._app = app
        self._allowed = frozenset(allowed)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 403, or go on."""
        if (
            scope["type"] == "http"
            and scope["method"] not in HARMLESS
            and self._foreign(Headers(scope=scope))
        ):
            await _REFUSED.response()(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _foreign(self, headers: Headers) -> bool:
        if "*" in self._allowed:
            return False
        origins = headers.getlist("origin")
        if origins and self._allowed.issuperset(origins):
            return False
        site = headers.get("sec-fetch-site", "none")
        host = headers.get("host", "")
        return site in {"cross-site", "same-site"} or not all(_is_of(origin, host) for origin in origins)


def _is_of(origin: str, host: str) -> bool:
    """Whether an origin, as https://page.example, is a page of this host, as the header names it.

    The scheme is not told: TLS ends in front of the service. A port that is left out is that of the origin's scheme.
    """
    try:
        page = urlsplit(origin)
        here = urlsplit(f"//{host}")
        usual = _PORTS.get(page.scheme)
        return (
            usual is not None
            and bool(page.hostname)
            and (page.hostname, page.port or usual) == (here.hostname, here.port or usual)
        )
    except ValueError:
        return False
