"""The page in a real Chromium against a real edge: pictures, sliders, waits, tokens, and numbers equal to Python's."""

import base64
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch
from browser import Watched, browser, watched
from nginx import reverse_proxy
from PIL import Image
from playwright.sync_api import Browser, Page, expect
from running_service import free_port, run_command

import dekag
from dekag import link
from dekag.registry import Repository
from dekag.serving import up
from dekag.types import ChannelState, Received
from dekag.wire.frame import read_frame

PROMPT = "a cat face on a pink background"
MOST_SHOT_BYTES = 200_000


@dataclass(frozen=True, kw_only=True)
class Services:
    """Where they are; no cloud has the page say so."""

    edge: str
    cloud: str | None = None


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser() as found:
        yield found


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, decoders: Path) -> Iterator[Services]:
    """An edge without a cloud that keeps ten pictures waiting at most, its decoders made."""
    folder, port = tmp_path_factory.mktemp("page"), free_port()
    (folder / "edge").mkdir()
    (folder / "edge" / "decoders").symlink_to(decoders)
    words = ["-m", "dekag", "serve", "edge", "--folder", str(folder / "edge"), "--port", str(port)]
    url = f"http://127.0.0.1:{port}"
    with run_command(words, folder / "log", port, {"DEKAG_EDGE_QUEUE": "10"}):
        assert httpx2.get(f"{url}/v1/decoders", timeout=120).status_code == 200
        yield Services(edge=url)


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    """What `dekag up` starts."""
    site = up.Site(folder=tmp_path_factory.mktemp("up"), port=free_port(), cloud_port=free_port())
    up.prepare(site)
    with up.running(site):
        yield Services(edge=site.edge_url, cloud=site.cloud_url)


def psnr(page: Page) -> float:
    """What the received tile says, once it says something."""
    page.locator("#psnr").filter(has_text="dB").wait_for()
    return float(page.inner_text("#psnr").removeprefix("PSNR ").removesuffix(" dB"))


def tile(page: Page, name: str) -> str:
    """The pixels that a tile shows."""
    shown = page.evaluate("name => document.querySelector(`#${name} canvas`).toDataURL()", name)
    assert isinstance(shown, str)
    return shown


def draw(page: Page, prompt: str) -> float:
    page.get_by_label("What to draw").fill(prompt)
    page.get_by_role("button", name="Draw", exact=True).click()
    expect(page.locator("#draw[data-busy]")).to_have_count(1)
    expect(page.locator("#draw[data-busy]")).to_have_count(0)
    return psnr(page)


def changed(page: Page, before: float) -> float:
    """The received tile's PSNR when it is another than before."""
    expect(page.locator("#psnr")).not_to_have_text(f"PSNR {before:.1f} dB")
    return psnr(page)


def tour(seen: Watched, services: Services) -> None:
    """A prompt becomes pictures, and the controls change what arrives and nothing else."""
    page = seen.page
    page.goto(services.edge)
    psnr(page)
    nominal = draw(page, PROMPT)
    names = ["plain", "edge", "received", *(["cloud"] if services.cloud else [])]
    shown = {name: tile(page, name) for name in names}
    assert len(set(shown.values())) == len(names)
    assert "pink background" in str(page.locator("#received canvas").get_attribute("aria-label"))
    calls = len(seen.paths())

    page.get_by_label("Signal to noise").press("Home")
    low = changed(page, nominal)
    page.get_by_label("Signal to noise").press("End")
    high = changed(page, low)
    page.get_by_label("Channel uses").press("Home")
    short = changed(page, high)
    print(
        f"PSNR at 256 uses: {low} dB at -5 dB, {nominal} dB at 10 dB, {high} dB at 20 dB; 64 uses: {short} dB"
    )
    assert low < nominal < high
    assert short < high
    assert tile(page, "received") != shown["received"]
    assert all(tile(page, name) == shown[name] for name in names if name != "received")
    assert set(seen.paths()[calls:]) == {"/v1/deliveries"}, "a slider asks for a frame alone"
    assert page.inner_text("#air-uses") == "64 uses"

    page.get_by_label("4 blocks").check()
    faded = changed(page, short)
    page.get_by_role("button", name="Send again through other noise").click()
    changed(page, faded)
    page.locator("#history button").nth(1).click()
    expect(page.get_by_label("What to draw")).not_to_have_value(PROMPT)
    assert tile(page, "edge") != shown["edge"]
    page.locator("#history button").nth(0).click()
    assert all(tile(page, name) == shown[name] for name in names if name != "received")


