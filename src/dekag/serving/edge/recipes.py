"""What a delivery's id says: all that any edge with the same world and updates needs to make it again."""

import base64
import hashlib
import json
import zlib
from dataclasses import dataclass, replace
from typing import Any

from pydantic import ValidationError

from dekag.serving.edge.requests import ConditionRequest, DeliveryRequest
from dekag.serving.http.errors import ApiError

__all__ = ["HEAD", "LONGEST_ID", "Recipe", "read_id"]

LONGEST_ID = 2000
"""Characters of an id: it travels in an answer's head, of which proxies take 4 kB. A longer prompt is left out."""
MOST_BYTES = 1 << 16
"""Of an unpacked id."""
HEAD = 16
"""Digits of an update's id that name it."""
FIELDS = ("prompt", "digest", "seed", "steps", "generation", "transmission", "world", "condition")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a delivery was made.

    prompt: None if it is too long for an id. digest: SHA-256 of the prompt, only where it is left out.
    generation, transmission: heads of the updates' ids, None for none. world: its name.
    """

    prompt: str | None
    digest: str | None = None
    seed: int
    steps: int | None
    generation: str | None
    transmission: str | None
    world: str
    condition: ConditionRequest

    def to_id(self) -> str:
        """The id: letters, digits, dashes and underscores; equal recipes have equal ids."""
        text = _packed(self)
        return text if len(text) <= LONGEST_ID else _packed(self._without_prompt())

    def with_prompt(self, prompt: str | None) -> "Recipe":
        """With the prompt that the id left out. Raises ApiError if it is missing, or is another one."""
        if self.prompt is not None:
            return self
        if prompt is None:
            text = "the prompt of this delivery is too long for its id; say it again in prompt"
            raise ApiError(404, text, code="delivery_not_found", param="prompt")
        if _digest(prompt) != self.digest:
            raise ApiError(400, "this is not the prompt of that delivery", param="prompt")
        return replace(self, prompt=prompt, digest=None)

    def request(self) -> DeliveryRequest:
        """What was asked for. Raises ValidationError if it could not have been."""
        return DeliveryRequest(
            prompt=self.prompt or "",
            seed=self.seed,
            steps=self.steps,
            bundle=self.generation or "none",
            condition=self.condition,
        )

    def _without_prompt(self) -> "Recipe":
        return replace(self, prompt=None, digest=_digest(self.prompt or ""))


def read_id(text: str) -> Recipe:
    """The recipe that an id holds. Raises ApiError 404 if it is no id of a delivery."""
    try:
        raw = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
        unpacker = zlib.decompressobj()
        values: dict[str, Any] = dict(
            zip(FIELDS, json.loads(unpacker.decompress(raw, MOST_BYTES)), strict=True)
        )
        recipe = Recipe(**{**values, "condition": ConditionRequest(**values["condition"])})
        if recipe.prompt is not None:
            recipe.request()
        if recipe.to_id() != text:
            raise ValueError("spelt in another way")
    except (ValueError, TypeError, zlib.error, ValidationError, RecursionError) as error:
        raise ApiError(404, "there is no such delivery", code="delivery_not_found") from error
    return recipe


def _packed(recipe: Recipe) -> str:
    values = [getattr(recipe, name) for name in FIELDS]
    values[-1] = recipe.condition.model_dump(exclude_defaults=True)
    raw = json.dumps(values, separators=(",", ":"), ensure_ascii=False, sort_keys=True).encode()
    return base64.urlsafe_b64encode(zlib.compress(raw, 9)).decode().rstrip("=")


def _digest(prompt: str) -> str:
    return hashlib.sha256(prompt.encode()).hexdigest()
