"""Pictures that cost money: none is bought twice, whatever real servers and people do."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from command_line import Say, dekag
from image_server import (
    MODEL,
    Answer,
    RealServer,
    Server,
    colour,
    drawing,
    fault,
    png,
)
from tiny_worlds import miniature

from dekag.data.bought import EndpointCloud, draw_to_folder
from dekag.data.endpoint import ImageEndpoint
from dekag.data.images import read_folder
from dekag.data.orders import Account, draw_seeds
from dekag.tasks.compare import draw_references
from dekag.tasks.material import ImageSource, material
from dekag.tasks.purchases import check_budget
from dekag.tasks.validate import VALIDATION_SEED
from dekag.training.run import ALONE
from dekag.types import EndpointWarning, InputError
from dekag.world import Model, World

PROMPTS = [f"a number {number}" for number in range(6)]


def fresh(endpoint: ImageEndpoint, **changes: object) -> ImageEndpoint:
    """The endpoint as another run has it."""
    return replace(endpoint, **{"account": Account(), **changes})  # type: ignore[arg-type]


def test_seeds_follow_from_prompt_and_draw() -> None:
    """Not from the place: any list gives a prompt's n-th draw the same seed, and 2000 of a prompt are all different."""
    alone = dict(zip("abab", draw_seeds(list("abab")), strict=True))
    assert draw_seeds(["c", "a", "b", "a", "b"])[3:] == [alone["a"], alone["b"]]
    assert draw_seeds(["a"]) == draw_seeds(["b", "a"])[1:]
    assert len(set(draw_seeds(["a"] * 2000))) == 2000
    assert all(0 <= seed < 2**31 for seed in draw_seeds([f"{number}" for number in range(2000)]))


def test_a_list_that_is_edited_buys_what_is_new(
    server: Server, endpoint: ImageEndpoint, tmp_path: Path
) -> None:
    """Row G5: one prompt taken out of six buys 0, one added with two draws 2, and every picture is its prompt's."""
    cloud = EndpointCloud(endpoint=endpoint, folder=tmp_path)
    first = cloud.pictures(PROMPTS * 2)
    assert server.drawn == 12
    fewer = PROMPTS[:2] + PROMPTS[3:]
    assert torch.equal(cloud.pictures(fewer).images[:], first.images[[0, 1, 3, 4, 5]])
    assert server.drawn == 12
    more = ["something new", *reversed(PROMPTS)]
    again = cloud.pictures(more * 2)
    assert server.drawn == 14
    assert again.prompts == tuple(more * 2)
    assert torch.equal(again.images[1:7], first.images[:6].flip(0))
    assert torch.equal(again.images[8:], first.images[6:].flip(0))


def test_pictures_of_an_earlier_version_are_used(
    server: Server, endpoint: ImageEndpoint, tmp_path: Path
) -> None:
    """Its index has no version, and its seeds follow from the place; the first draw takes the lower seed."""
    prompts, seeds = PROMPTS[:3] * 2, list(range(100_000, 100_006))
    draw_to_folder(endpoint, prompts, seeds, tmp_path)
    index = json.loads((tmp_path / "index.json").read_text())
    old = {key: index[key] for key in ("model", "endpoint", "images", "unused")}
    (tmp_path / "index.json").write_text(json.dumps(old))
    cloud = EndpointCloud(endpoint=endpoint, folder=tmp_path)
    assert cloud.to_buy([PROMPTS[2], PROMPTS[0], PROMPTS[5]]) == 1
    for _ in range(2):
        found = cloud.pictures([PROMPTS[2], PROMPTS[0], PROMPTS[5]])
        assert server.drawn == 7
        assert (255 * found.images[:][:, :, 0, 0]).round().int().tolist()[:2] == [
            list(colour(PROMPTS[2], 100_002)),
            list(colour(PROMPTS[0], 100_000)),
        ]
    cloud.pictures(prompts)
    assert server.drawn == 7
    rows = json.loads((tmp_path / "index.json").read_text())["images"]
    assert [row["drawn_with_seed"] for row in rows] == seeds


