"""A publisher, a server and an edge to test with: small bundles, a registry in a folder, HTTP with ranges."""

import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import torch
from server_thread import listening

from dekag.bundle.bundle import Contents, load_bundle, save_bundle
from dekag.bundle.canonical import digest_json
from dekag.bundle.container import CALA
from dekag.registry import Canary, RegistryClient, Repository, Shelf
from dekag.registry.download import Patience
from dekag.registry.signed import now

BASE = digest_json("a base model")
HASTE = Patience(failures=3, pause_s=0.001, grace_s=20.0)
PNG = b"\x89PNG\r\n\x1a\n rest"
CANARY = Canary(prompts=("a red apple",), seeds=(7,), steps=4, floor_db=20.0, references=(PNG,))


def make_bundle(folder: Path, *, seed: int = 0, count: int = 64, base: str = BASE) -> str:
    """Save a transmission bundle of random numbers; returns its id."""
    values = torch.randn(count, generator=torch.Generator().manual_seed(seed))
    tensors = {CALA: {"gate.weight": values}}
    return save_bundle(
        folder, Contents(kind="transmission", base_digest=base, tensors=tensors, licence="Apache-2.0")
    ).id


@dataclass
class RegistrySetup:
    """A registry in a folder, its publisher, and one edge."""

    folder: Path
    clock: Callable[[], datetime] = now
    ids: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.registry = self.folder / "registry"
        self.keys = self.folder / "keys"
        if not self.registry.exists():
            Repository.init(str(self.registry), self.keys, clock=self.clock)
        self.repository = Repository(str(self.registry), self.keys, clock=self.clock)
        self.root = self.repository.root

    def publish(self, *, seed: int | None = None, count: int = 64, name: str = "cala") -> str:
        """Publish another bundle in stable; returns its id."""
        number = len(self.ids) if seed is None else seed
        path = self.folder / f"bundle{number}-{count}"
        make_bundle(path, seed=number, count=count)
        self.ids.append(self.repository.publish(path, channel="stable", name=name, canary=CANARY))
        return self.ids[-1]

    def client(self, url: str | Path | None = None, *, name: str = "edge") -> RegistryClient:
        """A client that remembers under `name`."""
        return RegistryClient(
            str(url or self.registry), self.folder / name / "registry", root=self.root, patience=HASTE
        )

    def shelf(self, name: str = "edge") -> Shelf:
        """The shelf of an edge."""
        return Shelf(self.folder / name / "shelf")

    def pull(self, url: str | Path | None = None, *, name: str = "edge") -> list[str]:
        """Pull and activate what stable lists; returns the ids."""
        client, shelf = self.client(url, name=name), self.shelf(name)
        listings = client.channel("stable")
        for listing in listings:
            client.fetch(listing, shelf)
            shelf.activate(listing.id)
        return [listing.id for listing in listings]

    def copy(self, name: str) -> Path:
        """What is published now, kept for later."""
        target = self.folder / name
        shutil.copytree(self.registry, target)
        return target


def check_shelf(shelf: Shelf) -> None:
    """Every bundle on the shelf is whole and is the one that its name says; so is the active one."""
    bundles = shelf.bundles()
    assert {path.stem for path in shelf.folder.glob("*.tar")} == {bundle.id for bundle in bundles}
    for bundle in bundles:
        assert load_bundle(shelf.path(bundle.id)).id == bundle.id
    active = shelf.active("transmission")
    assert active is None or active in {bundle.id for bundle in bundles}


def outside(folder: Path, *inside: Path) -> dict[str, bytes]:
    """All files below a folder but for some parts of it."""
    return {
        str(path): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not any(part in path.parents for part in inside)
    }


def before(days: float) -> Callable[[], datetime]:
    """A clock that is late."""
    return lambda: now() - timedelta(days=days)


class RangeServer(ThreadingHTTPServer):
    """Serves a folder with ranges and strong tags; `spoil` may change what is sent.

    spoil: given path, status, headers and body, returns other ones.
    """

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        self.asked: list[tuple[str, str | None]] = []
        self.edges: list[str | None] = []
        self.spoil: Spoil = lambda path, status, headers, body: (status, headers, body)

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that go are no fault of the server."""

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self.server_address[1])


Headers = dict[str, str]
Spoil = Callable[[str, int, Headers, bytes], tuple[int, Headers, bytes]]


class _Handler(BaseHTTPRequestHandler):
    server: RangeServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """A file, or the part of it that is asked for."""
        wanted = self.headers.get("range")
        self.server.asked.append((self.path, wanted))
        self.server.edges.append(self.headers.get("x-dekag-edge"))
        file = self.server.folder / self.path.lstrip("/")
        status, headers, body = 404, {}, b"no such file"
        if file.is_file():
            body, tag = file.read_bytes(), f'"{file.stat().st_mtime_ns}-{file.stat().st_size}"'
            status, headers = 200, {"ETag": tag}
            found = re.fullmatch(r"bytes=(\d+)-", wanted or "")
            if found and self.headers.get("if-range", tag) == tag:
                headers["Content-Range"] = f"bytes {found[1]}-{len(body) - 1}/{len(body)}"
                status, body = 206, body[int(found[1]) :]
        status, headers, body = self.server.spoil(self.path, status, headers, body)
        try:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)
        except OSError:
            self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


@contextmanager
def http_server(folder: Path) -> Iterator[RangeServer]:
    """A folder behind HTTP on loopback."""
    server = RangeServer(folder)
    with listening(server):
        yield server
