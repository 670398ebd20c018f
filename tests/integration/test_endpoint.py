"""Images from an endpoint: a real server on this machine that speaks the protocol, and may be told to fail."""

import base64
import json
import signal
import threading
import time
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from image_server import KEY, MODEL, Answer, Server, as_json, drawing, expected, fault
from missing_packages import complaint

from dekag.data.bought import draw_to_folder
from dekag.data.endpoint import ImageEndpoint
from dekag.data.images import read_folder
from dekag.types import EndpointWarning, InputError

PROMPTS = [f"a number {number}" for number in range(12)]
SEEDS = [100 + number for number in range(12)]


def test_what_is_asked_for(server: Server, endpoint: ImageEndpoint) -> None:
    endpoint.draw(["a cat"], seeds=[7])
    fields = {"model": MODEL, "prompt": "a cat", "n": 1, "size": "16x16"}
    assert server.requests == [{**fields, "response_format": "b64_json", "seed": 7}]
    replace(endpoint, send_seed=False, send_format=False).draw(["a cat"], seeds=[7])
    assert server.requests[1] == fields


def test_image_i_belongs_to_prompt_i_whatever_comes_first(server: Server, endpoint: ImageEndpoint) -> None:
    """Four calls are under way at a time, no more, and those of a round are answered in any order."""
    together = threading.Barrier(4, timeout=60)

    def delay_s(request: dict[str, Any]) -> float:
        together.wait()
        return 0.01 * (20 * request["seed"] % 7)

    server.delay_s = delay_s
    images = endpoint.draw(PROMPTS, seeds=SEEDS)
    assert torch.equal(images, expected(PROMPTS, SEEDS))
    assert server.busiest == 4
    assert len(server.requests) == len(PROMPTS)


def test_one_call_at_a_time(server: Server, endpoint: ImageEndpoint) -> None:
    server.delay_s = lambda request: 0.01
    replace(endpoint, concurrency=1).draw(PROMPTS, seeds=SEEDS)
    assert server.busiest == 1
    assert [request["prompt"] for request in server.requests] == PROMPTS


def test_transient_faults_are_retried(server: Server, endpoint: ImageEndpoint) -> None:
    soon = {"retry-after-ms": "5"}
    server.faults = [fault(429, "slow down", **soon), fault(500, "oops", **soon), fault(503, "busy", **soon)]
    assert torch.equal(endpoint.draw(["a"], seeds=[1]), expected(["a"], [1]))
    assert len(server.requests) == 4


def test_retry_after_is_waited_for(server: Server, endpoint: ImageEndpoint) -> None:
    server.faults = [fault(429, "slow down", **{"retry-after": "1"})]
    start = time.monotonic()
    endpoint.draw(["a"], seeds=[1])
    assert time.monotonic() - start >= 1.0


def test_without_retry_after_it_backs_off(server: Server, endpoint: ImageEndpoint) -> None:
    """The first wait is 0.5 s, less up to a quarter."""
    server.faults = [fault(500, "oops")]
    start = time.monotonic()
    endpoint.draw(["a"], seeds=[1])
    assert time.monotonic() - start >= 0.375


def test_a_timeout_is_retried(server: Server, endpoint: ImageEndpoint) -> None:
    server.delay_s = lambda request: 1.0 if len(server.requests) == 1 else 0.0
    assert torch.equal(replace(endpoint, timeout_s=0.5).draw(["a"], seeds=[1]), expected(["a"], [1]))
    assert len(server.requests) >= 2


def raw(body: bytes, kind: str = "application/json") -> Answer:
    return 200, {"content-type": kind}, body


def payload(**image: object) -> Answer:
    return as_json(200, {"created": 1, "data": [image]})


PNG = base64.b64decode(json.loads(drawing({"size": "16x16", "prompt": "x"})[2])["data"][0]["b64_json"])
TEXT, CUT = (base64.b64encode(data).decode() for data in (b"no picture", PNG[:60]))