@pytest.mark.parametrize("prompt", ["a cat", "what size is it, and which seed?"])
@pytest.mark.parametrize("name", ["response_format", "seed", "size"])
@pytest.mark.parametrize("form", ["param", "message", "422"])
def test_a_parameter_that_is_not_taken_is_left_out(
    server: Server, endpoint: ImageEndpoint, tmp_path: Path, name: str, form: str, prompt: str
) -> None:
    """Row G4: in that run for good, and said once; pictures of another size are cut and resized."""

    def refusal() -> Answer:
        if form == "param":
            return fault(400, "Unknown parameter.", "unknown_parameter", name)
        if form == "message":
            return fault(400, f"Unrecognized request argument supplied: {name}")
        return (
            422,
            {"content-type": "application/json"},
            json.dumps({"detail": [{"loc": ["body", name]}]}).encode(),
        )

    def answer(request: dict[str, object]) -> Answer:
        return refusal() if name in request else drawing({"size": "20x12", **request})

    server.answer = answer
    one = replace(endpoint, concurrency=1)
    with pytest.warns(EndpointWarning, match=rf"takes no {name}, so it is left out: "):
        found = EndpointCloud(endpoint=one, folder=tmp_path).pictures([prompt, *PROMPTS])
    draw_to_folder(one, ["another", *PROMPTS], None, tmp_path)
    assert found.images.shape == (7, 3, 16, 16)
    assert (len(server.requests), server.drawn) == (9, 8)
    assert sum(name in request for request in server.requests) == 1


def test_an_unknown_complaint_is_no_parameter(server: Server, endpoint: ImageEndpoint) -> None:
    """A 400 that names nothing, or quotes a prompt that does, is told as it is."""
    server.answer = lambda request: fault(400, f"Too loud: {request['prompt']}")
    with pytest.raises(InputError, match="did not take the request"):
        endpoint.draw(["a seed of this size"], seeds=[1])
    assert len(server.requests[0]) == 6


def test_addresses_are_fetched(server: Server, endpoint: ImageEndpoint, tmp_path: Path) -> None:
    """As pictures are that come in the answer; without the key, over a redirect, and again after a broken one."""
    file = png("a", 1, (16, 16))
    server.files = {"/a.png": (302, {"location": "/b.png"}, b""), "/b.png": (200, {}, file)}
    server.answer = lambda request: address(server, "/a.png")
    drawn = endpoint.draw(["a"], seeds=[1])
    assert (255 * drawn[0, :, 0, 0]).round().int().tolist() == list(colour("a", 1))
    assert endpoint.account.size_bytes == len(file)


def address(server: Server, path: str) -> Answer:
    url = path if ":" in path else server.url.removesuffix("/v1") + path
    return 200, {"content-type": "application/json"}, json.dumps({"data": [{"url": url}]}).encode()


@pytest.mark.parametrize(
    ("path", "answer", "line"),
    [
        ("file:///etc/passwd", None, "is an address that is not of http or https; choose"),
        ("data:image/png;base64,AAAA", None, "is an address that is not of http or https; choose"),
        ("/a", (302, {"location": "file:///etc/passwd"}, b""), "is an address that is not of http or https"),
        (
            "/a",
            (302, {"location": "https://127.0.0.1/a"}, b""),
            "that leads to another scheme; choose b64_json",
        ),
        ("/a", (302, {"location": "/a"}, b""), "that leads on more than 3 times"),
        ("/a?signed=secret", (403, {}, b"secret"), r"http://127.0.0.1, that answers 403; choose b64_json"),
        ("/a", (200, {}, b"<html>secret</html>"), "is no PNG, JPEG or WebP picture"),
        ("/a", (200, {}, b""), "is no PNG, JPEG or WebP picture"),
        ("/a", (200, {}, b"\0" * (64 * 2**20 + 1)), "of more than 64 MiB"),
        ("/a", (200, {}, png("a", 1, (24, 24))), "asked for 16x16 pixels, but painter drew 24x24; ask"),
    ],
)
def test_bad_addresses_are_one_line(
    server: Server, endpoint: ImageEndpoint, path: str, answer: Answer | None, line: str
) -> None:
    server.files = {} if answer is None else {path: answer}
    server.answer = lambda request: address(server, path)
    with pytest.raises(InputError, match=line) as caught:
        replace(endpoint, retries=0).draw(["a"], seeds=[1])
    text = str(caught.value)
    assert text.startswith("prompt 1 ('a'): ")
    assert text.isprintable()
    assert "secret" not in text


def test_an_address_of_this_machine_is_none_of_another_server() -> None:
    from dekag.data.answers import check_address

    check_address("http://127.0.0.1/a", origin="http://localhost:8000/v1")
    with pytest.raises(InputError, match="of this very machine"):
        check_address("http://127.0.0.1/a", origin="https://api.example/v1")


