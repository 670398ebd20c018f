"""What the edge sends and what that saves: counted for Prometheus, and reported to the cloud."""

import asyncio
import logging
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable

import httpx2
import prometheus_client
from pydantic import SecretStr

from dekag.serving.http.logs import facts
from dekag.serving.traffic import TrafficReport, TrafficRow
from dekag.wire.http import client_options, through

log = logging.getLogger("dekag.serving")
MOST_REPORTS = 1440
"""That wait for the cloud; older ones are dropped."""


class Traffic:
    """Sums by bundle since the last report."""

    def __init__(self, registry: prometheus_client.CollectorRegistry) -> None:
        self._sums: dict[str | None, Counter[str]] = {}
        texts = {
            "images": "Images sent to clients.",
            "prompt_bytes": "Bytes of the prompts that came in.",
            "uses": "Channel uses of the deliveries.",
            "png_bytes": "Bytes that the pictures themselves are.",
        }
        self._counters = {
            name: prometheus_client.Counter(f"dekag_edge_{name}", text, ["bundle"], registry=registry)
            for name, text in texts.items()
        }

    def count(self, bundle: str | None, **amounts: int) -> None:
        """Add amounts, named as the fields of `TrafficRow`."""
        self._sums.setdefault(bundle, Counter()).update(amounts)
        for name, amount in amounts.items():
            self._counters[name].labels((bundle or "none")[:12]).inc(amount)

    def take(self, edge: str, active: dict[str, str | None]) -> TrafficReport | None:
        """A report of the sums, which start anew; None if there is nothing to tell."""
        rows = [TrafficRow(bundle=bundle, **sums) for bundle, sums in self._sums.items()]
        self._sums = {}
        if not rows:
            return None
        return TrafficReport(
            report=uuid.uuid4().hex, edge=edge, ended=int(time.time()), active=active, rows=rows[:1000]
        )


class Reporter:
    """Reports to the cloud; a report that did not arrive is sent again, and counts once there.

    client: of the cloud; it is closed at the end. take: gives what there is to report.
    """

    def __init__(self, client: httpx2.AsyncClient, take: Callable[[], TrafficReport | None]) -> None:
        self._client = client
        self._take = take
        self._waiting: deque[TrafficReport] = deque(maxlen=MOST_REPORTS)

    async def follow(self, seconds: float) -> None:
        """Report for ever, with so long a wait between two reports."""
        async with self._client:
            while True:
                await asyncio.sleep(seconds)
                await self.report()

    async def report(self) -> None:
        """Send what has come together; what cannot be sent waits for the next time."""
        if (report := self._take()) is not None:
            self._waiting.append(report)
        while self._waiting:
            try:
                answer = await self._client.post("/v1/ledger", json=self._waiting[0].model_dump())
                answer.raise_for_status()
            except httpx2.HTTPError as error:
                way = through(str(self._client.base_url))
                why = str(error).partition("\n")[0] or type(error).__name__
                log.warning("the cloud did not take the report; it waits", extra=facts(why=f"{why}{way}"))
                return
            self._waiting.popleft()


def cloud_client(url: str, token: SecretStr | None) -> httpx2.AsyncClient:
    """A client of the cloud. Raises InputError if the environment's proxy for it is no address."""
    headers = {} if token is None else {"authorization": f"Bearer {token.get_secret_value()}"}
    return httpx2.AsyncClient(**client_options(url), base_url=url, headers=headers, timeout=10.0)
