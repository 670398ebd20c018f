"""The page's files as they are sent: whole, with a strict policy, from one folder, and cheap the second time."""

import gzip
import hashlib
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from dekag.serving.edge.app import _page
from dekag.serving.edge.settings import EdgeSettings
from dekag.serving.http.app import create_app
from dekag.serving.http.settings import ServiceSettings
from dekag.serving.page import PUBLIC, PageConfig, page_files, page_router
from dekag.types import InputError
from dekag.world import load_world

VENDOR = "vendor/onnxruntime-web-1.30.0"
WASM = f"{VENDOR}/ort-wasm-simd-threaded.wasm"
PUBLISHED = {
    WASM: "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
    f"{VENDOR}/ort.wasm.bundle.min.mjs": "11e64bd8ffe11bd1a2a2f0d6275fdfbbba7262f0b76b99b53d228a8a22ef3d90",
}
"""SHA-256 of the files as onnxruntime-web 1.30.0 was published to npm."""


@pytest.fixture
def client() -> TestClient:
    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield

    settings = ServiceSettings(tokens=["secret"])  # type: ignore[list-item]
    app = create_app(title="page", settings=settings, lifespan=lifespan, ready=lambda: None, public=PUBLIC)
    app.include_router(page_router(PageConfig(world="emoji", cloud="https://cloud.example:8443/api/")))
    return TestClient(app, base_url="http://127.0.0.1")


def test_every_file_is_sent_with_the_policy_and_without_a_token(client: TestClient) -> None:
    """No inline script or style would run, and calls go to this host and to the cloud alone."""
    for name in page_files():
        answer = client.get(f"/page/{name}")
        assert answer.status_code == 200, name
        policy = dict(part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; "))
        assert policy["script-src"] == "'self' 'wasm-unsafe-eval'"
        assert policy["style-src"] == "'self'"
        assert policy["connect-src"] == "'self' https://cloud.example:8443"
        assert answer.headers["x-content-type-options"] == "nosniff"
    assert client.get("/").content == page_files()["index.html"].body
    assert client.head("/").content == b""


def test_the_page_names_only_files_that_are_there() -> None:
    """Every address in HTML and every import of a module is a file; nothing is inline, nothing is elsewhere."""
    files = page_files()
    html = files["index.html"].body.decode()
    named = re.findall(r'(?:src|href)="([^"]+)"', html)
    assert named
    assert {name.removeprefix("page/") for name in named} <= files.keys()
    assert not re.search(r"<script>|<style| style=| on[a-z]+=", html)
    for name in (name for name in files if name.endswith(".js")):
        for imported in re.findall(r'from "\./([^"]+)"', files[name].body.decode()):
            assert imported in files, f"{name} imports {imported}"
    assert "http" not in files["style.css"].body.decode()


def test_the_runtime_is_what_was_published(client: TestClient) -> None:
    """Vendored code is byte for byte that of the package; its WebAssembly travels compressed."""
    for name, digest in PUBLISHED.items():
        assert hashlib.sha256(client.get(f"/page/{name}").content).hexdigest() == digest
    answer = client.get(f"/page/{WASM}")
    assert answer.headers["content-encoding"] == "gzip"
    assert answer.headers["content-type"] == "application/wasm"
    assert "immutable" in answer.headers["cache-control"]
    stored = page_files()[WASM].body
    print(f"WebAssembly: {len(stored)} bytes for {len(gzip.decompress(stored))}")
    assert len(stored) < 4e6
    assert "MIT License" in page_files()[f"{VENDOR}/LICENSE.txt"].body.decode()


def test_a_known_file_is_not_sent_again(client: TestClient) -> None:
    first = client.get("/page/main.js")
    again = client.get("/page/main.js", headers={"if-none-match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["etag"] == first.headers["etag"]


@pytest.mark.parametrize(
    "path",
    [
        "/page/__init__.py",
        "/page/../__init__.py",
        "/page/%2e%2e/__init__.py",
        "/page//etc/passwd",
        "/page/",
        "/page/a%00",
    ],
)
def test_nothing_else_is_sent(path: str, client: TestClient) -> None:
    """Names are looked up, never joined to a path."""
    answer = client.get(path)
    assert answer.status_code in {401, 404}
    assert set(answer.json()) == {"error"}


def test_the_page_is_told_of_its_edge(client: TestClient) -> None:
    told = client.get("/page/config.json")
    assert told.headers["cache-control"] == "no-store"
    assert told.json()["cloud"] == "https://cloud.example:8443/api"
    assert told.json()["limits"] == {"snr_db": [-5.0, 20.0], "uses": [64, 512], "prompt": 4000}
    assert told.json()["defaults"]["prompt"] in told.json()["examples"]


@pytest.mark.parametrize(
    "cloud", ["cloud", "ftp://a", "http://", "http://a; script-src *", "http://a b", "http://\n"]
)
def test_a_cloud_that_is_no_address_is_refused(cloud: str) -> None:
    """It becomes part of the policy."""
    with pytest.raises(InputError, match="address"):
        PageConfig(world="emoji", cloud=cloud)


@pytest.mark.parametrize(
    ("most", "uses", "default"), [(512, (64, 512), 256), (1024, (64, 1024), 256), (48, (48, 48), 48)]
)
def test_sliders_go_as_far_as_the_codec(most: int, uses: tuple[int, int], default: int) -> None:
    told = _page(EdgeSettings(), load_world("emoji"), most)
    assert (told.limits.uses, told.defaults.uses) == (uses, default)
