"""An edge and its updates: pulled, tested, swapped under load, and there again after a kill."""

import base64
import io
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch
from PIL import Image
from registry_with_edges import FAMILY, RegistryWithEdges, bundles, new_registry_with_edges, other, variant
from running_service import RunningService
from waiting import wait_for

from dekag.alignment.generation.bundles import apply_generation
from dekag.alignment.generation.update import remove_update
from dekag.alignment.transmission.bundles import apply_transmission
from dekag.bundle.bundle import load_bundle
from dekag.codec import load_codec
from dekag.generation.diffusers import DiffusersGenerator
from dekag.serving.edge.selftest import make_canary, self_test
from dekag.types import InputError
from dekag.wire.png import png_bytes
from dekag.world import load_world, shipped

PROMPTS = ("a red apple on a blue background", "a cat face on a pink background")
SEEDS = (3, 4)


@pytest.fixture(scope="module")
def plain() -> DiffusersGenerator:
    return load_world("emoji").edge()


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> RegistryWithEdges:
    """The shipped updates, listed in stable."""
    registry = new_registry_with_edges(tmp_path_factory.mktemp("registry"))
    for name in (*FAMILY, "cala"):
        registry.publish(shipped(f"emoji/{name}"), name=name)
    return registry


@pytest.fixture(scope="module")
def follower(registry: RegistryWithEdges) -> Iterator[RunningService]:
    """An edge that pulls them when it starts, with room for two in memory."""
    with registry.edge(max_loaded=2, queue=64) as service:
        yield service


@pytest.fixture
def pulling(follower: RunningService) -> Iterator[httpx2.Client]:
    """A client of this edge."""
    with httpx2.Client(base_url=follower.url, timeout=120) as client:
        yield client


def draw(client: httpx2.Client, **asked: Any) -> dict[str, Any]:
    """One order through the plain interface."""
    answer = client.post("/v1/images/generations", json={"prompt": PROMPTS[0], "steps": 2, **asked})
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def pull(client: httpx2.Client) -> dict[str, Any]:
    return dict(client.post("/v1/bundles/pull").json())


def change(client: httpx2.Client, bundle_id: str, what: str) -> httpx2.Response:
    return client.post(f"/v1/bundles/{bundle_id}/{what}")


def test_a_canary_knows_its_own_update_from_all_others(plain: DiffusersGenerator) -> None:
    """The floor lies between an update drawn in another batch, and any other update."""
    aligned, _ = apply_generation(plain, shipped("emoji/makd"))
    canary = make_canary(aligned, None, PROMPTS, seeds=SEEDS)
    self_test(aligned, None, canary)
    distances = []
    for name in ("food", "rivals/lora-0"):
        rival, _ = apply_generation(plain, shipped(f"emoji/{name}"))
        with pytest.raises(InputError, match=r"came to [\d.]+ dB .* floor is 30 dB") as refused:
            self_test(rival, None, canary)
        remove_update(rival)
        distances.append(str(refused.value).split(" dB")[0].split()[-1])
    with pytest.raises(InputError, match="came to"):
        self_test(plain, None, canary)
    remove_update(aligned)
    print(f"other updates are at {', '.join(distances)} dB of the canary, the floor is {canary.floor_db:g}")


def test_a_canary_of_a_codec_hears_a_broken_update(plain: DiffusersGenerator) -> None:
    codec = load_codec(shipped("emoji/codec"))
    adapted, _ = apply_transmission(codec, shipped("emoji/cala"))
    canary = make_canary(plain, adapted, PROMPTS, seeds=SEEDS)
    self_test(plain, adapted, canary)
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                weight.mul_(-30)
    with pytest.raises(InputError, match="came to"):
        self_test(plain, adapted, canary)


def test_an_update_that_draws_no_numbers_fails_without_a_canary(
    plain: DiffusersGenerator, tmp_path: Path
) -> None:
    """Finite in the file, and beyond all numbers once it is used."""
    aligned, _ = apply_generation(plain, variant(tmp_path, 1, strength=3e4))
    with torch.no_grad():
        for name, weight in aligned.denoiser.named_parameters():
            if aligned.adapters[0] in name:
                weight.fill_(6e4)
    with pytest.raises(InputError, match=r"no numbers|empty picture"):
        self_test(aligned, None, None)
    remove_update(aligned)


