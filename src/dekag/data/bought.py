"""An endpoint as a cloud: what is in its folder is not bought again, what it refuses is left out and told."""

import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from PIL.Image import Image as Picture

from dekag.data.endpoint import ImageEndpoint
from dekag.data.entries import Entry, Faults
from dekag.data.folder import INDEX
from dekag.data.images import CloudImages, FolderFiles, checked, pairs
from dekag.data.orders import Order, draw_seeds, named
from dekag.data.paid import PaidFolder, spent_since
from dekag.types import EndpointWarning, Image, InputError
from dekag.wire.lock import locked

LOCK = ".lock"
_TOLD = 10
"""Most refused prompts that one line names."""


@dataclass(frozen=True, kw_only=True)
class EndpointCloud:
    """An endpoint as a cloud; with a folder, no image is asked for, and paid for, twice."""

    endpoint: ImageEndpoint
    folder: Path | None = None

    def images(self, prompts: Sequence[str], *, seeds: Sequence[int]) -> Image:
        """One image for each prompt and its seed, float [prompts, 3, height, width] in [0, 1].

        Raises InputError as `ImageEndpoint.draw` does, for a refused prompt after all others are in the folder.
        """
        if self.folder is None:
            return self.endpoint.draw(prompts, seeds=seeds)
        found = self.pictures(prompts, seeds=seeds)
        if missing := len(prompts) - len(found.prompts):
            raise InputError(
                f"{missing} of {len(prompts)} prompts were refused and have no picture;"
                f" {self.folder / INDEX} lists them, reword them or leave them out"
            )
        return found.images[:]

    def pictures(
        self, prompts: Sequence[str], *, seeds: Sequence[int] | None = None, pixels: int | None = None
    ) -> CloudImages:
        """The images of all prompts but those that are refused, which a warning names; those of a folder are unread.

        seeds: of the orders; None are those of `draw_seeds`. pixels: side to which the central square of each is
        resized; None is the size that was asked for. Raises InputError as `draw_to_folder`.
        """
        orders = self.endpoint.orders(prompts, draw_seeds(prompts) if seeds is None else seeds)
        if self.folder is None:
            drawn = self.endpoint.draw(prompts, seeds=[order.seed for order in orders])
            return CloudImages(prompts=tuple(prompts), images=drawn)
        draw_to_folder(self.endpoint, prompts, seeds, self.folder)
        files = PaidFolder.read(self.folder).files
        kept = [order for order in orders if order in files]
        paid = FolderFiles(folder=self.folder, names=tuple(files[order].file for order in kept))
        try:
            source, _ = checked(paid, self.endpoint.width_height if pixels is None else pixels, Faults())
        except InputError as error:
            raise InputError(f"{error}; delete the file to draw it again") from None
        return pairs(source, [(n, Entry(order.digest, (order.prompt,))) for n, order in enumerate(kept)])

    def to_buy(self, prompts: Sequence[str], *, seeds: Sequence[int] | None = None) -> int:
        """How many pictures `pictures` would buy. Raises InputError as it does; nothing is bought or written."""
        if self.folder is None:
            return len(prompts)
        endpoint = self.endpoint
        orders = endpoint.orders(prompts, draw_seeds(prompts) if seeds is None else seeds)
        return len(_settled(endpoint, orders, self.folder, by_draw=seeds is None)[1])


def draw_to_folder(
    endpoint: ImageEndpoint,
    prompts: Sequence[str],
    seeds: Sequence[int] | None,
    folder: Path,
    *,
    on_image: Callable[[int], None] | None = None,
) -> int:
    """Draw one image for each prompt and its seed into a folder for `read_folder`; returns the number drawn now.

    seeds: None are those of `draw_seeds`, which depend on prompt and number of the draw alone. Such orders take
    pictures of the same prompt, model and size that an earlier version bought for a place in a list.

    index.json is as `dekag.tasks.generate` writes it, with the model and size of every image, and is written anew
    with every image, before the next call begins. An image that it records for the same prompt, seed, model and size
    is not drawn again, so after an error or an interruption the same call goes on where the last one ended. Images
    that are not asked for any more stay as files and under "unused". To redraw an image, delete its file. "cost" has
    the calls, pictures and bytes of all runs.

    What the endpoint refuses for what it says is left out, is under "refused", is not asked for again unless the
    endpoint has `ask_refused`, and is told in an `EndpointWarning` at the end. `on_image` is given the number of
    images drawn so far. Raises InputError as `ImageEndpoint.draw` does, and if nothing is left.
    """
    by_draw = seeds is None
    orders = endpoint.orders(prompts, draw_seeds(prompts) if seeds is None else seeds)
    paid, missing = _settled(endpoint, orders, folder, by_draw=by_draw)
    endpoint.account.require(len(missing))
    done = 0
    if missing:
        _check_writable(folder)
        with _alone(folder):
            # another run may have bought some until now
            paid, missing = _settled(endpoint, orders, folder, by_draw=by_draw)
            done = _buy(endpoint, {number: orders[number] for number in missing}, orders, paid, on_image)
    else:
        paid.write(endpoint, orders, spent_since(endpoint.account, endpoint.account))
    _tell_refused(endpoint, orders, paid)
    return done


