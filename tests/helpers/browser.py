"""Pages of a headless Chromium that are watched."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

CHROMIUM = shutil.which("chromium")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
WAIT_MS = 60_000


@contextmanager
def browser() -> Iterator[Browser]:
    """Debian's Chromium, which is not one of the packages that pip can bring."""
    if CHROMIUM is None:
        pytest.skip("there is no chromium here: apt-get install chromium")
    expect.set_options(timeout=WAIT_MS)
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


@dataclass(kw_only=True)
class Watched:
    """A page, what its console said, and what it asked for."""

    page: Page
    said: list[str] = field(default_factory=list)
    asked: list[tuple[str, str]] = field(default_factory=list)

    def paths(self) -> list[str]:
        """Paths of the calls so far, without those of the page's own files."""
        found = [urlsplit(url).path for _, url in self.asked]
        return [path for path in found if path.startswith("/v1/")]

    def hosts(self) -> set[str]:
        """Hosts of everything that was asked for over the network."""
        parts = [urlsplit(url) for _, url in self.asked]
        return {part.hostname or "" for part in parts if part.scheme not in {"blob", "data"}}

    def errors(self, *, but: str = "") -> list[str]:
        """What the console said that is wrong, without what holds a text."""
        return [text for text in self.said if not (but and but in text)]


@contextmanager
def watched(chromium: Browser, **options: Any) -> Iterator[Watched]:
    """A new page in a profile of its own."""
    with chromium.new_context(**options) as context:
        page = context.new_page()
        page.set_default_timeout(WAIT_MS)
        found = Watched(page=page)
        page.on("console", lambda m: found.said.append(f"{m.type}: {m.text}") if m.type != "log" else None)
        page.on("pageerror", lambda error: found.said.append(f"exception: {error}"))
        page.on("request", lambda request: found.asked.append((request.method, request.url)))
        yield found
