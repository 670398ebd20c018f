"""The folder that keeps what an endpoint drew, so that no picture is paid for twice."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from PIL.Image import Image as Picture

from dekag.data.endpoint import ImageEndpoint
from dekag.data.folder import INDEX
from dekag.data.orders import Account, Order
from dekag.types import InputError
from dekag.wire.files import replacing, write_json

_FIELDS = ("prompt", "seed", "model", "size")
_NAME = re.compile(r"\d+_seed\d+_([0-9a-f]{12})(?:_([1-9]\d*x[1-9]\d*))?\.png")
_VERSION = 2
"""Of the index. Indices of the first have none, and the seeds of their pictures follow from a place in a list."""


@dataclass(frozen=True, kw_only=True)
class Paid:
    """A picture that is there.

    drawn_with_seed: another seed than its order's, with which an earlier version asked for it. by_place: whether that
    version drew it, and no order has it yet.
    """

    file: str
    drawn_with_seed: int | None = None
    by_place: bool = False

    def row(self, order: Order) -> dict[str, Any]:
        """What the index says of it."""
        row: dict[str, Any] = {"file": self.file, **asdict(order)}
        if self.drawn_with_seed is not None:
            row["drawn_with_seed"] = self.drawn_with_seed
        return row | ({"by_place": True} if self.by_place else {})


@dataclass(kw_only=True)
class PaidFolder:
    """What a folder has: pictures by their orders, those that came in a wrong size, and refusals in the server's words.

    cost: calls, pictures and bytes of all runs together.
    """

    folder: Path
    files: dict[Order, Paid] = field(default_factory=dict)
    wrong: dict[Order, tuple[str, str]] = field(default_factory=dict)
    refused: dict[Order, str] = field(default_factory=dict)
    cost: dict[str, int] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> "PaidFolder":
        """What earlier runs left in a folder. Raises InputError if it is somebody else's."""
        path = folder / INDEX
        if folder.exists() and not folder.is_dir():
            raise InputError(f"{folder} is a file; give a folder to draw to")
        if not path.exists():
            return cls(folder=folder)
        try:
            return cls._parsed(folder, json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(
                f"{path} is not from an endpoint, so it is kept; choose another folder"
            ) from error

    @classmethod
    def _parsed(cls, folder: Path, index: Any) -> "PaidFolder":
        old = "version" not in index
        files = {
            _order(row): Paid(
                file=str(row["file"]),
                drawn_with_seed=row.get("drawn_with_seed"),
                by_place=old or bool(row.get("by_place")),
            )
            for row in [*index["images"], *index["unused"]]
        }
        wrong = {_order(row): (str(row["file"]), str(row["drawn"])) for row in index.get("wrong_size", ())}
        return cls(
            folder=folder,
            files={order: paid for order, paid in files.items() if (folder / paid.file).is_file()},
            wrong={order: found for order, found in wrong.items() if (folder / found[0]).is_file()},
            refused={_order(row): str(row["why"]) for row in index.get("refused", ())},
            cost={name: int(index.get("cost", {}).get(name, 0)) for name in _cost(Account())},
        )

    def settle(self, orders: Sequence[Order], *, by_draw: bool) -> list[int]:
        """Give each order what is there already; returns the places of those that are neither there nor refused.

        by_draw: whether the orders are those of `draw_seeds`, which take pictures of an earlier version for theirs.
        """
        self._find_unlisted(orders)
        for order in orders:
            self._take_by_size(order)
        if by_draw:
            self._take_by_place(orders)
        return [n for n, order in enumerate(orders) if order not in self.files and order not in self.refused]

    def _find_unlisted(self, orders: Sequence[Order]) -> None:
        """Pictures that a killed run wrote, but not into the index."""
        if not self.folder.is_dir() or all(order in self.files for order in orders):
            return
        # the whole name: what was being written when the run was killed begins otherwise
        matches = [match for path in self.folder.iterdir() if (match := _NAME.fullmatch(path.name))]
        found = {match[1]: (match.string, match[2]) for match in matches}
        for order in orders:
            if order in self.files or order in self.wrong or order.digest not in found:
                continue
            name, drawn = found[order.digest]
            if drawn is None:
                self.files[order] = Paid(file=name)
            else:
                self.wrong[order] = (name, drawn)

    def _take_by_size(self, order: Order) -> None:
        """A picture that is of the order's size, though another was asked for."""
        if order in self.files:
            return
        for asked, (name, drawn) in self.wrong.items():
            if drawn == order.size and replace(asked, size=drawn) == order:
                self.files[order] = Paid(file=name)
                return

    def _take_by_place(self, orders: Sequence[Order]) -> None:
        """Pictures of an earlier version, in the order of their seeds, for orders of the same prompt."""
        asked = set(orders)
        free: dict[Order, list[Order]] = {}
        old = [order for order, paid in self.files.items() if paid.by_place and order not in asked]
        for order in sorted(old, key=lambda order: order.seed, reverse=True):
            free.setdefault(replace(order, seed=0), []).append(order)
        for order in orders:
            same = free.get(replace(order, seed=0))
            if order not in self.files and same:
                known = same.pop()
                self.files[order] = Paid(file=self.files.pop(known).file, drawn_with_seed=known.seed)
                self.refused.pop(order, None)

    def keep(self, number: int, order: Order, picture: Picture, *, any_size: bool) -> None:
        """Write a picture; one of a wrong size is kept apart."""
        name = f"{number:04d}_seed{order.seed}_{order.digest}"
        drawn = f"{picture.width}x{picture.height}"
        right = any_size or drawn == order.size
        name += ".png" if right else f"_{drawn}.png"
        with replacing(self.folder / name) as part:
            picture.save(part, format="PNG", optimize=True)
        self.refused.pop(order, None)
        if right:
            self.files[order] = Paid(file=name)
        else:
            self.wrong[order] = (name, drawn)

    def write(self, endpoint: ImageEndpoint, orders: Sequence[Order], spent: Mapping[str, int]) -> None:
        """Write the index: the pictures that are asked for, in their order, and all else that is there."""
        asked = dict.fromkeys(order for order in orders if order in self.files)
        unused = [order for order in self.files if order not in asked]
        index = {
            "version": _VERSION,
            "model": endpoint.model,
            "endpoint": endpoint.base_url,
            "cost": {name: value + spent[name] for name, value in (self.cost or _cost(Account())).items()},
            "images": [self.files[order].row(order) for order in asked],
            "unused": [self.files[order].row(order) for order in unused],
            "wrong_size": [
                {"file": name, **asdict(order), "drawn": drawn} for order, (name, drawn) in self.wrong.items()
            ],
            "refused": [{**asdict(order), "why": why} for order, why in self.refused.items()],
        }
        write_json(self.folder / INDEX, index)


def spent_since(account: Account, before: Account) -> dict[str, int]:
    """What was spent since an account was as it was before."""
    now, then = _cost(account), _cost(before)
    return {name: now[name] - then[name] for name in now}


def _cost(account: Account) -> dict[str, int]:
    return {"calls": account.calls, "pictures": account.pictures, "bytes": account.size_bytes}


def _order(row: Mapping[str, Any]) -> Order:
    return Order(**{name: row[name] for name in _FIELDS})
