"""The edge's side of a registry: what a channel lists, once all that is signed was verified, and bundles as files.

FOLDER/trusted_root.json    where trust began
FOLDER/metadata/            what was verified last, so that nothing older is taken later
FOLDER/looked.json          when that was, and what the channel listed

The order of checks and the memory of versions are those of `tuf`; bytes come through `download`.
"""

import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from datetime import datetime
from io import BytesIO
from pathlib import Path
from typing import Final

from tuf.api.exceptions import (
    BadVersionNumberError,
    DownloadError,
    DownloadHTTPError,
    DownloadLengthMismatchError,
    ExpiredMetadataError,
    LengthOrHashMismatchError,
    RepositoryError,
    UnsignedMetadataError,
)
from tuf.ngclient import FetcherInterface, Updater

from dekag.bundle.container import MAX_BYTES, plain_text
from dekag.errors import InputError
from dekag.registry.download import Order, Patience, download, pull_blob, read_blob
from dekag.registry.expiry import read_expiries
from dekag.registry.faults import Fault, RegistryError
from dekag.registry.keys import ROLES, Role
from dekag.registry.listing import Listing, check_channel
from dekag.registry.looked import LOOKED, Looked, read_looked, write_looked
from dekag.registry.moment import Moment
from dekag.registry.shelf import INCOMING, Shelf
from dekag.registry.signed import MAX_METADATA_BYTES
from dekag.registry.source import Source, open_source
from dekag.wire.files import sync, write_bytes
from dekag.wire.lock import locked

TRUSTED_ROOT: Final = "trusted_root.json"
_FAULTS: tuple[tuple[type[Exception], Fault, str], ...] = (
    (ExpiredMetadataError, "expired", "has expired: its publisher sleeps, or someone holds back what is new"),
    (BadVersionNumberError, "rollback", "is older than what was seen before"),
    (LengthOrHashMismatchError, "mixed", "does not belong to the file that names it, or is damaged"),
    (UnsignedMetadataError, "signature", "is not signed by enough keys that the root names"),
    (DownloadLengthMismatchError, "mixed", "is larger than the file that names it says, or than it may be"),
    (RepositoryError, "damaged", "is no signed file of its role"),
    (DownloadError, "unreachable", "cannot be read"),
)


class RegistryClient:
    """What an edge pulls with. Its folder is used by one client at a time; others wait.

    url: http(s)://, file:// or a folder; or a source of one's own. root: the registry's root.json, from its
    publisher by a way that is trusted; needed for the first pull only. max_bytes: largest bundle that is pulled.
    clock: seconds since 1970, for the note of the last good look.
    Raises InputError if the URL is no address, or no root is given or remembered.
    """

    def __init__(
        self,
        url: str | Source,
        folder: Path,
        *,
        root: bytes | None = None,
        max_bytes: int = MAX_BYTES,
        patience: Patience | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.source = open_source(url) if isinstance(url, str) else url
        self.folder = folder
        self._root = root
        self._max_bytes = max_bytes
        self.patience = patience or Patience()
        self._clock = clock
        if root is None and not (folder / TRUSTED_ROOT).exists():
            raise InputError(
                f"the first pull from {self.source.name} needs its root.json; ask its publisher for it"
            )

    @property
    def metadata(self) -> Path:
        """The folder of what was verified last."""
        return self.folder / "metadata"

    def moment(self) -> Moment:
        """All that is signed now. Raises RegistryError if anything of it is missing, old, mixed or not signed."""
        with locked(self.folder / ".lock"):
            updater = self._refreshed()
        return Moment(updater=updater, source=self.source, patience=self.patience, max_bytes=self._max_bytes)

    def channel(self, name: str) -> list[Listing]:
        """What a channel lists now. Raises RegistryError as `moment`, and if there is no such channel."""
        check_channel(name)
        listed = self.moment().channel(name)
        with suppress(OSError):  # a look is good without its note
            write_looked(self.folder / LOOKED, name, listed, self._clock())
        return listed

    def last(self, channel: str) -> Looked | None:
        """The last look at a channel that was good, of this client or one before it; None if none was kept."""
        looked = read_looked(self.folder / LOOKED)
        return looked if looked is not None and looked.channel == channel else None

    def expiries(self) -> Mapping[Role, datetime]:
        """Until when the files are signed that were verified last; empty before anything was."""
        return {expiry.role: expiry.expires for expiry in read_expiries(self.metadata)}

    def fetch(self, listing: Listing, shelf: Shelf) -> None:
        """Pull a bundle onto the shelf, unless it lies there already.

        What a break leaves is taken up by the next call. Raises RegistryError if what came is not what was signed,
        InputError if that is no bundle, OSError if the disk refuses; the shelf is as it was then.
        """
        if any(bundle.id == listing.id for bundle in shelf.bundles()):
            return
        with locked(self.folder / ".lock"):
            canary = None if listing.canary is None else read_blob(self.source, listing.canary, self.patience)
            part = pull_blob(self.source, listing.tar, shelf.folder / INCOMING, self.patience)
            try:
                shelf.put(part, bundle_id=listing.id, name=listing.name, canary=canary)
            except InputError:
                part.unlink(missing_ok=True)
                raise

    def _refreshed(self) -> Updater:
        """All that is signed, verified and remembered."""
        self.metadata.mkdir(parents=True, exist_ok=True)
        for leftover in self.metadata.glob("tmp*"):
            leftover.unlink()
        trusted = self.folder / TRUSTED_ROOT
        root = self._root if self._root is not None else trusted.read_bytes()
        fetcher = _Fetcher(self.source, self.patience)
        try:
            updater = Updater(str(self.metadata), "metadata/", fetcher=fetcher, bootstrap=root)
            updater.refresh()
        except (RepositoryError, DownloadError) as error:
            raise self._refusal(error, fetcher.path) from error
        if not trusted.exists() or trusted.read_bytes() != root:
            write_bytes(trusted, root)
        for path in self.metadata.glob("*.json"):
            sync(path)
        sync(self.metadata)
        return updater

    def _refusal(self, error: Exception, path: str) -> RegistryError:
        if isinstance(error, ExpiredMetadataError) and (role := _ROLE.search(str(error))):
            path = f"metadata/{role[0]}.json"  # not the file that was read when it showed
        fault, text = next((fault, text) for kind, fault, text in _FAULTS if isinstance(error, kind))
        return RegistryError(
            fault, f"{self.source.name}/{path} {text} ({plain_text(error)}); nothing was changed"
        )


_ROLE = re.compile("|".join(ROLES))


class _Fetcher(FetcherInterface):
    """Brings metadata to `tuf` and knows which file was last."""

    def __init__(self, source: Source, patience: Patience) -> None:
        self._source = source
        self._patience = patience
        self.path = "root.json"

    def _fetch(self, url: str) -> Iterator[bytes]:
        self.path = url
        sink = BytesIO()
        try:
            download(
                self._source, Order(path=url, limit=MAX_METADATA_BYTES, exact=False), sink, self._patience
            )
        except RegistryError as error:
            if error.fault != "missing":
                raise
            raise DownloadHTTPError(str(error), 404) from error
        yield sink.getvalue()
