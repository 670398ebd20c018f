"""Whether an edge is aligned is said in one word, everywhere the same, and never of a picture that is not."""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from full_disk import full_after
from published_registry import RangeServer, before, http_server
from registry_with_edges import bundles, other, variant
from running_service import free_port
from starlette.testclient import TestClient
from waiting import wait_for

from dekag.bundle.bundle import load_bundle
from dekag.registry import Repository
from dekag.serving.edge.app import create
from dekag.serving.edge.selftest import make_canary
from dekag.serving.edge.settings import EdgeSettings
from dekag.types import InputError
from dekag.wire.png import png_bytes
from dekag.world import World, load_world, shipped

PROMPT = "a red apple on a blue background"
MAKD, CALA = (load_bundle(shipped(f"emoji/{name}")).id for name in ("makd", "cala"))
WAIT = "the first pull has not ended"


@dataclass(kw_only=True)
class Place:
    """Where one edge and one registry are, and what the edge is told."""

    folder: Path
    world: World
    stack: ExitStack
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def registry(self) -> Path:
        return self.folder / "registry"

    def repository(self, *, days_ago: float = 0) -> Repository:
        """A registry that was signed so long ago, with the shipped updates in stable, unless it is there."""
        clock = before(days_ago)
        if self.registry.exists():
            return Repository(str(self.registry), self.folder / "keys", clock=clock)
        repository = Repository.init(str(self.registry), self.folder / "keys", clock=clock)
        for name in ("makd", "cala"):
            repository.publish(shipped(f"emoji/{name}"), channel="stable", name=name)
        return repository

    def root(self, repository: Repository) -> Path:
        path = self.folder / "root.json"
        path.write_bytes(repository.root)
        return path

    def serve(self) -> str:
        """The registry behind HTTP; its address."""
        return self.serve_with(lambda path, status, headers, body: (status, headers, body))

    def serve_with(self, spoil: Callable[..., Any]) -> str:
        """The registry behind a server that spoils what it sends."""
        server: RangeServer = self.stack.enter_context(http_server(self.folder))
        server.spoil = spoil
        return f"http://127.0.0.1:{server.port}/registry"

    @contextmanager
    def edge(self, **settings: Any) -> Iterator[TestClient]:
        """The edge, once its first pull has ended, whatever came of it."""
        told = {
            "folder": self.folder / "edge",
            "registry": str(self.registry),
            "root": self.folder / "root.json",
            "poll_seconds": 3600,
        }
        application = create(EdgeSettings(**{**told, **self.settings, **settings}), self.world)
        with TestClient(application, base_url="http://127.0.0.1", raise_server_exceptions=False) as client:
            wait_for(lambda: WAIT not in client.get("/readyz").text, seconds=60)
            yield client

    def aligned_before(self) -> None:
        """Have the edge pull once while everything is right."""
        self.root(self.repository())
        with self.edge() as client:
            client.post("/v1/bundles/pull")
            assert states(client) == {"generation": "aligned", "transmission": "aligned"}


@pytest.fixture(scope="module")
def world() -> World:
    return load_world("emoji")


@pytest.fixture
def place(tmp_path: Path, world: World) -> Iterator[Place]:
    with ExitStack() as stack:
        yield Place(folder=tmp_path, world=world, stack=stack)


def alignment(client: TestClient) -> dict[str, dict[str, Any]]:
    return {state["kind"]: state for state in client.get("/v1/bundles").json()["alignment"]}


def states(client: TestClient) -> dict[str, str]:
    return {kind: state["state"] for kind, state in alignment(client).items()}


def draw(client: TestClient, **asked: Any) -> Any:
    return client.post("/v1/images/generations", json={"prompt": PROMPT, "steps": 2, **asked})


def deliver(client: TestClient, **asked: Any) -> Any:
    return client.post("/v1/deliveries", json={"prompt": PROMPT, "steps": 2, **asked})


def gauges(client: TestClient) -> dict[str, str]:
    """The state of each kind as the metrics have it."""
    lines = client.get("/metrics").text.splitlines()
    found = [line for line in lines if line.startswith("dekag_edge_alignment{") and line.endswith(" 1.0")]
    return {line.split('kind="')[1].split('"')[0]: line.split('state="')[1].split('"')[0] for line in found}


# --- ways to start wrongly


def no_such_folder(place: Place) -> None:
    place.root(place.repository())
    shutil.rmtree(place.registry)


