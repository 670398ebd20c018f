"""Pages of other origins change nothing, on any route."""

import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi import FastAPI
from pydantic import SecretStr
from starlette.testclient import TestClient
from test_serving_http import TOKEN, bearer, tiny, tiny_process

from dekag.registry.repository import Repository
from dekag.serving.cloud.app import create as create_cloud
from dekag.serving.cloud.database import migrate, open_database
from dekag.serving.cloud.settings import CloudSettings
from dekag.serving.edge.app import create as create_edge
from dekag.serving.edge.settings import EdgeSettings

IMAGES = "/v1/images/generations"
HERE = "http://127.0.0.1:8000"
FOREIGN = [
    {"origin": "https://evil.example"},
    {"origin": "null"},
    {"origin": "http://127.0.0.1:8001"},
    {"origin": "http://localhost:8000"},
    {"origin": "http://127.0.0.1:8000.evil.example"},
    {"origin": "http://127.0.0.1:80x"},
    {"origin": "file://"},
    {"origin": ""},
    {"sec-fetch-site": "cross-site"},
    {"sec-fetch-site": "same-site"},
    {"origin": HERE, "sec-fetch-site": "cross-site"},
    {"origin": "https://evil.example", "sec-fetch-site": "same-origin"},
]
OWN = [
    {},
    {"origin": HERE},
    {"origin": HERE.upper()},
    {"origin": HERE, "sec-fetch-site": "same-origin"},
    {"sec-fetch-site": "none"},
    {"origin": "https://page.example", "sec-fetch-site": "cross-site"},
]


@pytest.fixture(scope="module")
def parties(tmp_path_factory: pytest.TempPathFactory) -> dict[str, FastAPI]:
    """An edge and a cloud that draws, with every route that they have."""
    folder = tmp_path_factory.mktemp("parties")
    tokens = [SecretStr(TOKEN)]
    cloud = CloudSettings(folder=folder / "cloud", tokens=tokens)
    engine = open_database(cloud.database_address)
    migrate(engine)
    engine.dispose()
    Repository.init(cloud.registry_address, cloud.keys_folder)
    edge = EdgeSettings(folder=folder / "edge", tokens=tokens)
    return {"edge": create_edge(edge), "cloud": create_cloud(cloud)}


def changing(app: FastAPI) -> Iterator[tuple[str, str]]:
    """Method and path of every route that is described and changes something."""
    for path, methods in app.openapi()["paths"].items():
        for method in methods.keys() - {"get", "head", "options", "parameters"}:
            yield method.upper(), re.sub(r"\{[^}]*\}", "0123456789abcdef0123456789abcdef", path)


@pytest.mark.parametrize("party", ["edge", "cloud"])
def test_no_route_that_changes_something_is_open_to_foreign_pages(
    party: str, parties: dict[str, FastAPI]
) -> None:
    """Found in the description, so that a new route is covered; with a token and without, and without a body."""
    client = TestClient(parties[party], base_url=HERE)
    routes = list(changing(parties[party]))
    assert len(routes) >= (5 if party == "cloud" else 9), routes
    for method, path in routes:
        for headers in FOREIGN:
            for more in ({}, bearer(TOKEN)):
                answer = client.request(method, path, headers={**headers, **more})
                assert (answer.status_code, answer.json()["error"]["code"]) == (403, "foreign_origin"), path
        assert client.request(method, path, headers={"origin": HERE}).status_code == 401
    print(f"{party}: {len(routes)} routes, {2 * len(FOREIGN)} foreign requests each")


@pytest.mark.parametrize("headers", OWN, ids=str)
def test_own_pages_programs_and_listed_origins_go_on(headers: dict[str, str]) -> None:
    app = tiny(allowed_origins=["https://page.example"]).app
    client = TestClient(app, base_url=HERE)
    assert client.post(IMAGES, json={"prompt": "x"}, headers=headers).status_code == 200


@pytest.mark.parametrize("headers", FOREIGN, ids=str)
def test_foreign_pages_may_look_and_not_touch(headers: dict[str, str]) -> None:
    client = TestClient(tiny(allowed_origins=["https://page.example"]).app, base_url=HERE)
    assert client.post(IMAGES, json={"prompt": "x"}, headers=headers).status_code == 403
    assert client.get("/healthz", headers=headers).status_code == 200


def test_ports_may_be_left_out() -> None:
    """TLS ends in front of the service, so the origin's scheme says which port is meant."""
    for base, origin in (
        ("http://127.0.0.1", "http://127.0.0.1:80"),
        ("http://edge.example", "https://edge.example"),
        ("http://edge.example:443", "https://edge.example"),
        ("http://[::1]:8000", "http://[::1]:8000"),
    ):
        client = TestClient(tiny(tokens=[TOKEN]).app, base_url=base)
        assert client.post(IMAGES, json={}, headers={"origin": origin}).status_code == 401, origin
    other = client.post(IMAGES, json={}, headers={"origin": "https://edge.example:8443"})
    assert other.status_code == 403


def test_all_origins_are_a_star_and_preflights_are_answered() -> None:
    client = TestClient(tiny(allowed_origins=["*"]).app, base_url=HERE)
    page = {"origin": "https://any.example", "sec-fetch-site": "cross-site"}
    assert client.post(IMAGES, json={"prompt": "x"}, headers=page).status_code == 200
    asked = {**page, "access-control-request-method": "POST"}
    assert client.options(IMAGES, headers=asked).status_code == 200
    strict = TestClient(tiny(allowed_origins=["https://page.example"]).app, base_url=HERE)
    assert strict.options(IMAGES, headers=asked).status_code == 400


def test_the_refusal_does_not_wait_for_the_body(tmp_path: Path) -> None:
    head = b"POST /v1/images/generations HTTP/1.1\r\nHost: localhost\r\nOrigin: null\r\nContent-Length: 1000000\r\n\r\n"
    with (
        tiny_process(tmp_path) as service,
        socket.create_connection(("127.0.0.1", service.port), timeout=2) as connection,
    ):
        connection.sendall(head)
        said = connection.recv(4096)
    assert b" 403 " in said
    assert b"connection: close" in said.lower()
