"""The edge through the clients that people have: the `openai` SDK and Hugging Face's."""

import base64
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from PIL import Image
from running_service import RunningService

PROMPT = "a red apple on a blue background"


@pytest.fixture
def api(edge: RunningService) -> Iterator[openai.OpenAI]:
    """The SDK without retries."""
    with openai.OpenAI(base_url=f"{edge.url}/v1", api_key="any", max_retries=0, timeout=120) as client:
        yield client


def files(reply: object) -> list[bytes]:
    """The images of an answer."""
    return [base64.b64decode(image.b64_json) for image in reply.data]


def test_generate_gives_a_picture_that_says_how_it_was_drawn(api: openai.OpenAI) -> None:
    reply = api.images.generate(prompt=PROMPT, extra_body={"seed": 7, "steps": 2})
    (file,) = files(reply)
    with Image.open(io.BytesIO(file)) as picture:
        assert picture.size == (64, 64)
        assert picture.info["seed"] == "7"
        assert picture.info["bundle"] == reply.gsc["bundle"]
    assert reply.gsc["seeds"] == [7]
    assert reply.gsc["steps"] == 2
    assert reply.gsc["ledger"]["prompt_bytes"] == len(PROMPT)
    assert reply.gsc["ledger"]["image_bytes"] == len(file)
    assert reply.size == "64x64"
    assert reply.usage.total_tokens == reply.usage.input_tokens + reply.usage.output_tokens
    assert reply._request_id


def test_a_seed_is_the_same_bytes_alone_and_among_others(api: openai.OpenAI) -> None:
    """Image i of n is that of seed + i, whatever else is drawn with it."""
    images = api.images
    three = images.generate(prompt=PROMPT, n=3, extra_body={"seed": 5, "steps": 2})
    single = [
        files(images.generate(prompt=PROMPT, extra_body={"seed": 5 + i, "steps": 2}))[0] for i in range(3)
    ]
    assert files(three) == single
    assert len(set(single)) == 3


@pytest.mark.parametrize("form", ["png", "jpeg", "webp"])
def test_every_format_is_what_it_is_called(api: openai.OpenAI, form: str) -> None:
    reply = api.images.generate(prompt=PROMPT, output_format=form, extra_body={"steps": 1})
    with Image.open(io.BytesIO(files(reply)[0])) as picture:
        assert picture.format == form.upper()


def test_a_stream_gives_pictures_on_the_way_and_then_the_image(api: openai.OpenAI) -> None:
    images = api.images
    events = list(images.generate(prompt=PROMPT, stream=True, partial_images=3, extra_body={"steps": 8}))
    kinds = [event.type for event in events]
    assert kinds == ["image_generation.partial_image"] * 3 + ["image_generation.completed"]
    assert [event.partial_image_index for event in events[:3]] == [0, 1, 2]
    assert len({event.b64_json for event in events}) == 4
    whole = images.generate(prompt=PROMPT, extra_body={"steps": 8})
    assert events[-1].b64_json == whole.data[0].b64_json
    assert events[-1].usage.total_tokens > 0


def test_models_and_bundles_name_what_draws(api: openai.OpenAI) -> None:
    names = [model.id for model in api.models.list()]
    assert names[:2] == ["edge", "edge/plain"]
    assert api.models.retrieve(names[2]).id == names[2]
    aligned = api.images.generate(prompt=PROMPT, model=names[2], extra_body={"steps": 2})
    plain = api.images.generate(prompt=PROMPT, model="edge/plain", extra_body={"steps": 2})
    named = api.images.generate(prompt=PROMPT, extra_body={"steps": 2, "bundle": names[2].partition("/")[2]})
    assert aligned.gsc["bundle"] is not None
    assert plain.gsc["bundle"] is None
    assert files(aligned) == files(named) != files(plain)


