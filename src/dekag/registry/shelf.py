"""The edge's bundles on its disk: which there are, which is active, which were before, which failed.

FOLDER/<id>.tar             a packed bundle, named by the digest of its contents
FOLDER/<id>.canary.json     its canary, if it was published with one
FOLDER/state.json           all else; it is replaced as a whole, so that a kill leaves the old state or the new one
"""

import errno
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from dekag.bundle.manifest import Kind
from dekag.bundle.sound import read_manifest
from dekag.errors import InputError
from dekag.registry.canary import Canary
from dekag.registry.lock import remove_unfinished
from dekag.registry.state import Entry, State, read_state, state_bytes
from dekag.wire.files import put_in_place, sync, write_bytes
from dekag.wire.lock import locked

STATE = "state.json"
LOCK = ".lock"
INCOMING: Final = "incoming"
"""Folder for what is being pulled: the same disk, so that a whole file only needs a new name."""
STALE_S: Final = 7 * 86400
READ_ONLY: Final = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})
"""What the system says of a folder that this process may read alone."""
_ID = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class Shelved(Entry):
    """A bundle on the shelf, whether it is the active one of its kind, and why it failed if it did."""

    active: bool
    bad: str | None


class Shelf:
    """The bundles of an edge. Several processes may use one folder; each change is whole and on the disk at once.

    keep: how many bundles of a kind `prune` leaves beside those that are pinned, active or next to roll back to.
    One that cannot be written is read as it is. Raises InputError if state.json is not one.
    """

    def __init__(self, folder: Path, *, keep: int = 3) -> None:
        self.folder = folder
        self.keep = keep
        try:
            with self._changing():
                pass  # what a kill left behind is put right under the lock
        except OSError as error:
            # a folder that cannot be written, but is filled, can be used
            if error.errno not in READ_ONLY or not (self.folder / STATE).exists():
                raise
            self._read()

    def bundles(self) -> list[Shelved]:
        """All bundles, oldest first."""
        state = self._read()
        return [
            Shelved(**vars(e), active=state.active(e.kind) == e.id, bad=state.bad.get(e.id))
            for e in state.bundles
        ]

    def active(self, kind: Kind) -> str | None:
        """Id of the active bundle of a kind."""
        return self._read().active(kind)

    def path(self, bundle_id: str) -> Path:
        """The packed bundle. Raises InputError if it is not on the shelf."""
        return self._tar(self._read().entry(bundle_id).id)

    def canary(self, bundle_id: str) -> Canary | None:
        """The canary that came with a bundle. Raises InputError if there is no such bundle or it is damaged."""
        path = self._canary(self._read().entry(bundle_id).id)
        return Canary.from_json(path.read_bytes()) if path.exists() else None

    def put(self, tar: Path, *, name: str, bundle_id: str | None = None, canary: bytes | None = None) -> str:
        """Move a packed bundle onto the shelf, once all of it is found sound; returns its id.

        The file must be on the shelf's disk. A bundle of the same id is replaced.
        Raises InputError if it is no bundle or not the one of `bundle_id`, or the canary is none.
        """
        bundle = read_manifest(tar)
        if bundle_id not in (None, bundle.id):
            raise InputError(
                f"{tar} holds bundle {bundle.id[:12]}, not {str(bundle_id)[:12]}; nothing was changed"
            )
        if canary is not None:
            Canary.from_json(canary)
        sync(tar)
        entry = Entry(
            id=bundle.id,
            kind=bundle.kind,
            base_digest=bundle.base_digest,
            name=name,
            bytes=tar.stat().st_size,
        )
        with self._changing() as state:
            if canary is not None:
                write_bytes(self._canary(entry.id), canary)
            put_in_place(tar, self._tar(entry.id))
            pinned = any(e.pinned for e in state.bundles if e.id == entry.id)
            self._write(state.with_entry(replace(entry, pinned=pinned)))
        return entry.id

    def activate(self, bundle_id: str) -> None:
        """Make a bundle the active one of its kind. Raises InputError if it is not there or failed its test."""
        with self._changing() as state:
            entry = state.entry(bundle_id)
            if entry.id in state.bad:
                raise InputError(
                    f"bundle {bundle_id[:12]} failed its test ({state.bad[entry.id]}); publish another one"
                )
            earlier = tuple(i for i in state.history.get(entry.kind, ()) if i != entry.id)
            self._write(state.with_history(entry.kind, (*earlier, entry.id)))

    def roll_back(self, kind: Kind) -> str | None:
        """Make the one before the active bundle active, of those that did not fail; None if there is none."""
        with self._changing() as state:
            earlier = tuple(i for i in state.history.get(kind, ())[:-1] if i not in state.bad)
            self._write(state.with_history(kind, earlier))
        return earlier[-1] if earlier else None

    def pin(self, bundle_id: str) -> None:
        """Keep a bundle from being removed."""
        with self._changing() as state:
            self._write(state.with_entry(replace(state.entry(bundle_id), pinned=True)))

    def unpin(self, bundle_id: str) -> None:
        """Let a bundle be removed again."""
        with self._changing() as state:
            self._write(state.with_entry(replace(state.entry(bundle_id), pinned=False)))

    def mark_bad(self, bundle_id: str, reason: str) -> None:
        """Note that a bundle failed its test: it cannot become active, even if it is pulled again."""
        with self._changing() as state:
            self._write(state.with_bad(state.entry(bundle_id).id, reason))

    def remove(self, bundle_id: str) -> None:
        """Delete a bundle. Raises InputError if it is active or pinned."""
        with self._changing() as state:
            entry = state.entry(bundle_id)
            if entry.pinned or state.active(entry.kind) == entry.id:
                raise InputError(
                    f"bundle {bundle_id[:12]} is {'pinned; unpin it' if entry.pinned else 'active; activate another'}"
                    " before it is removed"
                )
            self._drop(state, {entry.id})

    def prune(self) -> list[str]:
        """Delete old bundles, and pulls that no one has gone on with for a week; returns the ids of the bundles."""
        with self._changing() as state:
            for part in (self.folder / INCOMING).glob("*.part"):
                if time.time() - part.stat().st_mtime > STALE_S:
                    part.unlink()
            retained = {i for ids in state.history.values() for i in ids[-2:]}
            retained |= {entry.id for entry in state.bundles if entry.pinned}
            for kind in {entry.kind for entry in state.bundles}:
                recent = [entry.id for entry in state.bundles if entry.kind == kind]
                retained |= set(recent[max(0, len(recent) - self.keep) :])
            old = [entry.id for entry in state.bundles if entry.id not in retained]
            self._drop(state, set(old))
        return old

    def verify(self) -> list[str]:
        """Read every bundle and delete those that the disk has damaged; returns their ids.

        Where the active one was damaged, the one before it is active afterwards.
        """
        with self._changing() as state:
            lost = [entry.id for entry in state.bundles if self._examine(entry.id) is None]
            self._drop(state, set(lost))
        return lost

    def _drop(self, state: State, bundle_ids: set[str]) -> None:
        """Delete the files of bundles, then forget them: what a kill between leaves is forgotten by the next change."""
        for bundle_id in bundle_ids:
            self._tar(bundle_id).unlink(missing_ok=True)
            self._canary(bundle_id).unlink(missing_ok=True)
        if bundle_ids:
            self._write(state.without(bundle_ids))

    @contextmanager
    def _changing(self) -> Iterator[State]:
        """The state under the lock, after what a kill left behind is put right."""
        with locked(self.folder / LOCK):
            remove_unfinished(self.folder)
            yield self._recovered(self._read())

    def _recovered(self, state: State) -> State:
        """The state of the files that are there: lost ones are forgotten, sound ones that no one noted are taken up."""
        known = {entry.id for entry in state.bundles}
        found = {path.stem for path in self.folder.glob("*.tar") if _ID.fullmatch(path.stem)}
        if found == known:
            return state
        state = state.without(known - found)
        for bundle_id in sorted(found - known):
            entry = self._examine(bundle_id)
            if entry is None:
                self._tar(bundle_id).unlink()
            else:
                state = state.with_entry(entry)
        self._write(state)
        return state

    def _examine(self, bundle_id: str) -> Entry | None:
        """An entry for a file that no one noted, if it is the bundle that its name says."""
        tar = self._tar(bundle_id)
        try:
            bundle = read_manifest(tar)
        except InputError:
            return None
        if bundle.id != bundle_id:
            return None
        return Entry(
            id=bundle_id,
            kind=bundle.kind,
            base_digest=bundle.base_digest,
            name=bundle_id[:12],
            bytes=tar.stat().st_size,
        )

    def _read(self) -> State:
        return read_state(self.folder / STATE, self._examine)

    def _write(self, state: State) -> None:
        write_bytes(self.folder / STATE, state_bytes(state))

    def _tar(self, bundle_id: str) -> Path:
        return self.folder / f"{bundle_id}.tar"

    def _canary(self, bundle_id: str) -> Path:
        return self.folder / f"{bundle_id}.canary.json"
