"""A cloud that one can only call: images from an endpoint that speaks OpenAI's Images API."""

import base64
import hashlib
import json
import os
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Event, Lock
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import torch
from PIL.Image import Image as Picture

from dekag.data.folder import INDEX, open_picture, picture_tensor, read_folder
from dekag.types import Image, InputError
from dekag.wire.files import replacing, write_json
from dekag.wire.http import client_options, through

if TYPE_CHECKING:
    from openai import APIError, OpenAI

_REFUSALS = frozenset(
    {"content_policy_violation", "content_filter", "contentFilter", "moderation_blocked", "safety_violation"}
)
"""Codes with which servers refuse a prompt for what it says."""


@dataclass(frozen=True, kw_only=True)
class Order:
    """What an endpoint is asked for; two equal orders are the same image."""

    prompt: str
    seed: int
    model: str
    size: str


@dataclass(frozen=True, kw_only=True)
class ImageEndpoint:
    """A model behind POST {base_url}/images/generations, called with the `openai` client.

    base_url: address up to the version, as https://api.openai.com/v1 or http://localhost:8000/v1.
    model: name by which the server knows it.
    api_key_env: environment variable with the key; a server without keys takes any text.
    size: WIDTHxHEIGHT in pixels; another size in the answer is an error.
    send_seed: pass the seed along. It is no part of OpenAI's API: vLLM-Omni and SGLang take it, many servers
        ignore it, some refuse it. Without it, or where it is ignored, equal seeds give different images.
    send_format: ask for `b64_json`, which the gpt-image models give unasked and refuse to be asked for.
    concurrency: largest number of calls at a time; each draws one image.
    retries: further calls after 408, 409, 429, 5xx, a broken connection or a timeout. Waits as long as the
        server's Retry-After says, up to two minutes, else 0.5 s, doubled each time, up to 8 s.
    timeout_s: seconds to wait for an answer.

    Raises InputError if a field is out of range.
    """

    base_url: str
    model: str
    api_key_env: str = "OPENAI_API_KEY"
    size: str = "512x512"
    send_seed: bool = True
    send_format: bool = True
    concurrency: int = 4
    retries: int = 5
    timeout_s: float = 120.0

    def __post_init__(self) -> None:
        address = urlsplit(self.base_url)
        if address.scheme not in {"http", "https"} or not address.hostname:
            raise InputError("base_url must be an address such as http://localhost:8000/v1")
        if address.username or address.password or address.query or address.fragment:
            raise InputError("base_url must be a bare address; a key belongs in an environment variable")
        if not self.model:
            raise InputError("model must be the name of a model that the endpoint knows")
        if not re.fullmatch(r"[A-Za-z_]\w*", self.api_key_env, re.ASCII):
            raise InputError("api_key_env must be the name of an environment variable, not the key itself")
        if not re.fullmatch(r"[1-9]\d{0,4}x[1-9]\d{0,4}", self.size, re.ASCII):
            raise InputError(f"size must be WIDTHxHEIGHT in pixels, as 512x512, got {self.size!r}")
        if self.concurrency < 1 or self.retries < 0 or not self.timeout_s > 0:
            raise InputError("concurrency must be at least 1, retries at least 0 and timeout_s positive")

    @property
    def width_height(self) -> tuple[int, int]:
        """`size` in numbers."""
        width, height = self.size.split("x")
        return int(width), int(height)

    def draw(self, prompts: Sequence[str], *, seeds: Sequence[int]) -> Image:
        """One image for each prompt and its seed, in their order; nothing is kept if one cannot be had.

        Raises InputError that names the first prompt, counted from 1, that could not be drawn and says why.
        """
        orders = self._orders(prompts, seeds)
        width, height = self.width_height
        images = torch.empty(len(orders), 3, height, width)

        def keep(number: int, picture: Picture) -> None:
            images[number] = picture_tensor(picture)

        self._fill(orders, range(len(orders)), keep)
        return images

    def _orders(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[Order]:
        if not prompts or len(prompts) != len(seeds):
            raise InputError(f"each prompt needs one seed, got {len(prompts)} prompts, {len(seeds)} seeds")
        if empty := [number for number, prompt in enumerate(prompts, 1) if not prompt.strip()]:
            raise InputError(f"prompt {empty[0]} is empty; say what to draw")
        if min(seeds) < 0:
            raise InputError(f"seeds must not be negative, got {min(seeds)}")
        return [
            Order(prompt=prompt, seed=seed, model=self.model, size=self.size)
            for prompt, seed in zip(prompts, seeds, strict=True)
        ]

    def _fill(
        self, orders: Sequence[Order], missing: Sequence[int], keep: Callable[[int, Picture], None]
    ) -> None:
        """Draw the missing ones and hand each to `keep`, one at a time, as it arrives.

        After a failure or an interruption no call is begun, but those under way, which are paid for, are kept.
        """
        key = self._key()
        stopped, lock = Event(), Lock()

        def work(number: int) -> None:
            if stopped.is_set():
                return
            try:
                picture = self._call(client, key, number + 1, orders[number])
                with lock:
                    keep(number, picture)
            except BaseException:
                stopped.set()
                raise

        with self._client(key) as client, ThreadPoolExecutor(self.concurrency) as pool:
            try:
                for call in [pool.submit(work, number) for number in missing]:
                    call.result()
            finally:
                stopped.set()

    def _call(self, client: "OpenAI", key: str, number: int, order: Order) -> Picture:
        """One image. The server's words are shown without the key, and its error is not chained."""
        import openai

        where = f"prompt {number} ({_plain(order.prompt, 60)!r})"
        try:
            reply = client.images.generate(
                model=order.model,
                prompt=order.prompt,
                n=1,
                size=order.size,
                response_format="b64_json" if self.send_format else openai.omit,
                extra_body={"seed": order.seed} if self.send_seed else None,
            )
            picture = open_picture(_payload(reply))
        except openai.APIError as error:
            raise InputError(f"{where}: {self._complaint(error, key)}") from None
        except InputError as error:
            raise InputError(f"{where}: what {self.base_url} sent {error}") from None
        except ValueError:
            raise InputError(f"{where}: what {self.base_url} sent is no JSON; check base_url") from None
        if picture.size != self.width_height:
            raise InputError(
                f"{where}: asked for {order.size} pixels, but {order.model} drew"
                f" {picture.width}x{picture.height}; ask for a size that it draws"
            )
        return picture

    def _complaint(self, error: "APIError", key: str) -> str:
        """What went wrong with a call, and what would be right."""
        import openai

        calls = f"{self.retries + 1} calls"
        if isinstance(error, openai.APITimeoutError):
            return f"{self.base_url} gave no answer within {self.timeout_s:g} s in {calls}; allow more time"
        if not isinstance(error, openai.APIStatusError):
            way = through(self.base_url)
            return f"{self.base_url} cannot be reached{way} in {calls}; check base_url and that it is running"
        status = error.status_code
        if status in {401, 403}:
            where = f"{self.base_url}{through(self.base_url)}"
            return f"{where} refused the key with {status}; put a valid one into {self.api_key_env}"
        message = _plain(error.message.removeprefix(f"Error code: {status}").replace(key, "***"), 200)
        return self._answer(status, error.code, f"{status} {message}".strip())

    def _answer(self, status: int, code: str | None, message: str) -> str:
        """What an answer of that status means; the message is the server's."""
        server = f"{self.base_url}{through(self.base_url)}"
        if code in _REFUSALS:
            return f"{server} refused what it says ({message}); reword it or leave it out"
        if status >= 500:
            return f"{server} failed in {self.retries + 1} calls ({message}); look at the server, then go on"
        meanings = {
            404: f"no model {self.model!r} or no images at {server} ({message}); check both",
            429: f"{server} is still too busy ({message}); wait, or lower concurrency",
        }
        return meanings.get(status, f"{server} did not take the request ({message}); change what it names")

    def _client(self, key: str) -> "OpenAI":
        try:
            from openai import DefaultHttpxClient, OpenAI
        except ModuleNotFoundError as error:
            raise InputError('an endpoint needs the openai client: pip install "dekag[endpoint]"') from error
        return OpenAI(
            base_url=self.base_url,
            api_key=key,
            max_retries=self.retries,
            timeout=self.timeout_s,
            http_client=DefaultHttpxClient(**client_options(self.base_url)),
        )

    def _key(self) -> str:
        key = os.environ.get(self.api_key_env, "").strip()
        if not key:
            raise InputError(
                f"the environment variable {self.api_key_env} must hold the key of {self.base_url};"
                " any text does if it asks for none"
            )
        if not key.isascii() or not key.isprintable():
            raise InputError(f"the key in {self.api_key_env} must be one line of printable ASCII")
        return key


@dataclass(frozen=True, kw_only=True)
class EndpointCloud:
    """An endpoint as a cloud; with a folder, no image is asked for, and paid for, twice."""

    endpoint: ImageEndpoint
    folder: Path | None = None

    def images(self, prompts: Sequence[str], *, seeds: Sequence[int]) -> Image:
        """One image for each prompt and its seed, float [prompts, 3, height, width] in [0, 1].

        Raises InputError as `ImageEndpoint.draw` does.
        """
        if self.folder is None:
            return self.endpoint.draw(prompts, seeds=seeds)
        draw_to_folder(self.endpoint, prompts, seeds, self.folder)
        return read_folder(self.folder).images


def draw_to_folder(
    endpoint: ImageEndpoint,
    prompts: Sequence[str],
    seeds: Sequence[int],
    folder: Path,
    *,
    on_image: Callable[[int], None] | None = None,
) -> int:
    """Draw one image for each prompt and its seed into a folder for `read_folder`; returns the number drawn now.

    index.json is as `dekag.tasks.generate` writes it, with the model and size of every image, and is written anew
    with every image. An image that it records for the same prompt, seed, model and size is not drawn again,
    so after an error or an interruption the same call goes on where the last one ended. Images that are not
    asked for any more stay as files and under "unused". To redraw an image, delete its file.

    `on_image` is given the number of images drawn so far. Raises InputError as `ImageEndpoint.draw` does.
    """
    orders = endpoint._orders(prompts, seeds)
    positions = {order: number for number, order in reversed([*enumerate(orders)])}
    if doubled := [number for number, order in enumerate(orders) if positions[order] != number]:
        first = positions[orders[doubled[0]]]
        raise InputError(
            f"prompts {first + 1} and {doubled[0] + 1} are the same with the same seed; give another seed"
        )
    files = _recorded(folder)
    missing = [number for number, order in enumerate(orders) if order not in files]
    done = 0

    def keep(number: int, picture: Picture) -> None:
        nonlocal done
        name = _file_name(number, orders[number])
        with replacing(folder / name) as part:
            picture.save(part, format="PNG", optimize=True)
        files[orders[number]] = name
        _write_index(folder, endpoint, orders, files)
        done += 1
        if on_image is not None:
            on_image(done)

    if missing:
        endpoint._fill(orders, missing, keep)
    _write_index(folder, endpoint, orders, files)
    return done


def _recorded(folder: Path) -> dict[Order, str]:
    """The files of the images that an earlier call drew and that are still there."""
    path = folder / INDEX
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file; give a folder to draw to")
    if not path.exists():
        return {}
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        names = ("prompt", "seed", "model", "size")
        rows = [*index["images"], *index["unused"]]
        files = {Order(**{name: row[name] for name in names}): str(row["file"]) for row in rows}
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is not from an endpoint, so it is kept; choose another folder") from error
    return {order: name for order, name in files.items() if (folder / name).is_file()}


def _write_index(
    folder: Path, endpoint: ImageEndpoint, orders: Sequence[Order], files: dict[Order, str]
) -> None:
    asked = dict.fromkeys(order for order in orders if order in files)
    unused = [order for order in files if order not in asked]
    index = {
        "model": endpoint.model,
        "endpoint": endpoint.base_url,
        "images": [{"file": files[order], **asdict(order)} for order in asked],
        "unused": [{"file": files[order], **asdict(order)} for order in unused],
    }
    write_json(folder / INDEX, index)


def _file_name(number: int, order: Order) -> str:
    """Where it stands, its seed, and a digest, so that no other order ever has the same name."""
    digest = hashlib.sha256(json.dumps(asdict(order)).encode()).hexdigest()
    return f"{number:04d}_seed{order.seed}_{digest[:12]}.png"


def _payload(reply: Any) -> bytes:
    """The image file in an answer, whose types the client does not check."""
    try:
        (image,) = reply.data
        text, url = image.b64_json, image.url
    except (AttributeError, TypeError, ValueError):
        raise InputError("is not one image; check base_url") from None
    if text is None and url is not None:
        raise InputError("is an address instead of an image; choose a server or model that gives b64_json")
    try:
        return base64.b64decode(text, validate=True)
    except (TypeError, ValueError):
        raise InputError("is no base64; choose a server that gives b64_json") from None


def _plain(text: str, length: int) -> str:
    """A stranger's text for an error message: one line, short, nothing that a terminal obeys."""
    line = "".join(letter for letter in " ".join(text.split()) if letter.isprintable()).strip(" -")
    return line if len(line) <= length else f"{line[: length - 3]}..."