@pytest.mark.parametrize(
    ("answer", "line"),
    [
        (
            fault(400, "Not that", "content_policy_violation"),
            r"refused what it says \(400 Not that\); reword",
        ),
        (fault(400, "Not that", "moderation_blocked"), r"refused what it says \(400 Not that\); reword it"),
        (fault(400, "Not so loud"), r"did not take the request \(400 Not so loud\); change what it names"),
        (fault(403, "no"), "refused the key with 403; put a valid one into OPENAI_API_KEY"),
        (fault(404, "what?"), r"no model 'painter' or no images at http\S+ \(404 what\?\); check both"),
        (fault(429, "slow\n\x1b[2Jdown"), r"is still too busy \(429 slow \[2Jdown\); wait, or lower"),
        (fault(500, "oops"), r"failed in 1 calls \(500 oops\); look at the server"),
        ((502, {}, b"<html>bad gateway</html>"), r"failed in 1 calls \(502\); look at the server"),
        (raw(b"{"), "sent is no JSON; check base_url"),
        (raw(b"<html>hello</html>", "text/html"), "sent is not one image; check base_url"),
        (raw(b"[]"), "sent is not one image; check base_url"),
        (raw(b'{"data": []}'), "sent is not one image; check base_url"),
        (raw(b'{"data": "text"}'), "sent is not one image; check base_url"),
        (payload(url="file:///etc/passwd"), "is an address that is not of http or https; choose a server"),
        (payload(url="http://["), "is an address that is not of http or https; choose a server"),
        (
            payload(url="http://127.0.0.1:1/a.png?s=1"),
            "is an address, http://127.0.0.1, that cannot be reached in",
        ),
        (payload(), "sent is no base64; choose a server that gives b64_json"),
        (payload(b64_json="data:image/png;base64,"), "sent is no base64; choose a server"),
        (payload(b64_json=TEXT), "sent is no PNG, JPEG or WebP picture"),
        (payload(b64_json=CUT), "sent is damaged or cut short"),
        (
            drawing({"size": "16x16", "prompt": "a"}, side=32),
            "asked for 16x16 pixels, but painter drew 32x16",
        ),
    ],
)
def test_every_bad_answer_has_one_line(
    server: Server, endpoint: ImageEndpoint, answer: Answer, line: str
) -> None:
    """It names the prompt, counted from 1, and no retry is left."""
    server.answer = lambda request: answer if request["prompt"] == "b" else drawing(request)
    with pytest.raises(InputError, match=line) as caught:
        replace(endpoint, retries=0).draw(["a", "b"], seeds=[1, 2])
    assert str(caught.value).startswith("prompt 2 ('b'): ")
    assert str(caught.value).isprintable()


def test_unknown_model(endpoint: ImageEndpoint) -> None:
    with pytest.raises(InputError, match=r"prompt 1 \('a'\): no model 'other' or no images at .* check both"):
        replace(endpoint, model="other").draw(["a"], seeds=[1])


def test_nobody_there(server: Server, endpoint: ImageEndpoint) -> None:
    away = replace(endpoint, base_url="http://127.0.0.1:1/v1", retries=0)
    with pytest.raises(InputError, match=r"prompt 1 \('a'\): http\S+ cannot be reached in 1 calls; check"):
        away.draw(["a"], seeds=[1])


def test_too_slow(server: Server, endpoint: ImageEndpoint) -> None:
    server.delay_s = lambda request: 0.5
    with pytest.raises(InputError, match=r"gave no answer within 0.1 s in 1 calls; allow more time"):
        replace(endpoint, timeout_s=0.1, retries=0).draw(["a"], seeds=[1])


def test_retries_end(server: Server, endpoint: ImageEndpoint) -> None:
    server.answer = lambda request: fault(429, "slow down", **{"retry-after-ms": "5"})
    with pytest.raises(InputError, match="still too busy"):
        replace(endpoint, retries=3).draw(["a"], seeds=[1])
    assert len(server.requests) == 4


def test_a_failure_stops_the_rest(server: Server, endpoint: ImageEndpoint) -> None:
    """The calls that were under way are paid for, but no new one is begun."""
    server.answer = lambda request: fault(400, "no") if request["prompt"] == PROMPTS[0] else drawing(request)
    server.delay_s = lambda request: 0.0 if request["prompt"] == PROMPTS[0] else 0.5
    with pytest.raises(InputError, match="prompt 1 "):
        endpoint.draw(PROMPTS, seeds=SEEDS)
    assert len(server.requests) < len(PROMPTS)


@pytest.mark.parametrize("status", [400, 401, 404, 429, 500])
def test_the_key_never_shows(server: Server, endpoint: ImageEndpoint, status: int) -> None:
    """Not even where the server says it, in the traceback or in what the endpoint looks like."""
    server.answer = lambda request: fault(status, f"You sent Bearer {KEY} and we say so", KEY)
    with pytest.raises(InputError) as caught:
        replace(endpoint, retries=0).draw(["a"], seeds=[1])
    shown = "".join(traceback.format_exception(caught.value)) + repr(endpoint) + str(endpoint)
    assert KEY not in shown
    assert "prompt 1" in shown


