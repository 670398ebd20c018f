"""Whether what a service draws is aligned, and with what: one state, in one word, wherever it is told."""

from dataclasses import dataclass
from typing import Any, Literal

from dekag.bundle.manifest import Kind

__all__ = ["STATES", "Alignment", "State"]

State = Literal["aligned", "pinned", "stale", "unaligned"]
"""aligned: with the update that is to be used. pinned: with one that an operator keeps, whatever the channel says.
stale: with one that is older than the channel says, or while what the registry signed has expired.
unaligned: with none."""
STATES: tuple[State, ...] = ("aligned", "pinned", "stale", "unaligned")


@dataclass(frozen=True, kw_only=True)
class Alignment:
    """The state of one kind of update. bundle: id of the update. reason: one line, empty only if it is aligned."""

    kind: Kind
    state: State
    bundle: str | None
    reason: str = ""

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return {"kind": self.kind, "state": self.state, "bundle": self.bundle, "reason": self.reason}
