"""Deliveries over HTTP: the same symbols and pictures as in Python, and a slider that draws nothing."""

import asyncio
import base64
import hashlib
import io
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch
from fastapi import FastAPI
from PIL import Image
from prometheus_client import CollectorRegistry
from running_service import RunningService

import dekag
from dekag import link
from dekag.serving.cloud.api import ledger_router
from dekag.serving.cloud.database import migrate, open_database
from dekag.serving.cloud.ledger import Ledger
from dekag.serving.edge.requests import ConditionRequest
from dekag.serving.edge.traffic import Reporter, Traffic
from dekag.types import ChannelState, Condition, Received
from dekag.wire.frame import Frame, read_frame
from dekag.wire.png import png_bytes
from dekag.wire.sigmf import read_recording

PROMPT = "a red apple on a blue background"
RAYLEIGH = {"uses": 200, "snr_db": 7.5, "channel": "rayleigh", "blocks": 4, "correlation": 0.5, "pilots": 2}


@pytest.fixture
def client(edge: RunningService) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=edge.url, timeout=120) as client:
        yield client


def deliver(client: httpx2.Client, **asked: Any) -> httpx2.Response:
    return client.post("/v1/deliveries", json={"prompt": PROMPT, "steps": 2, **asked})


def received(frame: Frame) -> Received:
    state = ChannelState(gain=frame.gain, noise_power=frame.noise_power)
    return Received(symbols=frame.symbols, state=state)


def test_a_frame_decodes_to_what_the_edge_says_a_user_sees(client: httpx2.Client) -> None:
    """The same channel seed here, in the frame and at the edge is the same picture."""
    answer = deliver(client, condition=RAYLEIGH, channel_seed=5)
    assert answer.headers["content-type"] == "application/vnd.dekag.wire.frame"
    frame = read_frame(answer.content)
    assert frame.delivery == answer.headers["x-delivery-id"]
    assert frame.bundles["generation"] == answer.headers["x-bundle-generation"]
    assert frame.bundles["transmission"] == answer.headers["x-bundle-transmission"]
    assert (int(frame.condition.uses), float(frame.condition.correlation)) == (200, 0.5)
    system = dekag.load("emoji")
    assert system.link.bundles == frame.bundles
    arrived = link.receive(system.link, received(frame), frame.condition)
    seen = client.post(f"/v1/deliveries/{frame.delivery}/image", json={"channel_seed": 5}).json()
    (png,) = png_bytes(arrived.image)
    assert difference(png, base64.b64decode(seen["b64_json"])) <= 1
    assert seen["condition"]["rayleigh"] is True
    assert seen["ledger"]["channel_uses"] == 200
    assert seen["ledger"]["pilot_uses"] == 8
    assert seen["ledger"]["prompt_bytes"] == len(PROMPT)
    assert seen["ledger"]["image_bytes"] == len(base64.b64decode(seen["drawn_b64_json"]))
    assert 10 < seen["psnr_db"] < 40


def difference(one: bytes, other: bytes) -> int:
    """Largest difference of two PNG files in steps of 8 bits; the batch shapes differ."""
    pictures = [Image.open(io.BytesIO(raw)) for raw in (one, other)]
    left, right = (torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8) for picture in pictures)
    return int((left.int() - right.int()).abs().max())


def test_symbols_as_sent_have_unit_power_and_no_channel(client: httpx2.Client) -> None:
    frame = read_frame(deliver(client, condition={"uses": 128, "snr_db": 3}).content)
    assert frame.gain is None
    assert frame.noise_power is None
    assert float(frame.symbols.abs().square().mean()) == pytest.approx(1, abs=1e-3)


def test_a_recording_holds_the_same_symbols(client: httpx2.Client, tmp_path: Path) -> None:
    frame = read_frame(deliver(client).content)
    answer = deliver(client, format="sigmf")
    assert answer.headers["content-type"] == "application/x-tar"
    with tarfile.open(fileobj=io.BytesIO(answer.content)) as archive:
        archive.extractall(tmp_path, filter="data")
    recording = read_recording(tmp_path / "delivery" / "delivery")
    assert torch.equal(recording.symbols, frame.symbols)
    assert recording.bundles == frame.bundles
    assert deliver(client, format="sigmf", channel_seed=1).status_code == 400


def test_moving_a_slider_draws_nothing_and_more_snr_is_more_psnr(
    edge: RunningService, client: httpx2.Client
) -> None:
    deliver(client)
    drawn, quality = edge.number("dekag_images_drawn_total"), []
    for snr_db in (-5, 5, 15):
        name = deliver(client, condition={"snr_db": snr_db}).headers["x-delivery-id"]
        quality.append(client.post(f"/v1/deliveries/{name}/image", json={}).json()["psnr_db"])
    assert edge.number("dekag_images_drawn_total") == drawn
    assert quality == sorted(quality)