WRONG = {
    "no prompt": ({"prompt": " "}, "prompt"),
    "long prompt": ({"prompt": "x" * 4001}, "prompt"),
    "too many": ({"n": 11}, "n"),
    "huge n": ({"n": 10**9}, "n"),
    "none": ({"n": 0}, "n"),
    "other size": ({"size": "1000000x1000000"}, "size"),
    "address": ({"response_format": "url"}, "response_format"),
    "seed false": ({"extra_body": {"seed": False}}, "seed"),
    "seed text": ({"extra_body": {"seed": "1"}}, "seed"),
    "seed below 0": ({"extra_body": {"seed": -1}}, "seed"),
    "steps": ({"extra_body": {"steps": 10**6}}, "steps"),
    "bundle path": ({"extra_body": {"bundle": "../etc"}}, "bundle"),
    "unknown field": ({"extra_body": {"_target_": "os.system"}}, "_target_"),
    "n and stream": ({"n": 2, "stream": True}, "n"),
    "partials alone": ({"partial_images": 2}, "partial_images"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_requests_are_bad_requests_that_name_the_field(api: openai.OpenAI, case: str) -> None:
    """Before any memory is taken: 10^9 images or 10^12 pixels are refused in milliseconds."""
    options, field = WRONG[case]
    started = time.perf_counter()
    with pytest.raises(openai.BadRequestError) as refused:
        api.images.generate(**{"prompt": PROMPT, **options})
    assert time.perf_counter() - started < 2
    assert refused.value.param == field
    assert refused.value.code
    assert refused.value.body["message"]


def test_unknown_models_bundles_and_paths_are_not_found(api: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as refused:
        api.images.generate(prompt=PROMPT, model="dall-e-3")
    assert (refused.value.code, refused.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.NotFoundError):
        api.images.generate(prompt=PROMPT, extra_body={"bundle": "0" * 12})
    with pytest.raises(openai.NotFoundError):
        api.models.retrieve("gpt")
    with pytest.raises(openai.NotFoundError):
        api.files.list()


def test_a_large_body_is_413(api: openai.OpenAI) -> None:
    with pytest.raises(openai.APIStatusError) as refused:
        api.images.generate(prompt=PROMPT, extra_body={"user": "x" * 2_000_000})
    assert refused.value.status_code == 413
    assert refused.value.code == "request_too_large"


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[" * 100_000, b'{"prompt": "\\ud800"}', b"9" * 10_000, b"\xff\xfe", b"null", b'"text"'],
    ids=["empty", "cut", "deep", "surrogate", "long number", "bytes", "null", "text"],
)
def test_what_is_no_request_is_400_in_the_envelope(edge: RunningService, body: bytes) -> None:
    headers = {"content-type": "application/json"}
    answer = httpx2.post(f"{edge.url}/v1/images/generations", content=body, headers=headers)
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"


def test_a_full_line_is_429_and_the_client_comes_back_by_itself(api: openai.OpenAI) -> None:
    """Orders for 6 x 10 images meet 16 places: without retries most are refused, with retries all are served."""

    def order(seed: int, retries: int) -> object:
        try:
            return api.with_options(max_retries=retries).images.generate(
                prompt=PROMPT, n=10, extra_body={"seed": seed, "steps": 1}
            )
        except openai.RateLimitError as error:
            return error

    with ThreadPoolExecutor(6) as pool:
        first = list(pool.map(lambda seed: order(seed, 0), range(6)))
        again = list(pool.map(lambda seed: order(seed, 20), range(6)))
    refused = [reply for reply in first if isinstance(reply, openai.RateLimitError)]
    assert refused
    for error in refused:
        assert error.code == "rate_limit_exceeded"
        assert int(error.response.headers["retry-after"]) >= 1
        assert int(error.response.headers["retry-after-ms"]) >= 1
    assert all(len(reply.data) == 10 for reply in again)
    print(f"{len(refused)} of 6 orders refused without retries, 0 of 6 with them")


HUB = """
import json, sys
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError

url, folder, *prompt = sys.argv[1:]
answers = []
for number, (place, options) in enumerate(json.load(sys.stdin)):
    try:
        picture = InferenceClient(model=url + place).text_to_image(" ".join(prompt), **options)
        picture.save(f"{folder}/{number}.png")
        answers.append(picture.info)
    except HfHubHTTPError as error:
        answers.append(str(error))
print(json.dumps(answers))
"""
"""Asks for pictures at these places below an address, with these options; prints what came with each or went wrong."""


def asked_by_hub(edge: RunningService, folder: Path, *orders: tuple[str, dict[str, int]]) -> list[Any]:
    """The answers to Hugging Face's client, in a process where it may call; the edge is all that it calls."""
    done = subprocess.run(
        [sys.executable, "-c", HUB, edge.url, str(folder), PROMPT],
        input=json.dumps(orders),
        env={**os.environ, "HF_HUB_OFFLINE": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answers: list[Any] = json.loads(done.stdout)
    return answers


def test_hugging_faces_client_gets_a_picture(
    edge: RunningService, api: openai.OpenAI, tmp_path: Path
) -> None:
    orders = (
        ("", {"seed": 7, "num_inference_steps": 2}),
        ("/models/edge/plain", {"num_inference_steps": 1}),
    )
    _, named = asked_by_hub(edge, tmp_path, *orders)
    reply = api.images.generate(prompt=PROMPT, extra_body={"seed": 7, "steps": 2})
    with Image.open(tmp_path / "0.png") as picture, Image.open(io.BytesIO(files(reply)[0])) as other:
        assert picture.size == (64, 64)
        assert picture.tobytes() == other.tobytes()
    assert named["bundle"] == "none"


def test_hugging_faces_client_is_told_what_is_wrong(edge: RunningService, tmp_path: Path) -> None:
    orders: tuple[tuple[str, dict[str, int]], ...] = (
        ("", {"width": 512, "height": 512}),
        ("/models/other", {}),
    )
    large, unknown = asked_by_hub(edge, tmp_path, *orders)
    assert "64x64 pixels" in large
    assert "there is no model" in unknown