def test_a_wrong_size_is_not_paid_for_again(server: Server, endpoint: ImageEndpoint, tmp_path: Path) -> None:
    """The same call says the same without a call; asked for in its own size, the picture is there."""
    server.answer = lambda request: drawing({**request, "size": "24x24"})
    for _ in range(2):
        with pytest.raises(
            InputError, match=r"prompt 1 .*asked for 16x16 pixels, but painter drew 24x24; ask for"
        ):
            draw_to_folder(endpoint, ["a"], None, tmp_path)
    assert draw_to_folder(replace(endpoint, size="24x24"), ["a", "b"], None, tmp_path) == 1
    assert server.drawn == 2
    assert read_folder(tmp_path).images.shape == (2, 3, 24, 24)


def test_a_budget_is_kept_before_the_first(server: Server, endpoint: ImageEndpoint, tmp_path: Path) -> None:
    """Only what is missing counts; what a run bought before counts as well."""
    draw_to_folder(endpoint, PROMPTS[:2], None, tmp_path)
    little = fresh(endpoint, account=Account(budget=3))
    line = r"4 pictures would have to be bought, but budget is 3: allow 4 or ask for fewer"
    with pytest.raises(InputError, match=line):
        draw_to_folder(little, PROMPTS, None, tmp_path)
    with pytest.raises(InputError, match="4 pictures would have to be bought"):
        little.draw(PROMPTS[:4], seeds=range(4))
    assert server.drawn == 2
    assert draw_to_folder(little, PROMPTS[:5], None, tmp_path) == 3
    with pytest.raises(
        InputError, match=r"1 pictures would have to be bought, 3 were bought already, but budget is 3"
    ):
        draw_to_folder(little, PROMPTS, None, tmp_path)
    assert draw_to_folder(little, PROMPTS[:5], None, tmp_path) == 0


def test_two_runs_do_not_buy_for_one_folder(server: Server, endpoint: ImageEndpoint, tmp_path: Path) -> None:
    """The second is refused while the first is at it, and has nothing to buy afterwards."""
    said: list[str] = []

    def another(done: int) -> None:
        try:
            draw_to_folder(endpoint, PROMPTS, None, tmp_path)
        except InputError as error:
            said.append(str(error))

    draw_to_folder(endpoint, PROMPTS[:3], None, tmp_path, on_image=another)
    assert said == [f"another run buys pictures for {tmp_path} now; wait until it has ended"] * 3
    assert draw_to_folder(endpoint, PROMPTS, None, tmp_path) == 3
    assert server.drawn == 6


def test_the_cost_is_counted(server: Server, endpoint: ImageEndpoint, tmp_path: Path) -> None:
    """Calls that failed included, over two runs; the index has the sum."""
    server.faults = [fault(500, "oops", **{"retry-after-ms": "5"})]
    draw_to_folder(endpoint, PROMPTS[:2], None, tmp_path)
    sizes = sum(len(png(p, s, (16, 16))) for p, s in zip(PROMPTS[:4], draw_seeds(PROMPTS[:4]), strict=True))
    draw_to_folder(fresh(endpoint), PROMPTS[:4], None, tmp_path)
    cost = json.loads((tmp_path / "index.json").read_text())["cost"]
    assert cost == {"calls": 5, "pictures": 4, "bytes": sizes}
    assert len(server.requests) == 5


