"""What a registry says at one moment, verified: its channels and where the files that they list lie."""

from dataclasses import dataclass
from pathlib import Path

from tuf.api.metadata import Metadata, TargetFile, Targets
from tuf.ngclient import Updater

from dekag.bundle.container import plain_text
from dekag.registry.canary import MAX_CANARY_BYTES
from dekag.registry.download import Patience, read_blob
from dekag.registry.faults import RegistryError
from dekag.registry.listing import CHANNEL_FILE, MAX_CHANNEL_BYTES, Blob, Channel, Listed, Listing
from dekag.registry.signed import target_path
from dekag.registry.source import Source


@dataclass(frozen=True, kw_only=True)
class Moment:
    """The signed files of a registry that belong together.

    max_bytes: largest bundle that a listing may be of.
    """

    updater: Updater
    source: Source
    patience: Patience
    max_bytes: int

    def channel(self, name: str) -> list[Listing]:
        """What a channel lists.

        Raises RegistryError if there is no such channel, or it lists what is not published or too large.
        """
        raw = read_blob(self.source, self.channel_blob(name), self.patience)
        channel = Channel.from_json(raw, channel=name)
        return [self._listing(channel, listed) for listed in channel.bundles]

    def channel_blob(self, name: str) -> Blob:
        """Where the file of a channel lies. Raises RegistryError if there is no such channel."""
        target = self.updater.get_targetinfo(f"channels/{name}.json")
        if target is None:
            raise RegistryError("missing", f"{self.source.name} has no channel {name}")
        return _blob(target, MAX_CHANNEL_BYTES)

    def _listing(self, channel: Channel, listed: Listed) -> Listing:
        tar = self.updater.get_targetinfo(f"{listed.id}.tar")
        canary = self.updater.get_targetinfo(f"{listed.id}.canary.json")
        if tar is None:
            raise RegistryError(
                "missing", f"channel {channel.channel} lists bundle {listed.id[:12]}, which is not published"
            )
        return Listing(
            **vars(listed),
            channel=channel.channel,
            version=channel.version,
            tar=_blob(tar, self.max_bytes),
            canary=None if canary is None else _blob(canary, MAX_CANARY_BYTES),
        )


def channel_names(metadata: Path) -> list[str]:
    """The channels that a client's verified metadata name."""
    targets = Metadata[Targets].from_bytes((metadata / "targets.json").read_bytes()).signed.targets
    return sorted(found[1] for path in targets if (found := CHANNEL_FILE.fullmatch(path)))


def _blob(target: TargetFile, limit: int) -> Blob:
    """Where a target lies, once it has a digest and is not too large."""
    if "sha256" not in target.hashes or target.length > limit:
        raise RegistryError(
            "length", f"{plain_text(target.path)} has {target.length} bytes, at most {limit} are pulled"
        )
    return Blob(path=target_path(target), bytes=target.length, sha256=target.hashes["sha256"])
