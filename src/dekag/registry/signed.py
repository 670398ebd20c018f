"""The four signed files of a registry as its publisher sees them: read and verified, changed, signed, written.

Readers see one moment at a time: every file but timestamp.json has its version in its name and is there before the
timestamp that leads to it is replaced.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from securesystemslib.signer import CryptoSigner
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, MetaFile, Root, Signed, Snapshot, TargetFile, Targets, Timestamp

from dekag.errors import InputError
from dekag.registry.faults import RegistryError
from dekag.registry.keys import ROOT_FILE, Keys, Role
from dekag.registry.storage import Storage

MAX_METADATA_BYTES: Final = 5_000_000
"""Largest signed file, as the reader of `tuf` has it."""
TIMESTAMP: Final = "metadata/timestamp.json"


def now() -> datetime:
    """The time, to the second."""
    return datetime.now(UTC).replace(microsecond=0)


def metadata_path(role: Role, version: int) -> str:
    """Where a version of a signed file lies, other than the timestamp."""
    return f"metadata/{version}.{role}.json"


@dataclass(frozen=True, kw_only=True)
class Signing:
    """The registry's signed files at one moment; every method that writes leaves readers a whole moment.

    The four are changed in place, then committed.
    """

    storage: Storage
    keys: Keys
    clock: Callable[[], datetime]
    root: Metadata[Root]
    targets: Metadata[Targets]
    snapshot: Metadata[Snapshot]
    timestamp: Metadata[Timestamp]

    def commit(self, lowest: Role) -> None:
        """Sign anew and publish one role and those above it, the timestamp last. Not for the root."""
        targets, snapshot, timestamp = self.targets.signed, self.snapshot.signed, self.timestamp.signed
        if lowest == "targets":
            raw = self._renewed("targets", self.targets)
            snapshot.meta["targets.json"] = MetaFile.from_data(targets.version, raw, ["sha256"])
            self.storage.write(metadata_path("targets", targets.version), raw)
        if lowest in ("targets", "snapshot"):
            raw = self._renewed("snapshot", self.snapshot)
            timestamp.snapshot_meta = MetaFile.from_data(snapshot.version, raw, ["sha256"])
            self.storage.write(metadata_path("snapshot", snapshot.version), raw)
        self.storage.write(TIMESTAMP, self._renewed("timestamp", self.timestamp))

    def commit_root(self, old: Root, signers: list[CryptoSigner]) -> None:
        """Publish the next root, signed by the keys of the old one and its own; readers follow it at once.

        signers: those of new keys. Raises InputError if the keys at hand are too few for either.
        """
        root = self.root.signed
        root.version, root.expires = old.version + 1, self._expiry("root")
        self.root.signatures.clear()
        held = [self.keys.signer("root", key_id) for key_id in old.roles["root"].keyids]
        for signer in [*(signer for signer in held if signer is not None), *signers]:
            self.root.sign(signer, append=True)
        result = root.get_root_verification_result(old, self.root.signed_bytes, self.root.signatures)
        if not result:
            wanted = max(old.roles["root"].threshold, root.roles["root"].threshold)
            raise InputError(
                f"a new root needs {wanted} root keys, but {self.keys.folder} holds"
                f" {sum(signer is not None for signer in held)}; put more of them there"
            )
        raw = self.root.to_bytes()
        self.storage.write(metadata_path("root", root.version), raw)
        self.keys.trust(raw)

    def _renewed(self, role: Role, metadata: Metadata[Any]) -> bytes:
        """The next version of a role's file."""
        metadata.signed.version += 1
        metadata.signed.expires = self._expiry(role)
        sign(metadata, role, self.root.signed, self.keys)
        return metadata.to_bytes()

    def _expiry(self, role: Role) -> datetime:
        return self.clock() + self.keys.lifetimes.of(role)


def sign(metadata: Metadata[Any], role: Role, root: Root, keys: Keys) -> None:
    """Sign with all keys of the role that are at hand. Raises InputError if they are too few."""
    wanted = root.roles[role]
    held = [keys.signer(role, key_id) for key_id in wanted.keyids]
    signers = [signer for signer in held if signer is not None]
    if len(signers) < wanted.threshold:
        raise InputError(
            f"to sign {role} takes {wanted.threshold} of its keys, but {keys.folder} holds {len(signers)};"
            " put them there"
        )
    metadata.signatures.clear()
    for signer in signers:
        metadata.sign(signer, append=True)


