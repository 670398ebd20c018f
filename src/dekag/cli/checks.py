"""What can be known of the words of a command before it imports anything heavy: a wrong one is refused at once.

These are callbacks of single options; a group of options has a `check` of its own (`dekag.cli.generated`). What takes a
model to know is checked by the task itself, before it draws, buys or trains.
"""

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from dekag.bundle.container import is_bundle
from dekag.choices import Choice
from dekag.data.entries import TABLE_SUFFIXES
from dekag.errors import FieldError, InputError
from dekag.generation.prompts import check_prompts
from dekag.training.devices import check_device
from dekag.wire.places import check_file, check_folder, check_new_folder, check_own_folder
from dekag.world.shipped import KIND_FILES, Kind, kind_of, locate

T = TypeVar("T")


def checked(check: Callable[[Any], object]) -> Callable[[T], T]:
    """A callback of an option that is given: its value, once it is checked."""

    def callback(value: T) -> T:
        if value is not None:
            check(value)
        return value

    return callback


def one_of(choice: Choice) -> Callable[[T], T]:
    """A callback of an option that is a name."""
    return checked(choice.require)


def _is_codec(folder: Path) -> bool:
    return {path.name for path in folder.iterdir()} <= {"config.json", "model.safetensors"}


folder = checked(check_folder)
new_folder = checked(check_new_folder)
bundle_folder = checked(partial(check_own_folder, is_own=is_bundle, noun="a bundle"))
codec_folder = checked(partial(check_own_folder, is_own=_is_codec, noun="a codec"))
file = checked(check_file)
packed = checked(partial(check_file, suffixes=(".tar", ".tar.gz", ".tgz")))
picture = checked(partial(check_file, suffixes=(".png",)))
drawings = checked(partial(check_file, suffixes=(".zip",)))
device = checked(check_device)
prompts = checked(check_prompts)
bundle = checked(lambda source: locate(source, "bundle"))


def check_part(source: str | None, kind: Kind) -> None:
    """Raise InputError if a part that is given is neither here nor could be on a hub, or is of another kind."""
    place = None if source is None else locate(source, kind)
    if kind != "pipeline" or not isinstance(place, Path) or place.is_file():
        return
    if not (place / KIND_FILES[kind]).is_file():
        raise InputError(f"{place} is no diffusers pipeline folder: it has no {KIND_FILES[kind]}")


def check_further(text: str) -> None:
    """Raise InputError unless FOLDER is a codec, or FOLDER of NAME=FOLDER a codec or a bundle."""
    name, equals, place = text.partition("=")
    if not equals:
        check_part(text, "codec")
    elif not name or kind_of(Path(place)) not in ("codec", "bundle"):
        raise InputError(f"a further codec is given as NAME=FOLDER of a codec or a bundle, got {text!r}")


def check_there(path: Path | None, field: str, *, right: str) -> None:
    """Raise FieldError unless a file or folder that is given is there and can be read."""
    if path is None:
        return
    if not path.exists():
        raise FieldError(f"{field}: {path} does not exist; {right}", field)
    if not os.access(path, os.R_OK):
        raise FieldError(f"{field}: {path} cannot be read; {right}", field)


def check_images(path: Path | None) -> None:
    """Raise FieldError unless what is given is a folder of pictures or a file of a table of them."""
    check_there(path, "images", right=(right := "give a folder of pictures with their prompts"))
    if path is not None and not path.is_dir() and path.suffix.lower() not in TABLE_SUFFIXES:
        raise FieldError(f"images: {path} is a file; {right}", "images")


def check_recordings(paths: Sequence[Path]) -> None:
    """Raise InputError for a frame or a recording, named with or without its suffix, that is not there."""
    for path in paths:
        stem = path.stem if path.suffix in (".sigmf-meta", ".sigmf-data") else path.name
        if not path.exists() and not path.with_name(f"{stem}.sigmf-meta").exists():
            raise InputError(f"{path} does not exist; give a frame (.frame) or a SigMF recording")


def check_registry(url: str) -> None:
    """Raise InputError unless a registry that is a folder is there; an address is asked later."""
    if "://" not in url and not Path(url).is_dir():
        raise InputError(
            f"there is no registry at {url}; give its folder or address, or make one with dekag registry init"
        )


def check_keys(folder: Path) -> None:
    """Raise InputError unless the publisher's folder of keys is there."""
    if not folder.is_dir():
        raise InputError(
            f"there are no keys in {folder}; give the folder that dekag registry init wrote them to"
        )


registry = checked(check_registry)
keys = checked(check_keys)
recordings = checked(check_recordings)
recording = checked(lambda path: check_recordings([path]))
