"""A server of OpenAI's Images API on this machine, which may be told to fail, or to behave as real ones do."""

import base64
import hashlib
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from typing import Any

import torch
from PIL import Image
from server_thread import listening

KEY = "sk-test-0123456789abcdef"
MODEL = "painter"
Answer = tuple[int, dict[str, str], bytes]
DROPPED: Answer = (0, {}, b"")
"""No answer: the connection is closed."""
BEHAVIOURS = (
    "no response_format",
    "no seed",
    "no size",
    "urls",
    "moderation",
    "429 with Retry-After",
    "429 without",
    "HTML",
    "dropped connections",
    "wrong size",
)
HTML: Answer = (200, {"content-type": "text/html"}, b"<html><body>Please log in</body></html>")


def colour(prompt: str, seed: int | None) -> tuple[int, int, int]:
    red, green, blue = hashlib.sha256(f"{prompt} {seed}".encode()).digest()[:3]
    return red, green, blue


def expected(prompts: Sequence[str], seeds: Sequence[int | None], side: int = 16) -> torch.Tensor:
    values = torch.tensor([colour(p, s) for p, s in zip(prompts, seeds, strict=True)]) / 255
    return values[:, :, None, None].expand(-1, -1, side, side)


def as_json(status: int, value: object, **headers: str) -> Answer:
    return status, {"content-type": "application/json", **headers}, json.dumps(value).encode()


def fault(
    status: int, message: str, code: str | None = None, param: str | None = None, **headers: str
) -> Answer:
    error = {"message": message, "code": code, "type": "error", "param": param}
    return as_json(status, {"error": error}, **headers)


def png(prompt: str, seed: int | None, size: tuple[int, int]) -> bytes:
    """A PNG whose colour says which prompt and which seed it was drawn for."""
    buffer = BytesIO()
    Image.new("RGB", size, colour(prompt, seed)).save(buffer, format="PNG")
    return buffer.getvalue()


def drawing(request: dict[str, Any], side: int | None = None) -> Answer:
    width, height = (int(part) for part in request["size"].split("x"))
    file = png(request["prompt"], request.get("seed"), (side or width, height))
    return as_json(200, {"created": 1, "data": [{"b64_json": base64.b64encode(file).decode()}]})


