"""The user's web page: files of this folder, and what they are told of the edge that serves them.

Plain HTML, ES modules and CSS without a build, and onnxruntime-web as it was published, its WebAssembly
compressed. The policy of content keeps scripts, styles and calls to this host and to the cloud.
"""

import hashlib
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from fastapi import APIRouter, Request
from starlette.responses import Response

from dekag.errors import InputError
from dekag.generation.prompts import LONGEST_PROMPT
from dekag.serving.http.errors import ApiError, json_response
from dekag.serving.http.files import FileAnswer

__all__ = ["PageConfig", "PageDefaults", "PageLimits", "page_files", "page_router"]

PUBLIC = ("/", "/page/*")
"""Paths that ask for no token: the page holds no secret, its calls carry one."""
EXAMPLES = (
    "a red apple on a blue background",
    "a cat face on an orange background",
    "a lion on a green background",
    "a robot on a purple background",
)
MEDIA = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
    ".wasm": "application/wasm",
}


@dataclass(frozen=True, kw_only=True)
class PageDefaults:
    """What the page shows when it opens; an empty prompt draws nothing."""

    prompt: str = EXAMPLES[0]
    snr_db: float = 10.0
    uses: int = 256
    fading: Literal["awgn", "rayleigh"] = "awgn"


@dataclass(frozen=True, kw_only=True)
class PageLimits:
    """Ranges of what may be asked of the edge."""

    snr_db: tuple[float, float] = (-5.0, 20.0)
    uses: tuple[int, int] = (64, 512)
    prompt: int = LONGEST_PROMPT


@dataclass(frozen=True, kw_only=True)
class PageConfig:
    """What the page is told.

    cloud: where the cloud answers, as https://cloud.example, if there is one. world: name of the world.
    Raises InputError if the cloud's address is no address.
    """

    world: str
    cloud: str | None = None
    examples: tuple[str, ...] = EXAMPLES
    defaults: PageDefaults = field(default_factory=PageDefaults)
    limits: PageLimits = field(default_factory=PageLimits)

    def __post_init__(self) -> None:
        if self.cloud is not None and not _origin(self.cloud):
            raise InputError(f"the cloud's address must be as https://cloud.example, got {self.cloud!r}")


@dataclass(frozen=True, kw_only=True)
class PageFile:
    """A file of the page as it is sent."""

    path: Path
    tag: str
    """The entity tag: it changes when the bytes do."""
    media_type: str
    compressed: bool
    lasting: bool

    @property
    def body(self) -> bytes:
        """Its bytes."""
        return self.path.read_bytes()


def page_router(config: PageConfig) -> APIRouter:
    """Routes of the page: / and everything below /page."""
    router = APIRouter(include_in_schema=False)
    guards = {
        "content-security-policy": _policy(config.cloud),
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cross-origin-opener-policy": "same-origin",
    }

    @router.api_route("/", methods=["GET", "HEAD"])
    async def index(request: Request) -> Response:
        """The page itself."""
        return _answer(request, page_files()["index.html"], guards)

    @router.get("/page/config.json")
    async def settings() -> Response:
        """What the page must know of this edge."""
        content = asdict(config) | {"cloud": config.cloud and config.cloud.rstrip("/")}
        return json_response(content, headers={**guards, "cache-control": "no-store"})

    @router.api_route("/page/{name:path}", methods=["GET", "HEAD"])
    async def file(request: Request, name: str) -> Response:
        """A file of the page, by its name alone: no path leads elsewhere."""
        found = page_files().get(name)
        if found is None:
            raise ApiError(404, "the page has no such file")
        return _answer(request, found, guards)

    return router


@cache
def page_files() -> dict[str, PageFile]:
    """All files of the page by their name in the address; looked for once."""
    found, site = {}, Path(__file__).parent / "site"
    for path in sorted(path for path in site.rglob("*") if path.is_file()):
        name = path.relative_to(site).as_posix()
        compressed = name.endswith(".gz")
        unzipped = name.removesuffix(".gz")
        found[unzipped] = PageFile(
            path=path,
            tag=f'"{hashlib.sha256(path.read_bytes()).hexdigest()[:32]}"',
            media_type=MEDIA[f".{unzipped.rpartition('.')[2]}"],
            compressed=compressed,
            # the address of what others published names its version
            lasting=unzipped.startswith("vendor/"),
        )
    return found


def _answer(request: Request, file: PageFile, guards: dict[str, str]) -> Response:
    headers = {
        **guards,
        "etag": file.tag,
        "cache-control": "public, max-age=31536000, immutable" if file.lasting else "no-cache",
    }
    if request.headers.get("if-none-match") == file.tag:
        return Response(status_code=304, headers=headers)
    if file.compressed:
        headers["content-encoding"] = "gzip"
    return FileAnswer(file.path, headers=headers, media_type=file.media_type)


def _policy(cloud: str | None) -> str:
    return "; ".join(
        (
            "default-src 'self'",
            "script-src 'self' 'wasm-unsafe-eval'",
            "style-src 'self'",
            "img-src 'self' blob: data:",
            f"connect-src 'self' {_origin(cloud) if cloud else ''}".strip(),
            "object-src 'none'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        )
    )


def _origin(url: str) -> str:
    """Scheme, host and port of an address; empty if it is none that a policy can name."""
    parts = urlsplit(url)
    plain = url.isascii() and url.isprintable() and not set(url) & set(" ;,'\"")
    return (
        f"{parts.scheme}://{parts.netloc}"
        if plain and parts.scheme in {"http", "https"} and parts.netloc
        else ""
    )