def assert_well_behaved(seen: Watched) -> None:
    assert seen.errors() == []
    assert seen.hosts() == {"127.0.0.1"}
    print(f"{len(seen.asked)} requests, all to this host; nothing in the console")


def test_a_prompt_becomes_pictures_and_sliders_change_what_arrives(
    alone: Services, chromium: Browser
) -> None:
    """Nothing in the console, and no request leaves the host."""
    with watched(chromium) as seen:
        tour(seen, alone)
        expect(seen.page.locator("#cloud .note")).to_have_text("no cloud is configured")
        assert_well_behaved(seen)


@pytest.mark.slow
def test_the_same_against_all_of_dekag_up(together: Services, chromium: Browser) -> None:
    """With the cloud's reference beside it, from another origin."""
    with watched(chromium) as seen:
        tour(seen, together)
        assert_well_behaved(seen)


CONDITIONS: list[dict[str, Any]] = [
    {"uses": 256, "snr_db": 10.0},
    {"uses": 97, "snr_db": -3.5, "channel": "rayleigh", "blocks": 4, "pilots": 2, "correlation": 0.5},
    {"uses": 512, "snr_db": 20.0, "channel": "rayleigh", "blocks": 512},
    {"uses": 64, "snr_db": 0.0, "channel": "rayleigh"},
]
DECODE = """async (base64) => {
  const { readFrame } = await import("/page/frame.js");
  const { decode } = await import("/page/decoder.js");
  const raw = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
  return [...(await decode(readFrame(raw.buffer))).pixels];
}"""
PSNR = """async ([base64, pixels]) => {
  const { fromPng, psnrDb } = await import("/page/picture.js");
  return psnrDb((await fromPng(base64)).pixels, pixels);
}"""


def test_the_page_decodes_what_python_decodes(alone: Services, chromium: Browser) -> None:
    """Pictures within 1e-3 of PyTorch's, PSNR within 0.1 dB of the edge's, over rates, fading and pilots."""
    system = dekag.load().link
    worst, worst_db = 0.0, 0.0
    with watched(chromium) as seen, httpx2.Client(base_url=alone.edge, timeout=60) as client:
        seen.page.goto(alone.edge)
        psnr(seen.page)
        for seed, condition in enumerate(CONDITIONS):
            asked = {"prompt": PROMPT, "seed": 1, "condition": condition, "channel_seed": seed}
            answer = client.post("/v1/deliveries", json=asked)
            frame = read_frame(answer.content)
            assert frame.gain is not None
            assert frame.noise_power is not None
            state = ChannelState(gain=frame.gain, noise_power=frame.noise_power)
            image = link.receive(system, Received(symbols=frame.symbols, state=state), frame.condition).image
            pixels = seen.page.evaluate(DECODE, base64.b64encode(answer.content).decode())
            worst = max(worst, float((torch.tensor(pixels) - image.flatten()).abs().max()))
            told = client.post(
                f"/v1/deliveries/{answer.headers['x-delivery-id']}/image", json={"channel_seed": seed}
            ).json()
            page_db = seen.page.evaluate(PSNR, [told["drawn_b64_json"], pixels])
            worst_db = max(worst_db, abs(page_db - told["psnr_db"]))
        assert seen.errors() == []
    print(f"page against PyTorch: pictures within {worst:.1e}, PSNR within {worst_db:.3f} dB")
    assert worst < 1e-3
    assert worst_db < 0.1


