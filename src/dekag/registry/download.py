"""Files that arrive whole over a bad network: taken up where they broke off, never larger than they may be."""

import hashlib
import time
from dataclasses import dataclass
from io import BufferedIOBase, BytesIO
from pathlib import Path

from dekag.registry.faults import RegistryError
from dekag.registry.listing import Blob
from dekag.registry.source import BrokenOffError, Source, Stream


@dataclass(frozen=True, kw_only=True)
class Patience:
    """When a download is given up.

    failures: breaks in a row that brought no byte. pause_s: wait after the first of them, doubled after each.
    grace_s: time in which nothing has to arrive; bytes_per_s: least mean rate of what has arrived after it.
    """

    failures: int = 5
    pause_s: float = 0.1
    grace_s: float = 60.0
    bytes_per_s: float = 2048.0

    def ends(self, arrived: int) -> float:
        """After how many seconds a transfer is too slow that has brought so many bytes."""
        return self.grace_s + arrived / self.bytes_per_s


@dataclass(frozen=True, kw_only=True)
class Order:
    """A file to download: at most `limit` bytes, and exactly so many if `exact`.

    Contents of a digest's name are always the same, so a range of them needs no tag.
    """

    path: str
    limit: int
    exact: bool


def download(source: Source, order: Order, sink: BufferedIOBase, patience: Patience) -> None:
    """Bring what `sink` does not hold of a file to its end.

    Raises RegistryError if the file is of another length than it may be, too slow or not to be had; OSError if the
    sink cannot be written. What has arrived stays in the sink then.
    """
    where = f"{source.name}/{order.path}"
    pace = _Pace(patience=patience, began=time.monotonic(), held=sink.seek(0, 2))
    failures, tag = 0, None
    while True:
        held = sink.seek(0, 2)
        if order.exact and held == order.limit:
            return
        if held and tag is None and not order.exact:
            held = _restart(sink)
        try:
            with source.open(order.path, start=held, tag=tag) as stream:
                _check_total(where, order, stream)
                tag = stream.tag
                if stream.start != held:
                    _restart(sink)
                _drain(where, order, stream, sink, pace)
        except BrokenOffError as error:
            failures = 0 if sink.tell() > held else failures + 1
            if failures > patience.failures:
                raise RegistryError("unreachable", f"{where} cannot be read: {error}") from error
            time.sleep(patience.pause_s * 2**failures if failures else 0)
            continue
        if order.exact and sink.tell() != order.limit:
            raise RegistryError("length", f"{where} ends after {sink.tell()} bytes, not {order.limit}")
        return


def read_blob(source: Source, blob: Blob, patience: Patience) -> bytes:
    """A published file in memory, once its digest is right. Raises RegistryError as `download`, or if it is not."""
    sink = BytesIO()
    download(source, Order(path=blob.path, limit=blob.bytes, exact=True), sink, patience)
    if hashlib.sha256(sink.getvalue()).hexdigest() != blob.sha256:
        raise _damaged(source, blob)
    return sink.getvalue()


def pull_blob(source: Source, blob: Blob, folder: Path, patience: Patience) -> Path:
    """A published file on the disk, once its digest is right; what an earlier call left of it is taken up.

    That may be damaged, so there is a second try. Raises RegistryError as `read_blob`, OSError if the disk refuses.
    """
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f"{blob.sha256}.part"
    order = Order(path=blob.path, limit=blob.bytes, exact=True)
    for _ in range(2):
        if part.exists() and part.stat().st_size > blob.bytes:
            part.unlink()
        try:
            with part.open("ab") as sink:
                download(source, order, sink, patience)
        except OSError as error:
            part.unlink(missing_ok=True)  # a full disk has better uses for its room
            raise OSError(error.errno, f"{part} was not written: {error.strerror}") from error
        with part.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() == blob.sha256:
                return part
        part.unlink()
    raise _damaged(source, blob)


@dataclass(frozen=True, kw_only=True)
class _Pace:
    """How fast a file must come. What is sent again after a break has not arrived twice.

    began: on the clock of `time.monotonic`. held: bytes that were there before.
    """

    patience: Patience
    began: float
    held: int

    def check(self, where: str, held: int) -> None:
        """Raise RegistryError if so little has come that it is too slow."""
        arrived, seconds = max(0, held - self.held), time.monotonic() - self.began
        if seconds > self.patience.ends(arrived):
            raise RegistryError(
                "slow",
                f"{where} comes too slowly: {arrived} bytes in {seconds:.0f} s, at least"
                f" {self.patience.bytes_per_s:.0f} a second are needed",
            )


def _damaged(source: Source, blob: Blob) -> RegistryError:
    return RegistryError("damaged", f"{source.name}/{blob.path} is damaged: its digest is another")


def _check_total(where: str, order: Order, stream: Stream) -> None:
    """Refuse another length than may be before any byte is taken."""
    total = stream.total
    if total is not None and (total > order.limit or (order.exact and total != order.limit)):
        bound = "" if order.exact else "at most "
        raise RegistryError("length", f"{where} has {total} bytes, but must have {bound}{order.limit}")


def _drain(where: str, order: Order, stream: Stream, sink: BufferedIOBase, pace: _Pace) -> None:
    for chunk in stream.chunks:
        if sink.tell() + len(chunk) > order.limit:
            raise RegistryError("length", f"{where} sends more than its {order.limit} bytes")
        sink.write(chunk)
        pace.check(where, sink.tell())


def _restart(sink: BufferedIOBase) -> int:
    sink.seek(0)
    sink.truncate()
    return 0
