"""A cloud that one can only call: images from an endpoint that speaks OpenAI's Images API."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import torch
from PIL.Image import Image as Picture

from dekag.data.orders import Account, Order, named, orders_of
from dekag.data.picture import centred, picture_tensor
from dekag.types import Image, InputError


@dataclass(frozen=True, kw_only=True)
class ImageEndpoint:
    """A model behind POST {base_url}/images/generations, called with the `openai` client.

    base_url: address up to the version, as https://api.openai.com/v1 or http://localhost:8000/v1.
    model: name by which the server knows it.
    api_key_env: environment variable with the key; a server without keys takes any text.
    size: WIDTHxHEIGHT in pixels; another size in the answer is an error. Of a server that takes no size, pictures of
        another size are cut to their centre and resized.
    send_seed: pass the seed along. It is no part of OpenAI's API: vLLM-Omni and SGLang take it, many servers
        ignore it, some refuse it. Without it, or where it is ignored, equal seeds give different images.
    send_format: ask for `b64_json`, which the gpt-image models give unasked and refuse to be asked for.
    concurrency: largest number of calls at a time; each draws one image.
    retries: further calls after 408, 409, 429, 5xx, a broken connection or a timeout. Waits as long as the
        server's Retry-After says, up to two minutes, else 0.5 s, doubled each time, up to 8 s.
    timeout_s: seconds to wait for an answer.
    ask_refused: ask again for what the endpoint refused in an earlier run.
    account: what is bought in this run, and how much may be.

    A seed, format or size that the server refuses to be given is left out from then on; an `EndpointWarning` says so
    once. Raises InputError if a field is out of range.
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
    ask_refused: bool = False
    account: Account = field(default_factory=Account, compare=False, repr=False)

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

        Raises InputError that names the first prompt, counted from 1, that could not be drawn and says why, and,
        before the first call, if they are more than the account's budget allows.
        """
        from dekag.data.calls import fill

        orders = self.orders(prompts, seeds)
        self.account.require(len(orders))
        width, height = self.width_height
        images = torch.empty(len(orders), 3, height, width)

        def keep(number: int, picture: Picture) -> None:
            images[number] = picture_tensor(centred(picture, (width, height)))

        def refuse(number: int, why: str) -> None:
            raise InputError(f"{named(number + 1, orders[number].prompt)}: {why}")

        fill(self, dict(enumerate(orders)), keep, refuse)
        return images

    def orders(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[Order]:
        """What the endpoint is asked for. Raises InputError unless prompts and seeds pair."""
        return orders_of(prompts, seeds, model=self.model, size=self.size)

    def key(self) -> str:
        """The key. Raises InputError if the environment has none that can be sent."""
        key = os.environ.get(self.api_key_env, "").strip()
        if not key:
            raise InputError(
                f"the environment variable {self.api_key_env} must hold the key of {self.base_url};"
                " any text does if it asks for none"
            )
        if not key.isascii() or not key.isprintable():
            raise InputError(f"the key in {self.api_key_env} must be one line of printable ASCII")
        return key