@pytest.mark.slow
def test_a_busy_edge_is_waited_for(alone: Services, chromium: Browser) -> None:
    """429 is a banner in plain words, and the picture comes by itself once there is room."""
    with watched(chromium) as seen, httpx2.Client(timeout=120) as client:
        page = seen.page
        page.goto(alone.edge)
        psnr(page)
        url, order = f"{alone.edge}/v1/images/generations", {"prompt": "a red apple", "n": 10, "steps": 20}
        enough = threading.Event()

        def crowd() -> None:
            while not enough.is_set():
                client.post(url, json=order)

        flood = threading.Thread(target=crowd)
        flood.start()
        while httpx2.post(url, json={"prompt": "a red apple"}, timeout=60).status_code != 429:
            pass
        page.get_by_label("What to draw").fill(PROMPT)
        page.get_by_role("button", name="Draw", exact=True).click()
        expect(page.get_by_role("alert")).to_contain_text("The edge is busy. Trying again in")
        enough.set()
        flood.join()
        expect(page.locator("#draw[data-busy]")).to_have_count(0)
        assert psnr(page) > 15
        expect(page.locator("#banner")).to_be_hidden()
        assert seen.errors(but="429") == []


CONTRAST = """() => {
  const luminance = (colour) => {
    const [red, green, blue] = colour.match(/[\\d.]+/g).slice(0, 3).map((part) => {
      const value = part / 255;
      return value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
  };
  const ground = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const colour = getComputedStyle(at).backgroundColor;
      if (!/, 0\\)$/.test(colour) && colour !== "transparent") return colour;
    }
    return "rgb(255, 255, 255)";
  };
  const texts = [...document.querySelectorAll("main *, header *")].filter((element) =>
    element.checkVisibility() && [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim()));
  return texts.map((element) => {
    const [one, other] = [getComputedStyle(element).color, ground(element)].map(luminance).sort((a, b) => b - a);
    return [element.outerHTML.slice(0, 80), (one + 0.05) / (other + 0.05)];
  });
}"""
FOCUSED = """() => {
  const element = document.activeElement;
  const shown = element.type === "radio" ? element.nextElementSibling : element;
  const name = element.labels?.[0]?.textContent ?? element.textContent;
  return { id: element.id || element.name || element.className, name: name.trim(),
           ring: getComputedStyle(shown).outlineStyle, tag: element.tagName };
}"""


def test_a_phone_and_a_keyboard_are_enough(alone: Services, chromium: Browser) -> None:
    """390 px without scrolling sideways; every control in reach of Tab with a name and a ring; contrast AA."""
    phone = {"viewport": {"width": 390, "height": 844}, "reduced_motion": "reduce"}
    with watched(chromium, **phone) as seen:
        page = seen.page
        page.goto(alone.edge)
        psnr(page)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        page.get_by_label("What to draw").focus()
        met = []
        for _ in range(16):
            met.append(page.evaluate(FOCUSED))
            page.keyboard.press("Tab")
        reached = [stop for stop in met if stop["tag"] in {"INPUT", "BUTTON"}]
        order = [stop["id"] for stop in reached if stop["id"]]
        assert order[:3] == ["prompt", "seed", "draw"]
        assert [name for name in order if name in {"snr", "uses", "fading", "noise"}] == [
            "snr",
            "uses",
            "fading",
            "noise",
        ]
        assert all(stop["name"] and stop["ring"] != "none" for stop in reached)
        motion = "getComputedStyle(document.querySelector('#plain'), '::after').animationName"
        page.evaluate("document.querySelector('#plain').dataset.busy = ''")
        assert page.evaluate(motion) == "none"
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
            text, least = min(page.evaluate(CONTRAST), key=lambda pair: pair[1])
            print(f"{scheme}: least contrast {least:.2f}")
            assert least >= 4.5, text
        assert seen.errors() == []


GUARDED = """
import sys
from contextlib import asynccontextmanager
from dekag.serving.http.app import create_app
from dekag.serving.http.server import serve
from dekag.serving.http.settings import ServiceSettings
from dekag.serving.page import PUBLIC, PageConfig, page_router
@asynccontextmanager
async def lifespan(app):
    yield
settings = ServiceSettings(port=int(sys.argv[1]), tokens=["right"])
app = create_app(title="page", settings=settings, lifespan=lifespan, ready=lambda: None, public=PUBLIC)
app.include_router(page_router(PageConfig(world="emoji")))
serve(app, settings)
"""


