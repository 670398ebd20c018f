"""A service behind a proxy on the same machine, with nginx as it comes: what is for this machine stays closed."""

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest
from running_service import RunningService, free_port
from starlette.testclient import TestClient
from starlette.types import Scope
from test_serving_http import TOKEN, bearer, tiny, tiny_process
from waiting import wait_for

from dekag.serving.http.auth import _from_here

NGINX = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin:/opt/homebrew/bin")
IMAGES = "v1/images/generations"
needs_nginx = pytest.mark.skipif(NGINX is None, reason="nginx is not installed (apt-get install nginx-light)")


@contextmanager
def nginx(folder: Path, locations: str) -> Iterator[str]:
    """nginx with these locations; yields its address."""
    port = free_port()
    config = folder / "nginx.conf"
    paths = "".join(
        f"{kind}_temp_path {folder}/{kind};\n"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    config.write_text(
        f"daemon off; pid {folder}/nginx.pid; error_log {folder}/error.log;\n"
        f"events {{}}\nhttp {{\naccess_log off;\n{paths}server {{ listen 127.0.0.1:{port};\n{locations}\n}}\n}}\n"
    )
    with subprocess.Popen([str(NGINX), "-c", str(config), "-e", str(folder / "error.log")]) as process:
        try:
            wait_for(lambda: answers(f"http://127.0.0.1:{port}/"), seconds=10)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


def answers(url: str) -> bool:
    try:
        return httpx2.get(url).status_code > 0
    except httpx2.TransportError:
        return False


def locations(service: RunningService) -> str:
    """As nginx comes, with a prefix that it strips, and as its handbooks advise."""
    new = "proxy_http_version 1.1;"
    return f"""
        location / {{ proxy_pass {service.url}; }}
        location /a/prefix/ {{ proxy_pass {service.url}/; }}
        location /forwarded/ {{ {new} proxy_set_header X-Forwarded-For $remote_addr; proxy_pass {service.url}/; }}
        location /named/ {{ {new} proxy_set_header Host edge.example; proxy_pass {service.url}/; }}
        location /plain/ {{ {new} proxy_pass {service.url}/; }}
    """


@needs_nginx
def test_metrics_are_closed_through_a_proxy_of_this_machine(tmp_path: Path) -> None:
    with (
        tiny_process(tmp_path, tokens=f'["{TOKEN}"]') as service,
        nginx(tmp_path, locations(service)) as front,
    ):
        assert httpx2.get(f"{service.url}/metrics").status_code == 200
        for way in ("", "a/prefix/", "forwarded/", "named/"):
            assert httpx2.get(f"{front}/{way}metrics").status_code == 401, way
            assert httpx2.get(f"{front}/{way}metrics", headers=bearer(TOKEN)).status_code == 200, way
            assert httpx2.get(f"{front}/{way}healthz").status_code == 200, way
        # a proxy that shows nothing of itself: the documentation says what to do then
        assert httpx2.get(f"{front}/plain/metrics").status_code == 200
    with tiny_process(tmp_path, tokens=f'["{TOKEN}"]', open_metrics=0) as service:
        assert httpx2.get(f"{service.url}/metrics").status_code == 401


@needs_nginx
def test_a_prefix_that_a_proxy_strips_changes_nothing(tmp_path: Path) -> None:
    """Files, large ones too, and a page that posts; where the proxy changes `Host`, the page's origin is listed."""
    public = "https://public.example"
    with (
        tiny_process(tmp_path, allowed_origins=f'["{public}"]') as service,
        nginx(tmp_path, locations(service)) as front,
        httpx2.Client(base_url=f"{front}/a/prefix/") as client,
    ):
        assert client.get("page/a").json() == {"page": "a"}
        assert len(client.get("page/large/file").content) > 3e6
        listed = client.post(IMAGES, json={"prompt": "x"}, headers={"origin": public})
        assert listed.json() == {"prompt": "x"}
        assert client.post(IMAGES, json={}, headers={"origin": front}).status_code == 403
        for answer in (client.get("page"), client.get("page/"), client.get("nothing/")):
            assert "location" not in answer.headers
            assert "set-cookie" not in answer.headers


HERE: list[dict[str, str]] = [{}, {"host": "localhost"}, {"host": "[::1]:8000"}, {"user-agent": "prometheus"}]
ELSEWHERE = [
    {"x-forwarded-for": "127.0.0.1"},
    {"x-forwarded-host": "localhost"},
    {"x-forwarded-proto": ""},
    {"forwarded": "for=127.0.0.1"},
    {"via": "1.1 proxy"},
    {"x-real-ip": "127.0.0.1"},
    {"host": "edge.example"},
    {"host": ""},
]


def scope(headers: dict[str, str], *, client: str | None = "127.0.0.1", version: str = "1.1") -> Scope:
    given = {"host": "127.0.0.1:8000"} | headers
    raw = [(name.encode(), value.encode()) for name, value in given.items()]
    peer = None if client is None else (client, "1")
    return {"type": "http", "client": peer, "http_version": version, "headers": raw}


def test_who_is_here_and_who_is_not() -> None:
    assert all(_from_here(scope(headers)) for headers in HERE)
    assert _from_here(scope({}, client="::1"))
    assert not any(_from_here(scope(headers)) for headers in ELSEWHERE)
    assert not any(_from_here(scope({}, version=version)) for version in ("1", "1.0"))
    assert not any(_from_here(scope({}, client=client)) for client in ("192.0.2.1", "testclient", None))


def test_metrics_stay_closed_to_those_elsewhere() -> None:
    client = TestClient(tiny(tokens=[TOKEN]).app, base_url="http://127.0.0.1", client=("127.0.0.1", 1))
    assert client.get("/metrics").status_code == 200
    for headers in ELSEWHERE:
        assert client.get("/metrics", headers=headers).status_code == 401
        assert client.get("/metrics", headers=headers | bearer(TOKEN)).status_code == 200