def test_wrong_key(
    server: Server, endpoint: ImageEndpoint, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CLOUD_KEY", "another-key")
    other = replace(endpoint, api_key_env="CLOUD_KEY")
    line = "refused the key with 401; put a valid one into CLOUD_KEY"
    with pytest.raises(InputError, match=line) as caught:
        draw_to_folder(other, ["a"], [1], tmp_path / "cloud")
    assert "another-key" not in str(caught.value)
    assert not (tmp_path / "cloud").exists()


@pytest.mark.parametrize(
    ("value", "line"),
    [
        (None, "the environment variable OPENAI_API_KEY must hold the key of http"),
        (" ", "the environment variable OPENAI_API_KEY must hold the key of http"),
        ("sk-\nsecret", "the key in OPENAI_API_KEY must be one line of printable ASCII"),
        ("sk-ä-secret", "the key in OPENAI_API_KEY must be one line of printable ASCII"),
    ],
)
def test_unusable_keys(
    server: Server, endpoint: ImageEndpoint, monkeypatch: pytest.MonkeyPatch, value: str | None, line: str
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    if value is not None:
        monkeypatch.setenv("OPENAI_API_KEY", value)
    with pytest.raises(InputError, match=line) as caught:
        endpoint.draw(["a"], seeds=[1])
    assert "secret" not in str(caught.value)
    assert not server.requests


def test_without_the_client(endpoint: ImageEndpoint) -> None:
    code = f"from dekag.data.endpoint import ImageEndpoint\n{endpoint!r}.draw(['a'], seeds=[1])"
    assert 'pip install "dekag[endpoint]"' in complaint(code, missing=["openai"])


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"base_url": "localhost:8000"}, "base_url must be an address such as"),
        (
            {"base_url": "http://me:secret@127.0.0.1/v1"},
            "base_url must be a bare address; a key belongs in an",
        ),
        (
            {"base_url": "http://127.0.0.1/v1?key=secret"},
            "base_url must be a bare address; a key belongs in an",
        ),
        ({"model": ""}, "model must be the name of a model"),
        (
            {"api_key_env": "sk-secret"},
            "api_key_env must be the name of an environment variable, not the key",
        ),
        ({"size": "auto"}, "size must be WIDTHxHEIGHT in pixels, as 512x512, got 'auto'"),
        ({"size": "0x16"}, "size must be WIDTHxHEIGHT"),
        ({"concurrency": 0}, "concurrency must be at least 1"),
        ({"retries": -1}, "retries at least 0"),
        ({"timeout_s": 0.0}, "timeout_s positive"),
    ],
)
def test_unusable_settings(endpoint: ImageEndpoint, change: dict[str, Any], line: str) -> None:
    with pytest.raises(InputError, match=line) as caught:
        replace(endpoint, **change)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("prompts", "seeds", "line"),
    [
        ([], [], "got 0 prompts, 0 seeds"),
        (["a"], [1, 2], "each prompt needs one seed, got 1 prompts, 2 seeds"),
        (["a", " "], [1, 2], "prompt 2 is empty; say what to draw"),
        (["a"], [-1], "seeds must not be negative, got -1"),
        (["a", "b", "a"], [1, 1, 1], "prompts 1 and 3 are the same with the same seed; give another seed"),
    ],
)
def test_unusable_prompts(
    server: Server, endpoint: ImageEndpoint, tmp_path: Path, prompts: list[str], seeds: list[int], line: str
) -> None:
    with pytest.raises(InputError, match=line):
        draw_to_folder(endpoint, prompts, seeds, tmp_path / "cloud")
    assert not server.requests


def test_folder_is_what_read_folder_reads(server: Server, endpoint: ImageEndpoint, tmp_path: Path) -> None:
    server.delay_s = lambda request: 0.01 * (20 * request["seed"] % 7)
    counts: list[int] = []
    assert draw_to_folder(endpoint, PROMPTS, SEEDS, tmp_path / "a" / "b", on_image=counts.append) == 12
    assert counts == list(range(1, 13))
    data = read_folder(tmp_path / "a" / "b")
    assert data.prompts == tuple(PROMPTS)
    assert torch.equal(data.images[:], expected(PROMPTS, SEEDS))
    index = json.loads((tmp_path / "a" / "b" / "index.json").read_text())
    assert {key: value for key, value in index["images"][3].items() if key != "file"} == {
        "prompt": PROMPTS[3],
        "seed": SEEDS[3],
        "model": MODEL,
        "size": "16x16",
    }
    assert len(list((tmp_path / "a" / "b").iterdir())) == 13


