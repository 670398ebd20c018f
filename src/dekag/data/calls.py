"""The calls of an endpoint: several at a time, each of which is one picture, a refusal or one clear line."""

import hashlib
import re
import warnings
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Event, Lock
from typing import TYPE_CHECKING, Any

from PIL.Image import Image as Picture

from dekag.data.answers import embedded, fetched
from dekag.data.endpoint import ImageEndpoint
from dekag.data.orders import Order, named, plain
from dekag.data.picture import open_picture
from dekag.types import EndpointWarning, InputError
from dekag.wire.http import client_options, through

if TYPE_CHECKING:
    from openai import APIError, OpenAI

_REFUSALS = frozenset(
    {"content_policy_violation", "content_filter", "contentFilter", "moderation_blocked", "safety_violation"}
)
"""Codes with which servers refuse a prompt for what it says."""
_OPTIONAL = ("response_format", "seed", "size")
"""Parameters that some servers do not know."""

Keep = Callable[[int, Picture], None]
Refuse = Callable[[int, str], None]


class _RefusalError(InputError):
    """The endpoint does not draw what a prompt says."""


def fill(endpoint: ImageEndpoint, orders: Mapping[int, Order], keep: Keep, refuse: Refuse) -> None:
    """Draw the orders, each at its place in the list, and hand each to `keep`, one at a time, as it arrives.

    `refuse` is given those that the endpoint does not draw for what they say, with its words; the others go on.
    After a failure or an interruption no call is begun, but those under way, which are paid for, are kept, those of a
    wrong size as well.
    """
    key = endpoint.key()
    stopped, lock = Event(), Lock()

    def work(number: int) -> None:
        if stopped.is_set():
            return
        try:
            try:
                picture = calls.picture(number + 1, orders[number])
            except _RefusalError as refusal:
                with lock:
                    refuse(number, str(refusal))
                return
            with lock:
                keep(number, picture)
            if picture.size != endpoint.width_height and "size" in calls.sent():
                size = f"{picture.width}x{picture.height}"
                raise InputError(wrong_size(number + 1, orders[number], size))
        except BaseException:
            stopped.set()
            raise

    with _client(endpoint, key, lock) as client, ThreadPoolExecutor(endpoint.concurrency) as pool:
        calls = _Calls(endpoint=endpoint, key=key, client=client, lock=lock)
        try:
            for call in [pool.submit(work, number) for number in orders]:
                call.result()
        finally:
            stopped.set()


def wrong_size(number: int, order: Order, drawn: str) -> str:
    """What is said of a picture that is not as large as it was ordered."""
    return (
        f"{named(number, order.prompt)}: asked for {order.size} pixels, but {order.model} drew {drawn};"
        " ask for a size that it draws"
    )


def _client(endpoint: ImageEndpoint, key: str, lock: Lock) -> "OpenAI":
    try:
        from openai import DefaultHttpxClient, OpenAI
    except ModuleNotFoundError as error:
        raise InputError('an endpoint needs the openai client: pip install "dekag[endpoint]"') from error

    def count(_: object) -> None:
        with lock:
            endpoint.account.calls += 1

    return OpenAI(
        base_url=endpoint.base_url,
        api_key=key,
        max_retries=endpoint.retries,
        timeout=endpoint.timeout_s,
        http_client=DefaultHttpxClient(**client_options(endpoint.base_url), event_hooks={"request": [count]}),
    )


