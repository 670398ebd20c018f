"""The registry's files over HTTP: ranges, what a cache needs, and no way to anything else."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from dekag.serving.cloud.static import MOST_EDGES, Files, Pulls, registry_router
from dekag.serving.http.errors import install_errors

BUNDLE = "b" * 64
TARGET = bytes(range(256)) * 8192
DIGEST = hashlib.sha256(TARGET).hexdigest()
NAME = f"targets/{DIGEST}.{BUNDLE}.tar"


@pytest.fixture(params=["folder", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A registry with one target of 2 MiB, in a folder and behind fsspec."""
    address = str(tmp_path / "registry") if request.param == "folder" else f"memory://{tmp_path.name}"
    system, base = fsspec.core.url_to_fs(address)
    for path, raw in {NAME: TARGET, "metadata/timestamp.json": b"{}", "secret.pem": b"key"}.items():
        system.makedirs(f"{base}/{Path(path).parent}", exist_ok=True)
        system.pipe_file(f"{base}/{path}", raw)
    yield address
    if request.param == "memory":
        system.rm(base, recursive=True)


@pytest.fixture
def pulls() -> Pulls:
    return Pulls()


@pytest.fixture
def files(url: str, pulls: Pulls) -> TestClient:
    """A service that has nothing but these files."""
    app = FastAPI()
    install_errors(app)
    app.include_router(registry_router(Files(url), pulls))
    return TestClient(app)


def test_a_file_comes_whole_with_what_a_cache_needs(files: TestClient) -> None:
    answer = files.get(f"/registry/{NAME}")
    assert (answer.status_code, answer.content) == (200, TARGET)
    assert answer.headers["etag"] == f'"{DIGEST}"'
    assert answer.headers["content-length"] == str(len(TARGET))
    assert "immutable" in answer.headers["cache-control"]
    head = files.head(f"/registry/{NAME}")
    assert (head.content, head.headers["content-length"]) == (b"", str(len(TARGET)))
    same = files.get(f"/registry/{NAME}", headers={"if-none-match": f'"{DIGEST}"'})
    assert (same.status_code, same.content) == (304, b"")
    assert files.get("/registry/metadata/timestamp.json").headers["cache-control"] == "no-cache"


LAST = len(TARGET) - 1


@pytest.mark.parametrize(
    ("asked", "first", "last"),
    [
        ("bytes=0-0", 0, 0),
        ("bytes=5-", 5, LAST),
        ("bytes=100-1100000", 100, 1_100_000),
        ("bytes=-7", LAST - 6, LAST),
        ("bytes=-99999999", 0, LAST),
        (f"bytes={LAST}-", LAST, LAST),
        ("bytes=0-99999999", 0, LAST),
    ],
)
def test_a_range_is_that_part_of_the_file(files: TestClient, asked: str, first: int, last: int) -> None:
    answer = files.get(f"/registry/{NAME}", headers={"range": asked})
    assert (answer.status_code, answer.content) == (206, TARGET[first : last + 1])
    assert answer.headers["content-range"] == f"bytes {first}-{last}/{len(TARGET)}"
    assert answer.headers["content-length"] == str(last + 1 - first)


@pytest.mark.parametrize("asked", [f"bytes={len(TARGET)}-", "bytes=99999999-100000000", "bytes=-0"])
def test_a_range_beyond_the_end_is_416(files: TestClient, asked: str) -> None:
    answer = files.get(f"/registry/{NAME}", headers={"range": asked})
    assert refusal(answer)[0] == 416
    assert answer.headers["content-range"] == f"bytes */{len(TARGET)}"


@pytest.mark.parametrize(
    "asked", ["bytes=5-1", "bytes=a-b", "bytes=-", "lines=1-2", "bytes=0-1,5-6", f"bytes={10**30}-"]
)
def test_what_is_no_single_range_is_passed_over(files: TestClient, asked: str) -> None:
    answer = files.get(f"/registry/{NAME}", headers={"range": asked})
    assert (answer.status_code, answer.content) == (200, TARGET)


def test_a_range_of_other_contents_is_the_whole_file(files: TestClient) -> None:
    """A pull that was cut goes on with If-Range, and must not join bytes of two files."""
    for tag, status in ((f'"{DIGEST}"', 206), ('"other"', 200), (f'W/"{DIGEST}"', 200)):
        answer = files.get(f"/registry/{NAME}", headers={"range": "bytes=9-", "if-range": tag})
        assert (answer.status_code, len(answer.content)) == (status, len(TARGET) - 9 * (status == 206))


@pytest.mark.parametrize(
    "path",
    [
        "",
        "metadata",
        "metadata/",
        "targets",
        "secret.pem",
        "metadata/../secret.pem",
        "metadata/..%2f..%2fsecret.pem",
        "%2e%2e/secret.pem",
        "/etc/passwd",
        "targets/%2fetc%2fpasswd",
        "metadata/timestamp.json%00",
        "metadata/timestamp.json/",
        "metadata/.timestamp.json.part",
        "metadata\\timestamp.json",
        f"targets/{'0' * 64}.x.tar",
        f"targets/{DIGEST}",
        "targets/" + "a" * 5000,
    ],
)
def test_nothing_else_is_found(files: TestClient, path: str) -> None:
    assert refusal(files.get(f"/registry/{path}"))[0] == 404


def test_bytes_are_counted_for_who_says_who_it_is(files: TestClient, pulls: Pulls) -> None:
    files.get(f"/registry/{NAME}", headers={"x-dekag-edge": "edge-1", "range": "bytes=0-99"})
    files.get(f"/registry/{NAME}", headers={"x-dekag-edge": "edge-1", "range": "bytes=100-109"})
    files.head(f"/registry/{NAME}", headers={"x-dekag-edge": "edge-1"})
    files.get(f"/registry/{NAME}", headers={"x-dekag-edge": "no name/"})
    assert pulls.take() == {"edge-1": 110, "": len(TARGET)}
    assert pulls.take() == {}


def test_names_of_edges_do_not_grow_without_end() -> None:
    pulls = Pulls()
    for number in range(3 * MOST_EDGES):
        pulls.add(f"edge-{number}", 1)
    counted = pulls.take()
    assert len(counted) <= MOST_EDGES + 1
    assert sum(counted.values()) == 3 * MOST_EDGES


def refusal(answer: Any) -> tuple[int, str]:
    """Status and message of an answer that is an error."""
    return answer.status_code, answer.json()["error"]["message"]