def test_what_is_there_is_not_paid_for_again(
    server: Server, endpoint: ImageEndpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing the second time, not even a key; then only what is new: a prompt, a seed, a lost file."""
    draw_to_folder(endpoint, PROMPTS[:4], SEEDS[:4], tmp_path)
    first = json.loads((tmp_path / "index.json").read_text())["images"][0]["file"]
    server.requests.clear()
    with monkeypatch.context() as patch:
        patch.delenv("OPENAI_API_KEY")
        assert draw_to_folder(endpoint, PROMPTS[:4], SEEDS[:4], tmp_path) == 0
    (tmp_path / first).unlink()
    prompts, seeds = ["new", *PROMPTS[:4]], [5, *SEEDS[:3], 6]
    assert draw_to_folder(endpoint, prompts, seeds, tmp_path) == 3
    asked = {(request["prompt"], request["seed"]) for request in server.requests}
    assert asked == {("new", 5), (PROMPTS[0], SEEDS[0]), (PROMPTS[3], 6)}
    data = read_folder(tmp_path)
    assert data.prompts == tuple(prompts)
    assert torch.equal(data.images[:], expected(prompts, seeds))


def test_another_size_is_another_image_and_the_first_is_kept(
    server: Server, endpoint: ImageEndpoint, tmp_path: Path
) -> None:
    draw_to_folder(endpoint, PROMPTS[:2], SEEDS[:2], tmp_path)
    draw_to_folder(replace(endpoint, size="32x32"), PROMPTS[:2], SEEDS[:2], tmp_path)
    assert torch.equal(read_folder(tmp_path).images, expected(PROMPTS[:2], SEEDS[:2], 32))
    assert draw_to_folder(endpoint, PROMPTS[:2], SEEDS[:2], tmp_path) == 0
    assert torch.equal(read_folder(tmp_path).images, expected(PROMPTS[:2], SEEDS[:2], 16))
    assert server.drawn == 4


def test_a_refused_prompt_leaves_the_others(server: Server, endpoint: ImageEndpoint, tmp_path: Path) -> None:
    """All others are drawn; it is named, not asked for again unless told, and with it reworded one more is paid for."""
    bad = fault(400, "Not that", "content_policy_violation")
    server.answer = lambda request: bad if request["prompt"] == PROMPTS[5] else drawing(request)
    line = (
        r"refused 1 of 12 prompts, which are left out: prompt 6 \('a number 5'\); .*index.json has its words"
    )
    with pytest.warns(EndpointWarning, match=line):
        assert draw_to_folder(endpoint, PROMPTS, SEEDS, tmp_path) == 11
    rest = [number for number in range(12) if number != 5]
    kept = read_folder(tmp_path)
    assert kept.prompts == tuple(PROMPTS[number] for number in rest)
    assert torch.equal(kept.images[:], expected(kept.prompts, [SEEDS[number] for number in rest]))
    (row,) = json.loads((tmp_path / "index.json").read_text())["refused"]
    assert (row["prompt"], "400 Not that" in row["why"]) == (PROMPTS[5], True)
    asked = len(server.requests)
    with pytest.warns(EndpointWarning, match="refused 1 of 12"):
        draw_to_folder(endpoint, PROMPTS, SEEDS, tmp_path)
    assert len(server.requests) == asked
    with pytest.warns(EndpointWarning, match="refused 1 of 12"):
        draw_to_folder(replace(endpoint, ask_refused=True), PROMPTS, SEEDS, tmp_path)
    assert len(server.requests) == asked + 1
    prompts = [*PROMPTS[:5], "a kinder one", *PROMPTS[6:]]
    assert draw_to_folder(endpoint, prompts, SEEDS, tmp_path) == 1
    assert torch.equal(read_folder(tmp_path).images, expected(prompts, SEEDS))


def test_an_interruption_leaves_what_was_drawn(
    server: Server, endpoint: ImageEndpoint, tmp_path: Path
) -> None:
    """A real SIGINT after the third image: every image that the server drew is kept and none drawn twice."""
    main = threading.main_thread().ident
    assert main is not None
    server.delay_s = lambda request: 0.5 if server.drawn > 3 else 0.0
    # a shell that starts the tests in the background has them ignore the signal
    before = signal.signal(signal.SIGINT, signal.default_int_handler)

    def interrupt(done: int) -> None:
        if done == 3:
            signal.pthread_kill(main, signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        draw_to_folder(endpoint, PROMPTS, SEEDS, tmp_path, on_image=interrupt)
    signal.signal(signal.SIGINT, before)
    server.delay_s = lambda request: 0.0
    kept = len(read_folder(tmp_path).prompts)
    assert 3 <= kept == server.drawn < 12
    assert draw_to_folder(endpoint, PROMPTS, SEEDS, tmp_path) == 12 - kept
    assert server.drawn == 12
    assert torch.equal(read_folder(tmp_path).images, expected(PROMPTS, SEEDS))


def test_folders_of_others_are_kept(server: Server, endpoint: ImageEndpoint, tmp_path: Path) -> None:
    text = '{"images": [{"file": "a.png", "prompt": "x"}]}'
    (tmp_path / "index.json").write_text(text)
    with pytest.raises(InputError, match="is not from an endpoint, so it is kept; choose another folder"):
        draw_to_folder(endpoint, ["a"], [1], tmp_path)
    assert (tmp_path / "index.json").read_text() == text
    with pytest.raises(InputError, match="is a file; give a folder to draw to"):
        draw_to_folder(endpoint, ["a"], [1], tmp_path / "index.json")
    assert not server.requests