@dataclass(frozen=True, kw_only=True)
class _Calls:
    """One order after the other at an endpoint; the lock guards its account."""

    endpoint: ImageEndpoint
    key: str
    client: Any
    lock: Any

    def picture(self, number: int, order: Order) -> Picture:
        """One image. The server's words are shown without the key, and its error is not chained."""
        import openai

        where, server = named(number, order.prompt), self.endpoint.base_url
        try:
            raw = self._file(self._reply(order))
            with self.lock:
                self.endpoint.account.pictures += 1
                self.endpoint.account.size_bytes += len(raw)
            return open_picture(raw)
        except openai.APIError as error:
            if _is_refusal(error):
                raise _RefusalError(self._complaint(error)) from None
            raise InputError(f"{where}: {self._complaint(error)}") from None
        except InputError as error:
            raise InputError(f"{where}: what {server} sent {error}") from None
        except ValueError:
            raise InputError(f"{where}: what {server} sent is no JSON; check base_url") from None

    def sent(self) -> list[str]:
        """The names of the optional parameters that the endpoint is given."""
        endpoint = self.endpoint
        wanted = {"response_format": endpoint.send_format, "seed": endpoint.send_seed, "size": True}
        left_out = endpoint.account.left_out
        return [name for name in _OPTIONAL if wanted[name] and (endpoint.base_url, name) not in left_out]

    def _reply(self, order: Order) -> Any:
        """The answer to an order, without the parameters that the endpoint refuses to be given."""
        import openai

        while True:
            sent = self.sent()
            same = hashlib.sha256(f"{order.digest} {' '.join(sent)}".encode()).hexdigest()
            try:
                return self.client.images.generate(
                    model=order.model,
                    prompt=order.prompt,
                    n=1,
                    size=order.size if "size" in sent else openai.omit,
                    response_format="b64_json" if "response_format" in sent else openai.omit,
                    extra_body={"seed": order.seed} if "seed" in sent else None,
                    # a server that knows it draws, and charges, once, however often a connection breaks
                    extra_headers={"Idempotency-Key": same},
                )
            except openai.APIStatusError as error:
                name = _refused_parameter(error, order.prompt, sent)
                if name is None:
                    raise
                self._leave_out(name)

    def _leave_out(self, name: str) -> None:
        """Never give the endpoint that parameter again in this run, and say so once."""
        endpoint = self.endpoint
        with self.lock:
            known = (endpoint.base_url, name) in endpoint.account.left_out
            endpoint.account.left_out.add((endpoint.base_url, name))
        means = {
            "response_format": "the pictures come as it likes",
            "seed": "drawn again, a picture would be another",
            "size": f"pictures of another size are cut and resized to {endpoint.size}",
        }
        if not known:
            text = f"{endpoint.base_url} takes no {name}, so it is left out: {means[name]}"
            warnings.warn(text, EndpointWarning, stacklevel=2)

    def _file(self, reply: Any) -> bytes:
        """The file of the picture in an answer."""
        found, endpoint = embedded(reply), self.endpoint
        if isinstance(found, bytes):
            return found
        return fetched(
            found, origin=endpoint.base_url, retries=endpoint.retries, timeout_s=endpoint.timeout_s
        )

    def _complaint(self, error: "APIError") -> str:
        """What went wrong with a call, and what would be right."""
        import openai

        endpoint = self.endpoint
        url, calls = endpoint.base_url, f"{endpoint.retries + 1} calls"
        if isinstance(error, openai.APITimeoutError):
            return f"{url} gave no answer within {endpoint.timeout_s:g} s in {calls}; allow more time"
        if not isinstance(error, openai.APIStatusError):
            return f"{url} cannot be reached{through(url)} in {calls}; check base_url and that it is running"
        status = error.status_code
        message = plain(_words(error).removeprefix(f"Error code: {status}").replace(self.key, "***"), 200)
        return self._answer(error, f"{status} {message}".strip())

    def _answer(self, error: Any, message: str) -> str:
        """What an answer of an error's status means; the message is the server's."""
        endpoint, status = self.endpoint, error.status_code
        server = f"{endpoint.base_url}{through(endpoint.base_url)}"
        if _is_refusal(error):
            return f"{server} refused what it says ({message}); reword it or leave it out"
        if status in {401, 403}:
            return f"{server} refused the key with {status}; put a valid one into {endpoint.api_key_env}"
        if status >= 500:
            failed = f"failed in {endpoint.retries + 1} calls ({message})"
            return f"{server} {failed}; look at the server, then go on"
        meanings = {
            404: f"no model {endpoint.model!r} or no images at {server} ({message}); check both",
            429: f"{server} is still too busy ({message}); wait, or lower concurrency",
        }
        return meanings.get(status, f"{server} did not take the request ({message}); change what it names")


def _is_refusal(error: "APIError") -> bool:
    return error.code in _REFUSALS or getattr(error, "type", None) in _REFUSALS


def _words(error: "APIError") -> str:
    """What a server says of an error; some frameworks say it in a form that the client does not know."""
    known = isinstance(error.body, dict) and "message" in error.body
    return f"{error.message} {error.body}" if isinstance(error.body, dict) and not known else error.message


def _refused_parameter(error: Any, prompt: str, sent: Collection[str]) -> str | None:
    """The parameter that a 400, or the 422 of other frameworks, names as the one that is not taken."""
    if error.status_code not in {400, 422} or _is_refusal(error):
        return None
    if error.param in sent:
        return str(error.param)
    message = _words(error).replace(prompt, "")
    found = re.findall(rf"(?<![\w.-])({'|'.join(_OPTIONAL)})(?![\w-])", message)
    return next((name for name in found if name in sent), None)
