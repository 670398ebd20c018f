"""What a kept state or a cache depends on, as a key, so that none is used for a run that it is not of."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from dekag.types import InputError


@runtime_checkable
class Digested(Protocol):
    """What says itself what it depends on, as pictures that are too many to be held."""

    @property
    def content(self) -> object:
        """All of that."""
        ...


Key = dict[str, str | int | float | bool | None]
"""Each input by its name: a short value as it is, anything else as a digest."""
_MARK = "sha256:"
_SHORT = 40


def key_of(inputs: Mapping[str, object]) -> Key:
    """The key of some inputs. Equal keys are equal inputs, to the last bit of every number; a key is its own key."""
    return {name: _entry(value) for name, value in inputs.items()}


def require_same(path: Path, was: Mapping[str, object] | None, now: Key) -> None:
    """Refuse a file whose key is another one, naming the first input that differs.

    Raises InputError; a file of an earlier version has no key, so that nobody knows what it is of.
    """
    if was is None:
        raise InputError(f"{path} does not say what it was made of: delete it to start anew")
    for name in {**now, **was}:
        before, value = was.get(name), now.get(name)
        if before == value:
            continue
        what = f"other {name.replace('_', ' ')}"
        if not any(str(each).startswith(_MARK) for each in (before, value)):
            what = f"{name} {before}, this one has {value}"
        raise InputError(
            f"{path} is of a run with {what}: resume it as it was or choose another place to keep the state"
        )


def digest_of(value: object) -> str:
    """A digest of values, tensors, modules, dataclasses and what holds them."""
    digest = hashlib.sha256()
    _feed(digest, value)
    return f"{_MARK}{digest.hexdigest()}"


def _entry(value: object) -> str | int | float | bool | None:
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, str) and (len(value) <= _SHORT or value.startswith(_MARK)):
        return value
    return digest_of(value)


def _feed(digest: Any, value: object) -> None:
    match value:
        case Tensor():
            _feed_tensor(digest, value)
        case str() | bytes() | None | bool() | int() | float() | complex() | Path() | torch.dtype():
            text = repr(str(value) if isinstance(value, Path) else value).encode()
            digest.update(f"value {len(text)} ".encode() + text)
        case Digested():
            _feed(digest, value.content)
        case nn.Module():
            digest.update(f"module {type(value).__qualname__} ".encode())
            _feed(digest, dict(value.state_dict()))
        case Mapping():
            digest.update(f"mapping {len(value)} ".encode())
            for name in sorted(value, key=repr):
                _feed(digest, name)
                _feed(digest, value[name])
        case Sequence():
            digest.update(f"sequence {len(value)} ".encode())
            for each in value:
                _feed(digest, each)
        case _ if is_dataclass(value) and not isinstance(value, type):
            digest.update(f"dataclass {type(value).__qualname__} ".encode())
            _feed(digest, {each.name: getattr(value, each.name) for each in fields(value)})
        case _:
            # no state that a result could depend on, as far as anybody can see
            digest.update(f"object {getattr(value, '__qualname__', type(value).__qualname__)} ".encode())


def _feed_tensor(digest: Any, value: Tensor) -> None:
    """Type, shape and every bit."""
    held = value.detach().cpu().contiguous()
    digest.update(f"tensor {held.dtype} {tuple(held.shape)} ".encode())
    digest.update(held.reshape(-1).view(torch.uint8).numpy().data)