def test_a_token_is_asked_for_and_a_silent_edge_is_said(chromium: Browser, tmp_path: Path) -> None:
    """A wrong token is asked for again; the right one goes with every call; then the service dies."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with watched(chromium) as seen:
        page, alert = seen.page, seen.page.get_by_role("alert")
        with run_command(["-c", GUARDED, str(port)], tmp_path / "log", port, {}):
            page.goto(url)
            for token, asked in (("wrong", "wants a token."), ("right", "wants another token: that one")):
                expect(alert).to_contain_text(f"The edge {asked}")
                page.get_by_label("Token").fill(token)
                page.get_by_role("button", name="Use it").click()
            # this service has nothing but the page: the next answer is that there is no such route
            expect(alert).to_contain_text("The edge refuses")
            assert page.locator("#token").input_value() == ""
        page.get_by_role("button", name="Try again").click()
        expect(alert).to_contain_text("The edge does not answer")
        assert not [text for text in seen.said if "exception" in text]


@contextmanager
def without_registry(folder: Path, **settings: str) -> Iterator[str]:
    """An edge whose registry is gone, so that nothing is on its shelf; its address once it answers."""
    root = Repository.init(str(folder / "registry"), folder / "keys").root
    (folder / "root.json").write_bytes(root)
    port = free_port()
    words = ["-m", "dekag", "serve", "edge", "--folder", str(folder / "edge"), "--port", str(port)]
    words += ["--registry", str(folder / "nowhere"), "--root", str(folder / "root.json")]
    with run_command(words, folder / "log", port, settings, probe="/healthz") as service:
        yield service.url


@pytest.mark.slow
def test_a_page_says_over_the_picture_that_it_is_not_aligned(chromium: Browser, tmp_path: Path) -> None:
    with without_registry(tmp_path, DEKAG_EDGE_ALLOW_UNALIGNED="true") as url, watched(chromium) as seen:
        seen.page.goto(url)
        psnr(seen.page)
        expect(seen.page.locator("#edge b")).to_have_text("Edge, not aligned")
        expect(seen.page.locator("#edge .note")).to_contain_text("the registry was not read")
        assert "Edge, aligned" not in seen.page.inner_text("body")
        seen.page.screenshot(path=tmp_path / "unaligned.png", full_page=True)
        assert seen.errors() == []


@pytest.mark.slow
def test_a_page_of_an_edge_that_is_not_ready_says_why(chromium: Browser, tmp_path: Path) -> None:
    """Its own model alone draws; over the other tiles stands nothing that would need an update."""
    with without_registry(tmp_path) as url, watched(chromium) as seen:
        seen.page.goto(url)
        alert = seen.page.get_by_role("alert")
        expect(alert).to_contain_text("The edge draws nothing: it is not aligned: the registry was not read")
        expect(seen.page.locator("#plain[data-blank]")).to_have_count(0)
        expect(seen.page.locator("#edge b")).to_have_text("Edge")
        assert "Edge, aligned" not in seen.page.inner_text("body")
        assert seen.errors(but="503") == []


@pytest.mark.slow
def test_a_page_below_a_prefix(alone: Services, chromium: Browser, tmp_path: Path) -> None:
    """A proxy that takes the prefix away: every address of the page is relative."""
    with (
        reverse_proxy([alone.edge], tmp_path / "nginx", prefix="/some/where/") as url,
        watched(chromium) as seen,
    ):
        seen.page.goto(f"{url}/some/where/")
        psnr(seen.page)
        assert draw(seen.page, PROMPT) > 15
        assert_well_behaved(seen)


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_screenshots_are_small(
    width: int,
    scheme: str,
    together: Services,
    chromium: Browser,
    tmp_path: Path,
) -> None:
    """What docs/ shows: `--basetemp=FOLDER` keeps them to look at."""
    look = {"viewport": {"width": width, "height": 800}, "color_scheme": scheme}
    with watched(chromium, **look) as seen:
        page = seen.page
        page.goto(together.edge)
        psnr(page)
        draw(page, "a lion on a green background")
        path = tmp_path / f"page-{width}-{scheme}.png"
        page.mouse.move(0, 0)
        page.screenshot(path=path, full_page=True)
        # one of 256 colours with dither is a third of the size
        with Image.open(path) as shot:
            colours = shot.convert("RGB")
        palette = colours.quantize(256, method=Image.Quantize.MEDIANCUT)
        colours.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG).save(path, optimize=True)
        print(f"{path}: {path.stat().st_size} bytes")
        assert path.stat().st_size < MOST_SHOT_BYTES
        assert seen.errors() == []