def test_a_folder_that_cannot_be_written_costs_nothing(
    server: Server, endpoint: ImageEndpoint, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot be written .*; give a folder that can"):
        draw_to_folder(endpoint, ["a"], None, tmp_path / "file" / "below")
    assert not server.requests


def test_a_picture_that_a_kill_left_out_of_the_index_is_found(
    server: Server, endpoint: ImageEndpoint, tmp_path: Path
) -> None:
    """The index is of the moment before. What was being written then is no picture, and is bought again."""
    draw_to_folder(endpoint, PROMPTS[:2], None, tmp_path)
    before = (tmp_path / "index.json").read_text()
    draw_to_folder(endpoint, PROMPTS, None, tmp_path)
    (tmp_path / "index.json").write_text(before)
    assert draw_to_folder(endpoint, PROMPTS, None, tmp_path) == 0
    (tmp_path / "index.json").unlink()
    assert draw_to_folder(endpoint, PROMPTS, None, tmp_path) == 0
    assert server.drawn == 6
    whole = next(tmp_path.glob("0003_*.png"))
    (tmp_path / f".part-{whole.name}.host-1-2").write_bytes(whole.read_bytes()[:40])
    whole.unlink()
    assert draw_to_folder(endpoint, PROMPTS, None, tmp_path) == 1
    assert len(EndpointCloud(endpoint=endpoint, folder=tmp_path).pictures(PROMPTS).prompts) == 6


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Say:
    return lambda *words: dekag(capsys, *words)


@pytest.mark.slow
def test_a_budget_on_the_command_line(server: Server, say: Say, tmp_path: Path) -> None:
    """It is named as its option, nothing is bought, and what was bought is told with what it cost."""
    (tmp_path / "prompts.txt").write_text("".join(f"{prompt}\n" for prompt in PROMPTS))
    server.answer = RealServer(
        state=server, behaviours=frozenset({"no seed", "no response_format", "moderation"})
    )
    world = miniature(tmp_path / "world")
    words: list[object] = ["align", "generation", "--method", "lora", "--batch", "2"]
    words += ["--steps", "1", "--frozen-steps", "1"]
    words += ["--world", world, "--out", tmp_path / "out", "--prompts-file", tmp_path / "prompts.txt"]
    words += ["--images", tmp_path / "kept", "--endpoint", server.url, "--endpoint-model", MODEL]
    words += ["--endpoint-size", "64x64"]
    done = say(*words, "--budget", "11")
    assert done.complaints == [
        "dekag: 12 pictures would have to be bought, but --budget is 11: allow 12 or ask for fewer"
    ]
    assert not server.requests
    (tmp_path / "prompts.txt").write_text("".join(f"{prompt}\n" for prompt in [*PROMPTS[:3], "blood"]))
    done = say(*words, "--draws", "1", "--budget", "4")
    assert done.code == 0, done.err
    warned = [line for line in done.err.splitlines() if line.startswith("dekag: warning")]
    assert sum("takes no seed" in line for line in warned) == 1
    assert sum("takes no response_format" in line for line in warned) == 1
    assert sum("refused 1 of 4 prompts" in line for line in warned) == 1
    assert "bought 3 pictures (" in done.err
    assert (tmp_path / "out").is_dir()


def test_an_unknown_method_costs_nothing(server: Server, say: Say, tmp_path: Path) -> None:
    """Row G8: what can be refused is refused before a picture is bought."""
    (tmp_path / "prompts.txt").write_text("a cat\n")
    words = ["align", "generation", "--out", tmp_path / "out", "--prompts-file", tmp_path / "prompts.txt"]
    words += ["--images", tmp_path / "kept", "--endpoint", server.url, "--endpoint-model", MODEL]
    assert "unknown method 'madk'" in say(*words, "--method", "madk").complaints[0]
    assert not server.requests


def test_a_world_whose_cloud_is_an_endpoint(server: Server, tmp_path: Path) -> None:
    """What it buys to train, validate and evaluate with is kept in its folder, and all of it counts for a budget."""
    account = Account(budget=9)
    cloud = ImageEndpoint(base_url=server.url, model=MODEL, size="16x16", account=account)
    world = World(
        name="mine",
        edge_model=Model(source="unused"),
        cloud_model=cloud,
        pixels=16,
        prompt_splits={"distill": PROMPTS[:4], "validation": PROMPTS[4:], "heldout": ["a", "b"]},
        folder=tmp_path,
    )
    source = ImageSource(draws=2)
    with pytest.raises(
        InputError, match="10 pictures would have to be bought, but budget is 9: allow 10 or ask for"
    ):
        check_budget(world, source)
    assert not server.requests
    account.budget = 10
    check_budget(world, source)
    first = material(world, source, ALONE).train
    assert first.images.shape == (8, 3, 16, 16)
    world.reference().images(PROMPTS[4:], seeds=[VALIDATION_SEED] * 2)
    assert server.drawn == 10
    check_budget(world, source)
    assert torch.equal(material(world, source, ALONE).train.images[:], first.images[:])
    with pytest.raises(
        InputError, match="8 pictures would have to be bought, 10 were bought already, but budget is 1"
    ):
        draw_references(world.reference(), {"heldout": ["a", "b"]}, [0, 1])
    assert server.drawn == 10
    account.budget = 18
    draw_references(world.reference(), {"heldout": ["a", "b"]}, [0, 1])
    assert (server.drawn, len(list((tmp_path / "images").glob("*.png")))) == (18, 18)


def test_nothing_left_is_an_error(server: Server, endpoint: ImageEndpoint, tmp_path: Path) -> None:
    server.answer = lambda request: fault(400, "Not that", "moderation_blocked")
    line = r"none of 2 prompts can be drawn: prompt 1 \('a'\): http\S+ refused what it says"
    with pytest.raises(InputError, match=line):
        draw_to_folder(endpoint, ["a", "b"], None, tmp_path)