def nobody_listens(place: Place) -> None:
    place.root(place.repository())
    place.settings["registry"] = f"http://127.0.0.1:{free_port()}/registry"


def expired(place: Place) -> None:
    place.root(place.repository(days_ago=400))


def timestamp_expired(place: Place) -> None:
    place.root(place.repository(days_ago=30))


def wrong_root(place: Place) -> None:
    place.repository()
    elsewhere = Repository.init(str(place.folder / "elsewhere"), place.folder / "other-keys")
    place.root(elsewhere)


def root_is_no_root(place: Place) -> None:
    place.repository()
    (place.folder / "root.json").write_text("{}")


def empty(place: Place) -> None:
    place.root(Repository.init(str(place.registry), place.folder / "keys"))


def no_such_channel(place: Place) -> None:
    place.root(place.repository())
    place.settings["channel"] = "canary"


def other_base(place: Place) -> None:
    """Everything that is listed is for another model."""
    repository = Repository.init(str(place.registry), place.folder / "keys")
    repository.publish(stranger(place.folder / "stranger"), channel="stable", name="makd")
    place.root(repository)


def follows_nobody(place: Place) -> None:
    place.root(place.repository())
    place.settings["follow"] = ("another",)


def fails_its_test(place: Place) -> None:
    """Its canary has the pictures of other seeds."""
    edge = place.world.edge()
    right = make_canary(edge, None, (PROMPT,), seeds=(3,))
    wrong = other(right, tuple(png_bytes(edge.decode(edge((PROMPT,), seeds=(8,))))))
    repository = Repository.init(str(place.registry), place.folder / "keys")
    repository.publish(variant(place.folder, 1), channel="stable", name="makd", canary=wrong)
    place.root(repository)


def damaged_bundle(place: Place) -> None:
    place.root(place.repository())
    for tar in (place.registry / "targets").glob("*.tar"):
        tar.write_bytes(tar.read_bytes()[:-9] + b"ninebytes")


def damaged_timestamp(place: Place) -> None:
    place.root(place.repository())
    (place.registry / "metadata" / "timestamp.json").write_bytes(b"<html>")


def captive_portal(place: Place) -> None:
    place.root(place.repository())
    place.settings["registry"] = place.serve_with(
        lambda path, status, headers, body: (200, {}, b"<html>log in</html>")
    )


def forbidden(place: Place) -> None:
    place.root(place.repository())
    place.settings["registry"] = place.serve_with(lambda path, status, headers, body: (403, {}, b"no"))


def redirected(place: Place) -> None:
    place.root(place.repository())
    place.settings["registry"] = place.serve_with(
        lambda path, status, headers, body: (302, {"Location": "http://127.0.0.1/elsewhere"}, b"")
    )


def full_disk(place: Place) -> None:
    place.root(place.repository())
    place.stack.enter_context(full_after(20_000))


def rolled_back(place: Place) -> None:
    """The edge has seen a newer registry, and its own bundles are gone."""
    place.root(place.repository())
    shutil.copytree(place.registry, place.folder / "old")
    for _ in range(2):
        place.repository().refresh_timestamp()
    with place.edge() as client:
        client.post("/v1/bundles/pull")
    shutil.rmtree(place.folder / "edge" / "bundles")
    shutil.rmtree(place.registry)
    (place.folder / "old").rename(place.registry)


def bundle_lost_on_the_way(place: Place) -> None:
    """What was active is damaged on the disk, and the registry is gone."""
    place.aligned_before()
    for tar in (place.folder / "edge" / "bundles").glob("*.tar"):
        tar.write_bytes(b"damaged")
    shutil.rmtree(place.registry)


def dead_proxy(place: Place) -> None:
    place.root(place.repository())
    place.settings["registry"] = "http://registry.example/registry"
    patch = place.stack.enter_context(pytest.MonkeyPatch.context())
    patch.setenv("HTTP_PROXY", f"http://127.0.0.1:{free_port()}")


def half_published(place: Place) -> None:
    """The channel lists bundles whose files are not there yet."""
    place.root(place.repository())
    shutil.rmtree(place.registry / "targets")