def read_signing(storage: Storage, keys: Keys, clock: Callable[[], datetime]) -> Signing:
    """What is published, once every signature is found to be that of a key that the publisher's root names.

    Expiry does not count: who publishes may renew what has expired. Raises RegistryError if anything is missing
    or was changed by someone else.
    """
    root = _newest_root(storage, keys)
    timestamp = _verified(storage, root, Timestamp, TIMESTAMP, None)
    link = timestamp.signed.snapshot_meta
    snapshot = _verified(storage, root, Snapshot, metadata_path("snapshot", link.version), link)
    link = snapshot.signed.meta["targets.json"]
    targets = _verified(storage, root, Targets, metadata_path("targets", link.version), link)
    return Signing(
        storage=storage,
        keys=keys,
        clock=clock,
        root=root,
        targets=targets,
        snapshot=snapshot,
        timestamp=timestamp,
    )


def first_root(keys: Keys, *, threshold: int, root_keys: int, expires: datetime) -> bytes:
    """Version 1 of a root, with new keys: so many for root, of which `threshold` sign, and one for each other role.

    Raises InputError unless 1 <= threshold <= root_keys.
    """
    if not 1 <= threshold <= root_keys:
        raise InputError(f"threshold must be 1 to the {root_keys} root keys, got {threshold}")
    root = Root(expires=expires, consistent_snapshot=True)
    counts: dict[Role, int] = {"root": root_keys, "targets": 1, "snapshot": 1, "timestamp": 1}
    for role, count in counts.items():
        for _ in range(count):
            root.add_key(keys.generate(role).public_key, role)
    root.roles["root"].threshold = threshold
    metadata = Metadata(root)
    sign(metadata, "root", root, keys)
    return metadata.to_bytes()


def first_moment(storage: Storage, keys: Keys, clock: Callable[[], datetime]) -> None:
    """Publish a registry without bundles, whose root the keys' folder holds.

    Raises InputError if those keys belong to a registry that has changed its root since.
    """
    root = parse_signed(Root, str(keys.folder / ROOT_FILE), keys.root)
    if root.signed.version != 1:
        raise InputError(
            f"the keys in {keys.folder} are those of a registry that is not here; restore it, or make other keys"
        )
    storage.write(metadata_path("root", root.signed.version), keys.root)
    targets, snapshot, timestamp = Targets(), Snapshot(), Timestamp()
    for signed in (targets, snapshot, timestamp):
        signed.version = 0  # commit makes it 1
    Signing(
        storage=storage,
        keys=keys,
        clock=clock,
        root=root,
        targets=Metadata(targets),
        snapshot=Metadata(snapshot),
        timestamp=Metadata(timestamp),
    ).commit("targets")


def _newest_root(storage: Storage, keys: Keys) -> Metadata[Root]:
    """The last of the chain of roots that begins with the publisher's own."""
    root = parse_signed(Root, str(keys.folder / ROOT_FILE), keys.root)
    while True:
        path = metadata_path("root", root.signed.version + 1)
        raw = storage.read(path, max_bytes=MAX_METADATA_BYTES)
        if raw is None:
            return root
        following = parse_signed(Root, path, raw)
        result = following.signed.version == root.signed.version + 1 and (
            following.signed.get_root_verification_result(
                root.signed, following.signed_bytes, following.signatures
            )
        )
        if not result:
            raise RegistryError("signature", f"{path} is not signed by enough keys of the root before it")
        keys.trust(raw)
        root = following


def _verified(
    storage: Storage, root: Metadata[Root], kind: type[Signed], path: str, link: MetaFile | None
) -> Metadata[Any]:
    raw = storage.read(path, max_bytes=MAX_METADATA_BYTES)
    if raw is None:
        raise RegistryError("missing", f"the registry has no {path}; make a registry first")
    metadata = parse_signed(kind, path, raw)
    try:
        if link is not None:
            link.verify_length_and_hashes(raw)
        root.signed.verify_delegate(kind.type, metadata.signed_bytes, metadata.signatures)
    except RepositoryError as error:
        raise RegistryError("signature", f"{path} is not what its publisher signed: {error}") from error
    return metadata


def parse_signed(kind: type[Signed], path: str, raw: bytes) -> Metadata[Any]:
    """A signed file of one role; its signatures are not looked at. Raises RegistryError if it is none."""
    try:
        metadata = Metadata[Any].from_bytes(raw)
    except RepositoryError as error:
        raise RegistryError("damaged", f"{path} is damaged: {error}") from error
    if metadata.signed.type != kind.type:
        raise RegistryError("damaged", f"{path} is a file of role {metadata.signed.type}")
    return metadata


def target_path(target: TargetFile) -> str:
    """Where a target lies: its name with the digest of its bytes before it."""
    folder, slash, name = target.path.rpartition("/")
    return f"targets/{folder}{slash}{target.hashes['sha256']}.{name}"
