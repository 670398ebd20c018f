"""The publisher's side of a registry: bundles as TUF targets, channels that list them, keys that change.

URL/metadata/             the four signed roles; timestamp.json is the only file that is ever replaced
URL/targets/              <sha256>.<id>.tar and <sha256>.<id>.canary.json
URL/targets/channels/     <sha256>.<channel>.json
"""

import re
import tempfile
from collections.abc import Callable
from copy import deepcopy
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from tuf.api.exceptions import LengthOrHashMismatchError
from tuf.api.metadata import Metadata, TargetFile

from dekag.bundle.container import MAX_BYTES, plain_text
from dekag.bundle.sound import pack, read_manifest
from dekag.errors import InputError, StepError
from dekag.registry.canary import Canary
from dekag.registry.expiry import expiry_of
from dekag.registry.faults import RegistryError
from dekag.registry.keys import ROLES, Keys, Lifetimes, Role, new_keys
from dekag.registry.listing import CHANNEL_FILE, MAX_CHANNEL_BYTES, Channel, Listed, check_channel, check_name
from dekag.registry.renewal import Renewal, renew
from dekag.registry.signed import TIMESTAMP, Signing, first_moment, first_root, now, read_signing, target_path
from dekag.registry.storage import Storage, open_storage


class Repository:
    """A registry and the keys to publish in it; its files are at the URL, or in a storage of one's own.

    Every change is one whole moment to readers; one that is killed can simply be made again. Methods raise
    RegistryError if what is published is not what the keys signed, InputError if a key is missing, OSError if the
    disk refuses.
    """

    def __init__(
        self,
        url: str,
        keys: Path,
        *,
        clock: Callable[[], datetime] = now,
        storage: Storage | None = None,
    ) -> None:
        self.url = url
        self._storage = open_storage(url) if storage is None else storage
        self._keys = Keys(folder=keys)
        self._clock = clock

    @staticmethod
    def init(
        url: str,
        keys: Path,
        *,
        threshold: int = 2,
        root_keys: int = 3,
        lifetimes: Lifetimes | None = None,
        clock: Callable[[], datetime] = now,
    ) -> "Repository":
        """Make keys and a registry without bundles; keys that an interrupted call left are used.

        Raises InputError if there is a registry, or something else in the folder of the keys.
        """
        repository = Repository(url, keys, clock=clock)
        if not (keys / "root.json").exists():
            with new_keys(keys, lifetimes or Lifetimes()) as fresh:
                expires = clock() + fresh.lifetimes.of("root")
                fresh.trust(first_root(fresh, threshold=threshold, root_keys=root_keys, expires=expires))
        storage = repository._storage
        with storage.alone(keys):
            if storage.read(TIMESTAMP, max_bytes=MAX_CHANNEL_BYTES) is not None:
                raise InputError(f"{url} is a registry already; publish in it, or choose another place")
            first_moment(storage, Keys(folder=keys), clock)
        return repository

    @property
    def root(self) -> bytes:
        """The newest root that the publisher trusts: what an edge needs for its first pull."""
        return self._keys.root

    def publish(
        self, bundle: Path | str, *, channel: str = "canary", name: str, canary: Canary | None = None
    ) -> str:
        """Publish a bundle and list it in a channel, in place of the one of its kind, base and name; returns its id.

        Raises InputError if the bundle is not sound.
        """
        check_channel(channel)
        check_name(name)
        raw, listed = _packed(bundle, name)
        with self._storage.alone(self._keys.folder):
            signing = self._read()
            custom = {"kind": listed.kind, "base_digest": listed.base_digest, "name": name}
            self._put(signing, f"{listed.id}.tar", raw, custom)
            if canary is not None:
                self._put(signing, f"{listed.id}.canary.json", canary.to_json(), {})
            self._relist(signing, self._channel(signing, channel).with_bundle(listed))
            signing.commit("targets")
        return listed.id

    def promote(self, bundle_id: str, *, to: str = "stable") -> str:
        """List a published bundle in a further channel, an older one too, to go back to it on purpose; returns its id.

        bundle_id: the beginning of it will do. Raises InputError if there is no such bundle.
        """
        check_channel(to)
        with self._storage.alone(self._keys.folder):
            signing = self._read()
            listed = _published(signing, bundle_id)
            self._relist(signing, self._channel(signing, to).with_bundle(listed))
            signing.commit("targets")
        return listed.id

    def withdraw(self, channel: str, bundle_id: str) -> str:
        """List a bundle no more in a channel; edges keep what they have pulled, and it can be promoted again.

        bundle_id: the beginning of it will do. Raises InputError if the channel does not list it.
        """
        with self._storage.alone(self._keys.folder):
            signing = self._read()
            listed = _published(signing, bundle_id)
            listing = self._channel(signing, channel)
            if listed.id not in {bundle.id for bundle in listing.bundles}:
                raise InputError(f"channel {channel} does not list bundle {listed.id[:12]}")
            self._relist(signing, listing.without(listed.id))
            signing.commit("targets")
        return listed.id

    def refresh(self, *, everything: bool = False) -> tuple[Renewal, ...]:
        """Sign anew, before it expires, what the keys at hand can; returns what became of each of the four roles.

        Snapshot and timestamp always; targets and root once less than half of their lifetime is left, or with
        everything. What lacks its keys is no error here; see `renewal.require_fresh`.
        """
        with self._storage.alone(self._keys.folder):
            return renew(self._read(), everything=everything)

    def refresh_timestamp(self) -> None:
        """Sign snapshot and timestamp anew. Raises InputError if a key of theirs is missing."""
        with self._storage.alone(self._keys.folder):
            self._read().commit("snapshot")

    def renew(self) -> None:
        """Sign all four roles anew. Raises InputError if a key is missing."""
        with self._storage.alone(self._keys.folder):
            signing = self._read()
            signing.commit_root(deepcopy(signing.root.signed), [])
            signing.commit("targets")

    def rotate_keys(self, role: Role) -> None:
        """Replace the keys of a role by as many new ones; edges follow by themselves.

        Between the roots with both keys and with the new ones alone the role is signed anew, so that readers can
        go on at every moment. Raises InputError if the root keys at hand are too few.
        """
        with self._storage.alone(self._keys.folder):
            signing = self._read()
            root = signing.root.signed
            old_keys = list(root.roles[role].keyids)
            signers = [self._keys.generate(role) for _ in old_keys]
            before = deepcopy(root)
            for signer in signers:
                root.add_key(signer.public_key, role)
            if role != "root":
                signing.commit_root(before, [])
                signing.commit(role)
                before = deepcopy(root)
            for key_id in old_keys:
                root.revoke_key(key_id, role)
            signing.commit_root(before, signers if role == "root" else [])
            for key_id in old_keys:
                self._keys.retire(role, key_id)

    def describe(self) -> dict[str, Any]:
        """What is published and until when it is signed, as JSON values.

        Of each role also how many days are left, and whether it is "good", to "renew soon" or "expired".
        """
        signing, now = self._read(), self._clock()
        parts: list[Metadata[Any]] = [signing.root, signing.targets, signing.snapshot, signing.timestamp]
        expiries = [expiry_of(role, part) for role, part in zip(ROLES, parts, strict=True)]
        channels = [self._channel(signing, name) for name in _channels(signing)]
        return {
            "registry": self.url,
            "roles": {
                expiry.role: {
                    "version": expiry.version,
                    "expires": expiry.expires.isoformat(),
                    "days_left": round(expiry.left(now) / timedelta(days=1), 2),
                    "standing": expiry.standing(now, self._keys.lifetimes.of(expiry.role)),
                }
                for expiry in expiries
            },
            "channels": [
                {
                    "channel": channel.channel,
                    "version": channel.version,
                    "bundles": [vars(bundle) for bundle in channel.bundles],
                }
                for channel in channels
            ],
        }

    def _read(self) -> Signing:
        return read_signing(self._storage, self._keys, self._clock)

    def _put(self, signing: Signing, name: str, raw: bytes, custom: dict[str, str]) -> None:
        """Write a file under the digest of its bytes and name it in targets."""
        target = TargetFile.from_data(name, raw, ["sha256"])
        if custom:
            target.unrecognized_fields["custom"] = custom
        self._storage.write(target_path(target), raw)
        signing.targets.signed.targets[name] = target

    def _relist(self, signing: Signing, channel: Channel) -> None:
        self._put(signing, f"channels/{channel.channel}.json", channel.to_json(), {})

    def _channel(self, signing: Signing, name: str) -> Channel:
        """A channel as it is published, or an empty one."""
        target = signing.targets.signed.targets.get(f"channels/{name}.json")
        if target is None:
            return Channel(channel=name, version=0, bundles=())
        raw = self._storage.read(target_path(target), max_bytes=MAX_CHANNEL_BYTES)
        if raw is None:
            raise RegistryError("missing", f"{target_path(target)} is named in targets, but not there")
        try:
            target.verify_length_and_hashes(raw)
        except LengthOrHashMismatchError as error:
            raise RegistryError("damaged", f"{target_path(target)} is damaged: {error}") from error
        return Channel.from_json(raw, channel=name)