UNALIGNED: dict[Callable[[Place], None], str] = {
    no_such_folder: "has no metadata",
    nobody_listens: "cannot be read",
    expired: "expired",
    timestamp_expired: "expired",
    wrong_root: "not signed by enough keys",
    empty: "no channel stable",
    no_such_channel: "no channel canary",
    other_base: "lists no generation update for the model of this edge",
    follows_nobody: "lists no generation update",
    fails_its_test: "floor is 30 dB",
    damaged_bundle: "damaged",
    damaged_timestamp: "no signed file",
    captive_portal: "no signed file",
    forbidden: "is not there (403)",
    redirected: "points elsewhere",
    full_disk: "not written",
    rolled_back: "older than what was seen",
    bundle_lost_on_the_way: "has no metadata",
    dead_proxy: "cannot be read",
    half_published: "has no targets/",
}
"""Each way to be without an update, and what the reason must say."""
QUICK = (expired, empty, fails_its_test, bundle_lost_on_the_way)
ways = [
    pytest.param(way, reason, id=way.__name__, marks=() if way in QUICK else pytest.mark.slow)
    for way, reason in UNALIGNED.items()
]


@pytest.mark.parametrize(("way", "reason"), ways)
def test_an_edge_that_started_wrongly_never_says_that_it_is_aligned(
    place: Place, way: Callable[[Place], None], reason: str
) -> None:
    """Not ready and 503 with the reason, everywhere; what is asked for without an update is drawn and called so."""
    way(place)
    with place.edge() as client:
        ready, drawn, sent = client.get("/readyz"), draw(client), deliver(client)
        told = alignment(client)["generation"]
        print(f"{way.__name__:24} {ready.status_code} {told['state']:9} {told['reason']}")
        assert (ready.status_code, drawn.status_code, sent.status_code) == (503, 503, 503)
        assert ready.json()["error"]["message"].startswith("not aligned: ")
        assert drawn.json()["error"]["code"] == "not_aligned"
        assert told["state"] == "unaligned"
        assert reason in told["reason"]
        assert reason in ready.json()["error"]["message"]
        assert gauges(client)["generation"] == "unaligned"
        plain = draw(client, model="edge/plain")
        assert plain.headers["x-alignment"] == "unaligned"
        assert plain.json()["gsc"]["alignment"]["state"] == "unaligned"


@pytest.mark.parametrize("way", [wrong_root, timestamp_expired], ids=lambda way: str(way.__name__))
def test_an_edge_that_may_draw_unaligned_says_so_over_each_picture(
    place: Place, way: Callable[[Place], None]
) -> None:
    way(place)
    with place.edge(allow_unaligned=True) as client:
        assert client.get("/readyz").status_code == 200
        drawn, sent = draw(client), deliver(client)
        assert (drawn.status_code, drawn.headers["x-alignment"]) == (200, "unaligned")
        assert drawn.json()["gsc"]["bundle"] is None
        assert sent.headers["x-alignment-generation"] == "unaligned"
        seen = client.post(f"/v1/deliveries/{sent.headers['x-delivery-id']}/image", json={}).json()
        assert [state["state"] for state in seen["alignment"]] == ["unaligned", "unaligned"]


REFUSED: dict[str, tuple[Callable[[Place], object], str]] = {
    "no root": (lambda place: place.repository(), "cannot be read"),
    "state damaged": (lambda place: old_state(place, "{"), "state.json is damaged"),
    "state newer": (lambda place: old_state(place, '{"schema": 2}'), "newer dekag"),
    "registry is no address": (
        lambda place: (place.root(place.repository()), place.settings.update(registry="http://")),
        "the registry's address",
    ),
    "root is a folder": (lambda place: (place.folder / "root.json").mkdir(), "cannot be read"),
}


def old_state(place: Place, text: str) -> None:
    place.root(place.repository())
    (place.folder / "edge" / "bundles").mkdir(parents=True)
    (place.folder / "edge" / "bundles" / "state.json").write_text(text)


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_used_at_all_is_refused_before_the_edge_serves(place: Place, name: str) -> None:
    make, reason = REFUSED[name]
    make(place)
    with pytest.raises(InputError, match=reason) as refused, place.edge():
        pass
    print(f"{name:24} does not start: {refused.value}")