def test_references_of_another_size_are_refused_before_they_are_unpacked(plain: DiffusersGenerator) -> None:
    canary = make_canary(plain, None, PROMPTS[:1], seeds=SEEDS[:1])
    (bomb,) = png_bytes(torch.zeros(1, 3, 4000, 4000))
    with pytest.raises(InputError, match="4000"):
        self_test(plain, None, other(canary, (bomb,)))
    with pytest.raises(InputError, match="no readable picture"):
        self_test(plain, None, other(canary, (canary.references[0][:40],)))


def test_what_is_listed_is_pulled_and_what_is_followed_is_active(pulling: httpx2.Client) -> None:
    shelf = bundles(pulling)
    assert sorted(bundle["name"] for bundle in shelf.values()) == sorted((*FAMILY, "cala"))
    assert sorted(b["name"] for b in shelf.values() if b["active"]) == ["cala", "makd"]
    makd = load_bundle(shipped("emoji/makd")).id
    assert draw(pulling)["gsc"]["bundle"] == makd
    assert draw(pulling, bundle=makd[:12])["gsc"]["bundle"] == makd
    again = pull(pulling)
    assert again["new"] == []
    assert again["active"]["generation"] == makd


def test_a_pulled_update_that_fails_its_canary_is_not_used(plain: DiffusersGenerator, tmp_path: Path) -> None:
    """The last good one stays, also of a registry that is damaged; the failure is remembered and counted once."""
    registry = new_registry_with_edges(tmp_path)
    aligned, _ = apply_generation(plain, shipped("emoji/food"))
    right = make_canary(aligned, None, PROMPTS, seeds=SEEDS)
    wrong = other(right, tuple(png_bytes(plain.decode(plain(PROMPTS, seeds=(8, 9))))))
    remove_update(aligned)
    good = registry.publish(shipped("emoji/food"), name="makd", canary=right)
    refused = "dekag_edge_updates_refused_total 1.0"
    with registry.edge_inside() as client:
        assert pull(client)["active"]["generation"] == good
        bad = registry.publish(shipped("emoji/animals"), name="makd", canary=wrong)
        pulled = pull(client)
        assert pulled["new"] == [bad]
        assert pulled["active"]["generation"] == good
        assert "floor is 30 dB" in bundles(client)[bad]["bad"]
        assert refused in client.get("/metrics").text
        pull(client)
        assert refused in client.get("/metrics").text
        assert change(client, bad, "activate").status_code == 400
        assert draw(client)["gsc"]["bundle"] == good
        (tmp_path / "registry" / "metadata" / "timestamp.json").write_bytes(b"{}")
        damaged = client.post("/v1/bundles/pull")
        assert damaged.status_code == 400
        assert "nothing was changed" in damaged.json()["error"]["message"]
        assert client.get("/v1/bundles").json()["error"] == damaged.json()["error"]["message"]
        assert draw(client)["gsc"]["bundle"] == good


def test_bundles_are_pinned_loaded_and_removed(pulling: httpx2.Client) -> None:
    shelf = {bundle["name"]: bundle_id for bundle_id, bundle in bundles(pulling).items()}
    food, faces, makd = (shelf[name] for name in ("food", "faces", "makd"))
    assert change(pulling, food[:12], "load").json()["loaded"] is True
    assert change(pulling, food, "pin").json()["pinned"] is True
    refused = pulling.delete(f"/v1/bundles/{food}")
    assert (refused.status_code, "pinned" in refused.text) == (400, True)
    assert change(pulling, food, "unpin").json()["pinned"] is False
    assert "active" in pulling.delete(f"/v1/bundles/{makd}").text
    assert pulling.delete(f"/v1/bundles/{faces}").status_code == 200
    assert faces not in bundles(pulling)
    gone = pulling.post("/v1/images/generations", json={"prompt": "x", "bundle": faces[:12]})
    assert gone.status_code == 404
    assert change(pulling, "0" * 64, "load").status_code == 404
    # what is listed comes back, and a pinned choice is kept
    change(pulling, food, "activate")
    change(pulling, food, "pin")
    pulled = pull(pulling)
    assert pulled["new"] == [faces]
    assert pulled["active"]["generation"] == food
    change(pulling, food, "unpin")
    pulled = pull(pulling)
    assert pulled["active"]["generation"] == makd


