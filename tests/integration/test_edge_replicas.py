"""Edges with one world and the same updates answer for each other: deliveries and decoders by what their names say."""

import json
import random
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import httpx2
import pytest
from nginx import reverse_proxy
from running_service import run_service
from starlette.testclient import TestClient

from dekag.generation.prompts import LONGEST_PROMPT
from dekag.serving.edge.app import create
from dekag.serving.edge.recipes import LONGEST_ID, Recipe, read_id
from dekag.serving.edge.requests import ConditionRequest
from dekag.serving.edge.settings import EdgeSettings
from dekag.serving.http.errors import ApiError
from dekag.wire.frame import read_frame
from dekag.world import World, load_world

PROMPT = "a red apple on a blue background"
PICTURES = ("b64_json", "drawn_b64_json", "psnr_db", "erased_uses", "condition", "bundles", "alignment")


@pytest.fixture(scope="module")
def world() -> World:
    return load_world("emoji")


@pytest.fixture(scope="module")
def replicas(
    world: World, tmp_path_factory: pytest.TempPathFactory, decoders: Path
) -> Iterator[list[TestClient]]:
    """Two edges in this process."""
    with ExitStack() as stack:
        clients = []
        for name in ("one", "two"):
            folder = tmp_path_factory.mktemp(name)
            (folder / "decoders").symlink_to(decoders)
            application = create(EdgeSettings(folder=folder), world)
            client = TestClient(application, base_url="http://127.0.0.1", raise_server_exceptions=False)
            clients.append(stack.enter_context(client))
        yield clients


def deliver(client: Any, **asked: Any) -> Any:
    return client.post("/v1/deliveries", json={"prompt": PROMPT, "steps": 2, **asked})


def see(client: Any, name: str, **asked: Any) -> Any:
    return client.post(f"/v1/deliveries/{name}/image", json={"channel_seed": 5, **asked})


def asked_for(rng: random.Random, number: int) -> dict[str, Any]:
    """A delivery that somebody might ask for."""
    fading = {
        "channel": "rayleigh",
        "blocks": rng.choice((1, 4)),
        "pilots": rng.choice((0, 1)),
        "correlation": 0.3,
    }
    return {
        "prompt": rng.choice((PROMPT, 'Grüße, 猫 🐈 \\ "quoted"', "a cat " * 60)),
        "seed": number,
        "steps": rng.choice((1, 2)),
        "bundle": rng.choice(("active", "none")),
        "condition": {
            "uses": rng.randint(64, 512),
            "snr_db": rng.uniform(-5, 20),
            **rng.choice((fading, {})),
        },
    }


def test_a_delivery_made_at_one_edge_is_seen_at_the_other(replicas: list[TestClient]) -> None:
    """The same bytes, whatever was asked for; a further look at the other one draws nothing again."""
    one, other = replicas
    rng = random.Random(0)
    for number in range(6):
        made = deliver(one, **asked_for(rng, number))
        assert made.status_code == 200, made.text
        name = made.headers["x-delivery-id"]
        assert read_frame(made.content).delivery == name
        here, there = see(one, name), see(other, name)
        assert there.status_code == 200, there.text
        assert {key: here.json()[key] for key in PICTURES} == {key: there.json()[key] for key in PICTURES}
    drawn = other.get("/metrics").text
    see(other, name, channel_seed=6)
    assert [line for line in other.get("/metrics").text.splitlines() if "images_drawn_total " in line] == [
        line for line in drawn.splitlines() if "images_drawn_total " in line
    ]