def test_aligned_pinned_stale_and_unaligned_are_told_apart(place: Place) -> None:
    """One edge through its states, and each answer has the same word."""
    repository = place.repository()
    place.root(repository)
    with place.edge() as client:
        assert draw(client).json()["gsc"] | {"milliseconds": 0} == draw(client, bundle=MAKD).json()["gsc"] | {
            "milliseconds": 0
        }
        assert states(client) == gauges(client) == {"generation": "aligned", "transmission": "aligned"}
        client.post(f"/v1/bundles/{MAKD}/pin")
        newer = repository.publish(variant(place.folder, 1), channel="stable", name="makd")
        client.post("/v1/bundles/pull")
        assert draw(client).headers["x-alignment"] == states(client)["generation"] == "pinned"
        assert draw(client, bundle=newer).headers["x-alignment"] == "aligned"
        client.post(f"/v1/bundles/{MAKD}/unpin")
        stale = alignment(client)["generation"]
        assert (stale["state"], newer[:12] in stale["reason"]) == ("stale", True)
        assert draw(client).headers["x-alignment"] == gauges(client)["generation"] == "stale"
        assert client.get("/readyz").status_code == 200
        client.post("/v1/bundles/pull")
        assert (states(client)["generation"], alignment(client)["generation"]["bundle"]) == ("aligned", newer)
        assert draw(client, bundle=MAKD).headers["x-alignment"] == "stale"
        repository.withdraw("stable", newer)
        client.post("/v1/bundles/pull")
        assert "any more" in alignment(client)["generation"]["reason"]


def test_an_edge_goes_on_while_what_it_verified_holds_and_is_stale_afterwards(place: Place) -> None:
    """Of a registry that is away the last look counts, in the next process too, until its timestamp expires."""
    place.aligned_before()
    shutil.move(place.registry, place.folder / "away")
    with place.edge() as client:
        assert states(client) == {"generation": "aligned", "transmission": "aligned"}
        assert "has no metadata" in client.get("/v1/bundles").json()["error"]
        assert client.get("/readyz").status_code == 200
    timestamp = place.folder / "edge" / "registry" / "metadata" / "timestamp.json"
    content = json.loads(timestamp.read_bytes())
    content["signed"]["expires"] = "2020-01-01T00:00:00Z"
    timestamp.write_text(json.dumps(content))
    with place.edge() as client:
        stale = alignment(client)["generation"]
        assert (stale["state"], "timestamp has expired on 2020-01-01" in stale["reason"]) == ("stale", True)
        assert draw(client).headers["x-alignment"] == "stale"
        roles = {line for line in client.get("/metrics").text.splitlines() if "expiry_timestamp" in line}
        assert sum(line.startswith("dekag_registry_expiry_timestamp_seconds{") for line in roles) == 4


def test_what_the_disk_has_damaged_is_pulled_again(place: Place) -> None:
    """It is not taken for an update that failed its test."""
    bundle_lost_on_the_way(place)
    with place.edge() as client:
        assert states(client)["generation"] == "unaligned"
        assert bundles(client) == {}
        shutil.rmtree(place.folder / "edge" / "registry")
        shutil.rmtree(place.folder / "keys")
    place.root(place.repository())
    with place.edge() as client:
        assert states(client) == {"generation": "aligned", "transmission": "aligned"}


def test_an_edge_that_was_offline_for_too_long_is_not_ready(place: Place) -> None:
    place.aligned_before()
    shutil.move(place.registry, place.folder / "away")
    with place.edge(max_offline_age=3600) as client:
        assert client.get("/readyz").status_code == 200
    looked = place.folder / "edge" / "registry" / "looked.json"
    content = json.loads(looked.read_bytes())
    content["checked"] -= 7200
    looked.write_text(json.dumps(content))
    with place.edge(max_offline_age=3600) as client:
        refused = client.get("/readyz")
        assert refused.status_code == draw(client).status_code == 503
        assert "stale: the registry was last read 72" in refused.json()["error"]["message"]
        assert draw(client, model="edge/plain").status_code == 200
    with place.edge(max_offline_age=3600, allow_unaligned=True) as client:
        assert client.get("/readyz").status_code == 503, "an old update is not what that setting allows"


def test_without_a_registry_the_shipped_updates_are_the_ones_to_use(place: Place) -> None:
    with place.edge(registry=None, root=None) as client:
        assert states(client) == {"generation": "aligned", "transmission": "aligned"}
        told = draw(client, bundle="none").json()["gsc"]["alignment"]
        assert (told["state"], told["reason"]) == ("unaligned", "no generation update was asked for")


def stranger(folder: Path) -> Path:
    """A generation bundle for a model that nobody here has."""
    return variant(folder, 7, base_digest="f" * 64)