def _buy(
    endpoint: ImageEndpoint,
    missing: Mapping[int, Order],
    orders: Sequence[Order],
    paid: PaidFolder,
    on_image: Callable[[int], None] | None,
) -> int:
    """Draw what is missing, each on the disk before the next call begins; returns how many came."""
    from dekag.data.calls import fill

    before, done = replace(endpoint.account), 0

    def write() -> None:
        paid.write(endpoint, orders, spent_since(endpoint.account, before))

    def keep(number: int, picture: Picture) -> None:
        nonlocal done
        any_size = (endpoint.base_url, "size") in endpoint.account.left_out
        paid.keep(number, missing[number], picture, any_size=any_size)
        write()
        done += 1
        if on_image is not None:
            on_image(done)

    def refuse(number: int, why: str) -> None:
        paid.refused[missing[number]] = why
        write()

    if missing:
        fill(endpoint, missing, keep, refuse)
    write()
    return done


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Within, no other run buys for the folder. Raises InputError if one does; a folder that stays empty goes again."""
    path, taken = folder / LOCK, f"another run buys pictures for {folder} now; wait until it has ended"
    try:
        with locked(path, taken=taken):
            try:
                yield
            finally:
                # under the lock: who waits for this file sees that it is gone and makes another
                with suppress(OSError):
                    path.unlink()
    finally:
        with suppress(OSError):
            folder.rmdir()


def _settled(
    endpoint: ImageEndpoint, orders: Sequence[Order], folder: Path, *, by_draw: bool
) -> tuple[PaidFolder, list[int]]:
    """What the folder has, and the places of what is to be bought."""
    positions = {order: number for number, order in reversed([*enumerate(orders)])}
    if doubled := [number for number, order in enumerate(orders) if positions[order] != number]:
        first = positions[orders[doubled[0]]]
        raise InputError(
            f"prompts {first + 1} and {doubled[0] + 1} are the same with the same seed; give another seed"
        )
    paid = PaidFolder.read(folder)
    if endpoint.ask_refused:
        for order in orders:
            paid.refused.pop(order, None)
    missing = paid.settle(orders, by_draw=by_draw)
    for number in missing:
        if orders[number] in paid.wrong:
            from dekag.data.calls import wrong_size

            raise InputError(wrong_size(number + 1, orders[number], paid.wrong[orders[number]][1]))
    return paid, missing


def _tell_refused(endpoint: ImageEndpoint, orders: Sequence[Order], paid: PaidFolder) -> None:
    """Name the prompts that have no picture, in one line; an error if none has one."""
    refused = [n for n, order in enumerate(orders) if order in paid.refused and order not in paid.files]
    if not refused:
        return
    if len(refused) == len(orders):
        first = orders[refused[0]]
        raise InputError(
            f"none of {len(orders)} prompts can be drawn: {named(refused[0] + 1, first.prompt)}: {paid.refused[first]}"
        )
    names = "; ".join(named(n + 1, orders[n].prompt) for n in refused[:_TOLD])
    more = f" and {len(refused) - _TOLD} others" if len(refused) > _TOLD else ""
    warnings.warn(
        f"{endpoint.base_url} refused {len(refused)} of {len(orders)} prompts, which are left out: {names}{more};"
        f" {paid.folder / INDEX} has its words",
        EndpointWarning,
        stacklevel=3,
    )


def _check_writable(folder: Path) -> None:
    """Raise InputError, before anything is bought, if the folder could not keep it; nothing is left behind."""
    place = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    try:
        if not os.access(place, os.X_OK):
            raise PermissionError(0, "Permission denied")
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        raise InputError(f"{folder} cannot be written ({error.strerror}); give a folder that can") from error