def _channels(signing: Signing) -> list[str]:
    """Names of the channels."""
    return [found[1] for name in signing.targets.signed.targets if (found := CHANNEL_FILE.fullmatch(name))]


def _published(signing: Signing, prefix: str) -> Listed:
    """The one published bundle whose id begins so, as it was listed last."""
    if not re.fullmatch("[0-9a-f]{6,64}", prefix):
        raise InputError(f"a bundle is named by 6 to 64 digits of its id, got '{plain_text(prefix)}'")
    targets = signing.targets.signed.targets
    found = [name for name in targets if name.endswith(".tar") and name.startswith(prefix)]
    if len(found) != 1:
        raise StepError(f"{len(found)} published bundles begin with {prefix}", "list what is published")
    custom = targets[found[0]].custom
    return Listed(
        id=found[0].removesuffix(".tar"),
        kind=custom["kind"],
        base_digest=custom["base_digest"],
        name=custom["name"],
    )


def _packed(bundle: Path | str, name: str) -> tuple[bytes, Listed]:
    """The one tar of a bundle's contents, and how a channel lists it."""
    with tempfile.TemporaryDirectory() as folder:
        tar = Path(folder) / "bundle.tar"
        pack(bundle, tar)
        manifest = read_manifest(tar)
        raw = tar.read_bytes()
    if len(raw) > MAX_BYTES:
        raise InputError(f"a bundle has at most {MAX_BYTES} bytes packed, got {len(raw)}")
    return raw, Listed(id=manifest.id, kind=manifest.kind, base_digest=manifest.base_digest, name=name)