def test_conditions_are_refused_before_anything_is_drawn(edge: RunningService, client: httpx2.Client) -> None:
    drawn = edge.number("dekag_images_drawn_total")
    wrong = [
        ({"uses": 513}, "condition.uses"),
        ({"uses": 0}, "condition.uses"),
        ({"uses": 10**9}, "condition.uses"),
        ({"snr_db": "nan"}, "condition.snr_db"),
        ({"channel": "rician"}, "condition.channel"),
        ({"correlation": 2}, "condition.correlation"),
        ({"channel": "rayleigh", "uses": 8, "blocks": 9}, None),
    ]
    for condition, field in wrong:
        answer = deliver(client, condition=condition, seed=99)
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == field
    nan = b'{"prompt": "x", "condition": {"snr_db": NaN}}'
    headers = {"content-type": "application/json"}
    assert client.post("/v1/deliveries", content=nan, headers=headers).status_code == 400
    assert edge.number("dekag_images_drawn_total") == drawn


def test_deliveries_that_are_gone_or_never_were_are_not_found(client: httpx2.Client) -> None:
    missing = client.post(f"/v1/deliveries/{'0' * 32}/image", json={})
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "delivery_not_found")
    assert client.post("/v1/deliveries/..%2f..%2fetc/image", json={}).status_code in (400, 404)
    assert client.get(f"/v1/decoders/{'0' * 64}.onnx").status_code == 404


@pytest.mark.slow
def test_decoders_are_named_by_their_digest_and_last(client: httpx2.Client) -> None:
    told = client.get("/v1/decoders").json()
    for name in ("codec", "image"):
        file = client.get(told[name]["url"])
        assert len(file.content) == told[name]["bytes"]
        assert hashlib.sha256(file.content).hexdigest() == told[name]["sha256"]
        assert "immutable" in file.headers["cache-control"]
    bundles = {bundle["kind"]: bundle for bundle in client.get("/v1/bundles").json()["bundles"]}
    assert told["transmission"] == bundles["transmission"]["id"]


def test_traffic_is_counted_once_and_reported_once() -> None:
    registry = CollectorRegistry()
    traffic = Traffic(registry)
    traffic.count("a" * 64, images=2, prompt_bytes=30, png_bytes=9000)
    traffic.count("a" * 64, uses=256)
    traffic.count(None, images=1)
    report = traffic.take("edge-1", {"generation": "a" * 64, "transmission": None})
    assert report is not None
    assert {row.bundle: (row.images, row.uses, row.png_bytes) for row in report.rows} == {
        "a" * 64: (2, 256, 9000),
        None: (1, 0, 0),
    }
    assert traffic.take("edge-1", {}) is None
    assert registry.get_sample_value("dekag_edge_uses_total", {"bundle": "a" * 12}) == 256


def test_a_report_reaches_the_cloud_once_whatever_happens_on_the_way(tmp_path: Path) -> None:
    """The cloud fails, then takes a report whose answer is lost, then gets it again: it is in the ledger once."""
    database = open_database(f"sqlite:///{tmp_path}/cloud.db")
    migrate(database)
    cloud, answers = FastAPI(), [503, None, 200]
    cloud.include_router(ledger_router(Ledger(database)))
    traffic = Traffic(CollectorRegistry())
    traffic.count("a" * 64, images=2, uses=256)

    class Unsteady(httpx2.ASGITransport):
        async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
            outcome = answers.pop(0)
            if outcome == 503:
                return httpx2.Response(503, request=request)
            answer = await super().handle_async_request(request)
            if outcome is None:
                raise httpx2.ReadError("the line broke")
            return answer

    async def report_thrice() -> None:
        client = httpx2.AsyncClient(transport=Unsteady(cloud), base_url="http://127.0.0.1")
        reporter = Reporter(client, lambda: traffic.take("edge-1", {"generation": "a" * 64}))
        async with client:
            for _ in range(4):
                await reporter.report()

    asyncio.run(report_thrice())
    (entry,) = Ledger(database).entries()
    database.dispose()
    assert answers == []
    assert (entry.edge, entry.bundle, entry.amounts["images"], entry.amounts["uses"]) == (
        "edge-1",
        "a" * 64,
        2,
        256,
    )


def test_awgn_takes_no_notice_of_fading() -> None:
    plain = ConditionRequest(uses=64, snr_db=3, blocks=4, pilots=1).condition()
    assert (plain.rayleigh.item(), plain.blocks.item(), plain.payload.item()) == (False, 1, 64)
    assert isinstance(plain, Condition)