@dataclass(kw_only=True)
class Server:
    """What the server was asked, and what it is told to do.

    faults: given instead of a drawing, one a call, until none is left. answer: makes every other answer. files: by the
    path that serves them.
    """

    url: str = ""
    key: str = KEY
    requests: list[dict[str, Any]] = field(default_factory=list)
    drawn: int = 0
    faults: list[Answer] = field(default_factory=list)
    answer: Callable[[dict[str, Any]], Answer] = drawing
    delay_s: Callable[[dict[str, Any]], float] = lambda request: 0.0
    files: dict[str, Answer] = field(default_factory=dict)
    busy: int = 0
    busiest: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def respond(self, path: str, authorization: str | None, request: dict[str, Any]) -> Answer:
        with self.lock:
            self.requests.append(request)
            self.busy += 1
            self.busiest = max(self.busiest, self.busy)
            planned = self.faults.pop(0) if self.faults else None
        try:
            time.sleep(self.delay_s(request))
            if authorization != f"Bearer {self.key}":
                return fault(401, f"Incorrect API key provided: {authorization}", "invalid_api_key")
            if path != "/v1/images/generations" or request["model"] != MODEL:
                return fault(404, f"The model {request['model']} does not exist", "model_not_found")
            answer = planned or self.answer(request)
            with self.lock:
                self.drawn += answer[0] == 200
            return answer
        finally:
            with self.lock:
                self.busy -= 1


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: "_Listener"

    def do_POST(self) -> None:
        """An order."""
        state = self.server.state
        body = self.rfile.read(length := int(self.headers["content-length"]))
        if len(body) < length:  # whoever asked was killed
            self.close_connection = True
            return
        request = json.loads(body)
        if "idempotency-key" in self.headers and isinstance(state.answer, RealServer):
            request = {**request, IDEMPOTENCY: self.headers["idempotency-key"]}
        self.say(state.respond(self.path, self.headers["authorization"], request))

    def do_GET(self) -> None:
        """A file, for which nobody needs to show a key."""
        assert self.headers["authorization"] is None
        self.say(self.server.state.files.get(self.path, fault(404, "no such file")))

    def say(self, answer: Answer) -> None:
        """Send an answer, or close the connection."""
        status, headers, body = answer
        if answer == DROPPED:
            self.close_connection = True
            return
        try:
            self.send_response(status)
            for name, value in {**headers, "content-length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)
        except ConnectionError:
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Nothing."""


class _Listener(ThreadingHTTPServer):
    def __init__(self, state: Server) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.state = state

    def handle_error(self, *_: object) -> None:
        """Whoever asked is gone."""


@contextmanager
def serving(state: Server) -> Iterator[Server]:
    """The server, listening; its `url` is set."""
    http = _Listener(state)
    with listening(http):
        state.url = f"http://127.0.0.1:{http.server_port}/v1"
        yield state


IDEMPOTENCY = "Idempotency-Key"


@dataclass(kw_only=True)
class RealServer:
    """Answers as real servers do, by the names in `behaviours`; counts what it charges for.

    keeps_keys: whether an order that comes again with the same Idempotency-Key is neither drawn nor charged again.
    charged: pictures by prompt. before: called with the number of each request, before anything is drawn; returns
    whether whoever asked is gone, for whom nothing is drawn.
    """

    state: Server
    behaviours: frozenset[str] = frozenset()
    keeps_keys: bool = False
    rng: random.Random = field(default_factory=random.Random)
    charged: Counter[str] = field(default_factory=Counter)
    known: dict[str, Answer] = field(default_factory=dict)
    before: Callable[[int], bool] = lambda number: False
    lock: threading.Lock = field(default_factory=threading.Lock)
    count: int = 0

    def __call__(self, request: dict[str, Any]) -> Answer:
        with self.lock:
            self.count += 1
            number, chance, late = self.count, self.rng.random(), self.rng.random() < 0.5
        if self.before(number):
            return DROPPED
        if (refused := self._refused(request)) is not None:
            return refused
        if (failed := self._failed(chance)) is not None:
            if not (failed == DROPPED and late and self.keeps_keys):
                return failed
            self._drawn(request)  # and lost on its way
            return failed
        return self._drawn(request)

    def _refused(self, request: dict[str, Any]) -> Answer | None:
        for name in ("response_format", "seed", "size"):
            if f"no {name}" in self.behaviours and name in request:
                return fault(400, f"Unknown parameter: '{name}'.", "unknown_parameter", name)
        if "moderation" in self.behaviours and "blood" in request["prompt"]:
            return fault(400, "Your request was rejected by the safety system.", "moderation_blocked")
        return None

    def _failed(self, chance: float) -> Answer | None:
        rare = {
            "429 with Retry-After": fault(429, "slow down", **{"retry-after-ms": "5"}),
            "429 without": fault(429, "slow down"),
            "HTML": HTML,
            "dropped connections": DROPPED,
        }
        for number, (name, answer) in enumerate(rare.items()):
            if name in self.behaviours and 0.05 * number <= chance < 0.05 * (number + 1):
                return answer
        return None

    def _drawn(self, request: dict[str, Any]) -> Answer:
        key = request.get(IDEMPOTENCY, "")
        with self.lock:
            if self.keeps_keys and key in self.known:
                return self.known[key]
            self.charged[request["prompt"]] += 1
            width, height = (int(part) for part in request.get("size", "20x12").split("x"))
            size = (24, 24) if "wrong size" in self.behaviours else (width, height)
            file = png(request["prompt"], None, size)
            if "urls" in self.behaviours:
                path = f"/files/{len(self.state.files)}.png"
                self.state.files[path] = (200, {"content-type": "image/png"}, file)
                image = {"url": self.state.url.removesuffix("/v1") + path}
            else:
                image = {"b64_json": base64.b64encode(file).decode()}
            self.known[key] = as_json(200, {"created": 1, "data": [image]})
            return self.known[key]