def test_a_prompt_that_is_too_long_for_an_id_is_said_again(replicas: list[TestClient]) -> None:
    """Random letters do not compress, so the id has the prompt's digest in its place."""
    one, other = replicas
    rng = random.Random(1)
    prompt = "".join(chr(rng.randrange(0x4E00, 0x9FFF)) for _ in range(LONGEST_PROMPT))
    name = deliver(one, prompt=prompt).headers["x-delivery-id"]
    assert len(name) <= LONGEST_ID
    assert see(one, name).status_code == 200
    missing = see(other, name)
    assert (missing.status_code, missing.json()["error"]["param"]) == (404, "prompt")
    assert see(other, name, prompt=prompt[1:]).status_code == 400
    assert see(other, name, prompt=prompt).json()["b64_json"] == see(one, name).json()["b64_json"]


def test_what_the_other_edge_lacks_is_named(replicas: list[TestClient]) -> None:
    recipe = Recipe(
        prompt=PROMPT,
        seed=0,
        steps=2,
        generation="ab" * 8,
        transmission=None,
        world="emoji",
        condition=ConditionRequest(),
    )
    answer = see(replicas[0], recipe.to_id())
    assert (answer.status_code, "no bundle abababab" in answer.text) == (404, True)
    elsewhere = Recipe(**{**vars(recipe), "world": "another", "generation": None})
    assert "of the world another, and this edge serves emoji" in see(replicas[0], elsewhere.to_id()).text


def test_only_what_an_edge_has_written_is_read() -> None:
    """An id has one spelling; 2,000 changed ones are no deliveries, or others, and nothing else."""
    name = Recipe(
        prompt=PROMPT,
        seed=7,
        steps=None,
        generation="ab" * 8,
        transmission="cd" * 8,
        world="emoji",
        condition=ConditionRequest(uses=100, snr_db=3.5),
    ).to_id()
    assert read_id(name).to_id() == name
    rng = random.Random(0)
    for _ in range(2000):
        letters = list(name)
        for _ in range(rng.choice((1, 1, 2, 5))):
            letters[rng.randrange(len(letters))] = rng.choice("abcXYZ019-_")
        changed = "".join(letters)[: rng.choice((len(letters), rng.randrange(8, len(letters))))]
        with suppress(ApiError):
            assert read_id(changed).to_id() == changed


@pytest.mark.slow
def test_a_decoder_that_another_edge_named_is_found(replicas: list[TestClient]) -> None:
    """Its digest is that of the same file here, made when it is asked for."""
    one, other = replicas
    told = one.get("/v1/decoders").json()
    for part in ("codec", "image"):
        file = other.get(told[part]["url"])
        assert (file.status_code, len(file.content)) == (200, told[part]["bytes"])
    for update in ("", "?transmission=none", f"?transmission={'ab' * 8}"):
        assert other.get(f"/v1/decoders/{'0' * 64}.onnx{update}").status_code == 404


@pytest.mark.slow
def test_200_deliveries_behind_one_nginx(tmp_path: Path) -> None:
    """Whichever edge is asked: no 404, and every picture has the bytes that the first answer had."""
    rng, wrong, missing = random.Random(0), 0, 0
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    with ExitStack() as stack:
        edges = [
            stack.enter_context(run_service("edge", tmp_path / name, threads=1, name=name))
            for name in ("a", "b")
        ]
        url = stack.enter_context(reverse_proxy([edge.url for edge in edges], tmp_path / "nginx"))
        with httpx2.Client(base_url=url, timeout=120) as client:
            for number in range(200):
                made = deliver(client, **asked_for(rng, number))
                assert made.status_code == 200, made.text
                answers = [see(client, made.headers["x-delivery-id"]) for _ in range(2)]
                missing += sum(answer.status_code == 404 for answer in answers)
                first, second = (json.loads(answer.text) for answer in answers)
                wrong += any(first[key] != second[key] for key in PICTURES)
        drawn = [edge.number("dekag_images_drawn_total") for edge in edges]
    print(
        f"200 deliveries over {len(edges)} edges, which drew {drawn}: {missing} of 404, {wrong} other pictures"
    )
    assert (missing, wrong) == (0, 0)
    assert min(drawn) > 100, "both have made deliveries of the other again"