def swap_under_load(client: httpx2.Client, *, swaps: int, clients: int) -> None:
    """Every answer must be the bytes that its bundle draws for one client alone."""
    ids = [bundle_id for bundle_id, bundle in bundles(client).items() if bundle["kind"] == "generation"]
    cases = [(prompt, seed) for prompt in PROMPTS for seed in (0, 1)]
    alone = {
        (bundle, prompt, seed): draw(client, prompt=prompt, seed=seed, bundle=bundle)["data"]
        for bundle in ids
        for prompt, seed in cases
    }
    done, answers, failures = threading.Event(), [], []

    def ask(number: int) -> None:
        rng = random.Random(number)
        while not done.is_set():
            prompt, seed = rng.choice(cases)
            bundle = rng.choice(["active", "active", rng.choice(ids)])
            try:
                reply = draw(client, prompt=prompt, seed=seed, bundle=bundle)
                used = reply["gsc"]["bundle"]
                assert bundle in ("active", used)
                assert reply["data"] == alone[used, prompt, seed], f"{used[:12]} {prompt!r} {seed}"
                answers.append(used)
            except Exception as error:
                failures.append(error)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    try:
        for number in range(swaps):
            answer = change(client, ids[number % len(ids)], "activate")
            assert answer.status_code == 200, answer.text
    finally:
        done.set()
        for thread in threads:
            thread.join()
    print(
        f"{swaps} swaps under {clients} clients: {len(answers)} images of {len(set(answers))} bundles,"
        f" {len(failures)} failures"
    )
    assert not failures, failures[0]
    assert len(set(answers)) > 1


@pytest.mark.slow
def test_swaps_touch_no_running_request(pulling: httpx2.Client) -> None:
    """`test_200_swaps` is the long one."""
    swap_under_load(pulling, swaps=10, clients=4)


@pytest.mark.slow
def test_200_swaps_touch_no_running_request(pulling: httpx2.Client) -> None:
    swap_under_load(pulling, swaps=200, clients=8)


def kill_and_return(
    registry: RegistryWithEdges, service: RunningService, client: httpx2.Client, cycles: int
) -> list[float]:
    """Each cycle lists a new update, kills the edge at a random moment of its pull, and starts it again.

    Returns the seconds until it was ready again.
    """
    rng, seconds = random.Random(0), []
    listed = [registry.publish(variant(registry.folder, 0), name="makd")]
    pull(client)
    reference = draw(client)
    assert reference["gsc"]["bundle"] == listed[0]
    for cycle in range(1, cycles + 1):
        listed.append(registry.publish(variant(registry.folder, cycle), name="makd"))
        thread = threading.Thread(target=pull_unless_killed, args=(client,))
        thread.start()
        time.sleep(rng.uniform(0, 0.4))
        service.kill()
        thread.join()
        started = time.perf_counter()
        service.restart()
        seconds.append(time.perf_counter() - started)
        reply = draw(client)
        assert reply["gsc"]["bundle"] in listed[-2:]
        assert pixels(reply) == pixels(reference)
        assert all(bundle["bad"] is None for bundle in bundles(client).values())
        wait_for_pull(client, listed[-1])
    return seconds


def pixels(reply: dict[str, Any]) -> bytes:
    """Of the first image; its file also names the bundle, and here each cycle has another of the same weights."""
    with Image.open(io.BytesIO(base64.b64decode(reply["data"][0]["b64_json"]))) as picture:
        return picture.tobytes()


def pull_unless_killed(client: httpx2.Client) -> None:
    with suppress(httpx2.HTTPError):
        client.post("/v1/bundles/pull")


def wait_for_pull(client: httpx2.Client, bundle_id: str) -> None:
    """Until the pull at the start has brought and activated what is listed."""
    wait_for(lambda: bool(bundles(client).get(bundle_id, {}).get("active")), seconds=60)


def test_a_killed_edge_returns_on_its_last_good_update(
    registry: RegistryWithEdges, follower: RunningService, pulling: httpx2.Client
) -> None:
    """`test_50_kills_and_returns` is the long one, and has the figure."""
    kill_and_return(registry, follower, pulling, 1)


@pytest.mark.slow
def test_50_kills_and_returns(
    registry: RegistryWithEdges, follower: RunningService, pulling: httpx2.Client
) -> None:
    """Ready within 5 s beside the import of torch, diffusers, peft and transformers, which depends on the disk."""
    code = "import fastapi, peft, torch; from diffusers import StableDiffusionPipeline"
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    imports = time.perf_counter() - started
    seconds = kill_and_return(registry, follower, pulling, 50)
    print(
        f"{len(seconds)} kills: ready again after {sum(seconds) / len(seconds):.1f} s in the mean,"
        f" {max(seconds):.1f} s at most; the import of the libraries alone takes {imports:.1f} s"
    )
    assert max(seconds) < 5 + imports
