"""What a shelf knows of its bundles, as the one file that says it."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import ConfigDict, Field, TypeAdapter, with_config

from dekag.bundle.canonical import canonical_json
from dekag.bundle.manifest import Digest, Kind
from dekag.errors import InputError

SCHEMA: Final = 1
MAX_NOTES: Final = 256
"""Longest history of a kind, and most failures that are remembered."""
_STRICT = ConfigDict(strict=True, extra="forbid")


@with_config(_STRICT)
@dataclass(frozen=True, kw_only=True)
class Entry:
    """What the state says of one bundle.

    name: as its channel names it; the head of its id if it came another way.
    """

    id: Digest
    kind: Kind
    base_digest: Digest
    name: str
    bytes: Annotated[int, Field(ge=1)]
    pinned: bool = False


@with_config(_STRICT)
@dataclass(frozen=True, kw_only=True)
class State:
    """What state.json says.

    bundles: oldest first. history: for each kind those that were active, the active one last. bad: why bundles
    failed, by id; also of those that are gone, so that the next pull does not take them for new ones.
    """

    schema: Literal[1] = SCHEMA
    bundles: tuple[Entry, ...] = ()
    history: dict[Kind, tuple[Digest, ...]] = field(default_factory=dict)
    bad: dict[Digest, str] = field(default_factory=dict)

    def active(self, kind: Kind) -> str | None:
        """The active bundle of a kind."""
        return self.history.get(kind, (None,))[-1]

    def entry(self, bundle_id: str) -> Entry:
        """What is known of a bundle. Raises InputError if it is not on the shelf."""
        for entry in self.bundles:
            if entry.id == bundle_id:
                return entry
        raise InputError(f"bundle {bundle_id[:12]} is not on the shelf; pull it first")

    def with_entry(self, entry: Entry) -> "State":
        """The state with one bundle's entry changed, or a new one at the end."""
        if all(other.id != entry.id for other in self.bundles):
            return replace(self, bundles=(*self.bundles, entry))
        return replace(self, bundles=tuple(entry if e.id == entry.id else e for e in self.bundles))

    def with_history(self, kind: Kind, ids: tuple[str, ...]) -> "State":
        """The state with other bundles of a kind having been active, the last of them now."""
        others = {k: v for k, v in self.history.items() if k != kind}
        return replace(self, history={**others, kind: ids[-MAX_NOTES:]} if ids else others)

    def with_bad(self, bundle_id: str, reason: str) -> "State":
        """The state with a bundle noted as bad."""
        notes = [*self.bad.items(), (bundle_id, reason)]
        return replace(self, bad=dict(notes[-MAX_NOTES:]))

    def without(self, bundle_ids: set[str]) -> "State":
        """The state without some bundles."""
        gone = bundle_ids | self.bad.keys()
        retained = {kind: tuple(i for i in ids if i not in gone) for kind, ids in self.history.items()}
        return replace(
            self,
            bundles=tuple(entry for entry in self.bundles if entry.id not in bundle_ids),
            history={kind: ids for kind, ids in retained.items() if ids},
        )


_STATE: TypeAdapter[State] = TypeAdapter(State)


def read_state(path: Path, examine: Callable[[str], Entry | None]) -> State:
    """What a shelf's file says, brought up to date if an older dekag wrote it; an empty state if there is none.

    examine: the entry of a bundle by its id, from the bundle itself; None if there is no sound one.
    Raises InputError if the file is damaged, or a newer dekag wrote it.
    """
    if not path.exists():
        return State()
    raw = path.read_bytes()
    try:
        content = json.loads(raw)
        schema = content.get("schema", 0)
        newer = isinstance(schema, int) and schema > SCHEMA
        if not newer:
            return _STATE.validate_json(raw) if schema == SCHEMA else _migrated(content, examine)
    except (ValueError, AttributeError, TypeError, KeyError, RecursionError) as error:
        text = f"{path} is damaged; delete it, and the shelf starts anew with the bundles beside it"
        raise InputError(text) from error
    raise InputError(f"{path} was written by a newer dekag; upgrade dekag on this machine")


def state_bytes(state: State) -> bytes:
    """The state as it is written."""
    return canonical_json(_STATE.dump_python(state, mode="json")) + b"\n"


def _migrated(content: dict[str, Any], examine: Callable[[str], Entry | None]) -> State:
    """The state of a file without a schema: what it does not say of a bundle, the bundle says itself."""
    state = State()
    for old in content.get("bundles", ()):
        fields = {"id": old} if isinstance(old, str) else dict(old)
        if (entry := examine(fields["id"])) is not None:
            name, pinned = fields.get("name", entry.name), fields.get("pinned") is True
            state = state.with_entry(replace(entry, name=str(name), pinned=pinned))
    known = {entry.id: entry.kind for entry in state.bundles}
    active = {kind: [bundle_id] for kind, bundle_id in content.get("active", {}).items()}
    for kind, ids in {**active, **content.get("history", {})}.items():
        state = state.with_history(kind, tuple(i for i in ids if known.get(i) == kind))
    for bundle_id, reason in dict(content.get("bad", {})).items():
        state = state.with_bad(bundle_id, str(reason))
    return state
