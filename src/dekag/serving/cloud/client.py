"""The cloud's jobs from elsewhere: submitting, listing, following and cancelling them."""

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx2

from dekag.errors import InputError
from dekag.serving.cloud.models import FINAL
from dekag.wire.http import client_options, through

SECONDS = 30.0
RETRY_SECONDS = 1.0
PATIENCE_SECONDS = 60.0
"""How long a watcher waits for a cloud that has gone."""


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something that happened to a job."""

    number: int
    kind: str
    data: Mapping[str, Any]


class CloudClient:
    """Speaks to a cloud. Methods raise InputError with what the cloud says, or if it cannot be reached.

    Raises InputError if the environment's proxy for it is no address.
    """

    def __init__(self, url: str, token: str | None = None) -> None:
        headers = {} if token is None else {"authorization": f"Bearer {token}"}
        self._through = through(url)
        self._http = httpx2.Client(**client_options(url), base_url=url, headers=headers, timeout=SECONDS)

    def __enter__(self) -> "CloudClient":
        """The client itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close its connections."""
        self._http.close()

    def submit(self, spec: Mapping[str, Any]) -> dict[str, Any]:
        """Ask for a job; see `JobSpec`."""
        return self._ask("POST", "/v1/jobs", json=spec)

    def jobs(self, limit: int) -> list[dict[str, Any]]:
        """The newest jobs."""
        page: list[dict[str, Any]] = self._ask("GET", "/v1/jobs", params={"limit": limit})["data"]
        return page

    def job(self, job_id: str) -> dict[str, Any]:
        """A job as it is."""
        return self._ask("GET", f"/v1/jobs/{job_id}")

    def cancel(self, job_id: str) -> dict[str, Any]:
        """Cancel a job."""
        return self._ask("DELETE", f"/v1/jobs/{job_id}")

    def events(self, job_id: str) -> Iterator[Event]:
        """What happened to a job and happens, until it ends; a cloud that is started anew is waited for."""
        last, ended, waited = 0, False, 0.0
        while not ended:
            try:
                for event in self._stream(f"/v1/jobs/{job_id}/events", last):
                    last, ended, waited = event.number, event.kind in FINAL, 0.0
                    yield event
            except httpx2.TransportError as error:
                if not last or waited > PATIENCE_SECONDS:
                    raise self._unreachable(error) from None
            if not ended:
                time.sleep(RETRY_SECONDS)
                waited += RETRY_SECONDS

    def _stream(self, path: str, after: int) -> Iterator[Event]:
        """Events after one, until the connection ends."""
        with self._http.stream("GET", path, params={"after": after}) as answer:
            if answer.is_error:
                answer.read()
                raise InputError(self._complaint(answer))
            fields: dict[str, str] = {}
            for line in answer.iter_lines():
                name, _, value = line.partition(": ")
                if line:
                    fields[name] = value
                elif "event" in fields:
                    number, data = int(fields["id"]), json.loads(fields["data"])
                    yield Event(number=number, kind=fields["event"], data=data)
                    fields = {}

    def _ask(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        try:
            answer = self._http.request(method, path, **options)
        except httpx2.TransportError as error:
            raise self._unreachable(error) from None
        if answer.is_error:
            raise InputError(self._complaint(answer))
        body: dict[str, Any] = answer.json()
        return body

    def _unreachable(self, error: Exception) -> InputError:
        return InputError(f"the cloud at {self._http.base_url} cannot be reached{self._through}: {error}")

    def _complaint(self, answer: httpx2.Response) -> str:
        """What an error says, or its status if it is none of the cloud's."""
        try:
            return f"the cloud refuses: {answer.json()['error']['message']}"
        except (ValueError, KeyError, TypeError):
            return f"the cloud answers with status {answer.status_code}{self._through}"


def read_spec(path: Path) -> dict[str, Any]:
    """The numbers of a job from a file; InputError if it is no JSON object."""
    try:
        spec = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(spec, dict):
        raise InputError(f'{path} must hold a JSON object, as {{"steps": 200}}')
    return spec
