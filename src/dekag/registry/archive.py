"""A registry as one tar, to carry where no network reaches: written from a registry, read into a folder that edges use.

metadata/               the signed files as they are published
targets/<sha256>        channels, bundles and canaries by the digest of their bytes

Names are of these forms alone and every member is a plain file; what is read is verified as a pull from a server is.
"""

import os
import re
import shutil
import tarfile
import tempfile
from collections.abc import Iterator, Sequence, Set
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from io import BufferedIOBase
from pathlib import Path
from typing import Final

from tuf.api.metadata import Metadata, Timestamp

from dekag.bundle.container import MAX_BYTES, plain_text
from dekag.bundle.sound import read_manifest
from dekag.errors import InputError
from dekag.registry.client import TRUSTED_ROOT, RegistryClient
from dekag.registry.download import Order, download, pull_blob, read_blob
from dekag.registry.faults import RegistryError
from dekag.registry.listing import Blob, Listing
from dekag.registry.moment import Moment, channel_names
from dekag.registry.signed import MAX_METADATA_BYTES, TIMESTAMP, metadata_path, parse_signed
from dekag.registry.source import FolderSource, Stream
from dekag.registry.storage import FolderStorage
from dekag.wire.files import beside, put_in_place, write_bytes

_WORK: Final = ".import-"
_BLOCK: Final = tarfile.BLOCKSIZE
_NAME = re.compile(
    r"metadata/(timestamp|[1-9][0-9]{0,8}\.(root|targets|snapshot))\.json|targets/[0-9a-f]{64}"
)
_VERSIONED = re.compile(r"([1-9][0-9]{0,8})\.root\.json")


def export_archive(url: str, out: Path, *, root: bytes, channels: Sequence[str] = ()) -> list[Listing]:
    """Write what some channels list, or all, with all that is needed to verify it; returns what is listed.

    The file appears whole or not at all. Raises RegistryError if the registry cannot be trusted or lacks a channel,
    OSError if the disk refuses.
    """
    with beside(out) as work:
        client = RegistryClient(url, work / "client", root=root)
        moment = client.moment()
        stage = work / "stage"
        (stage / "targets").mkdir(parents=True)
        listings = []
        for name in channels or channel_names(client.metadata):
            _stage_blob(moment, moment.channel_blob(name), stage)
            listings += moment.channel(name)
        for listing in listings:
            _stage_blob(moment, listing.tar, stage)
            if listing.canary is not None:
                _stage_blob(moment, listing.canary, stage)
        _stage_metadata(client, stage)
        _write_tar(stage, work / "tar")
        put_in_place(work / "tar", out)
    return listings


def import_archive(tar: Path, folder: Path, *, root: bytes | None = None) -> list[Listing]:
    """Put what an archive holds into a folder that edges use as their registry; returns what is listed.

    root: the registry's root.json, needed for the first import, and as old as that of any edge there. Readers see
    the old moment or the new one; an import that is killed can be made again. Raises RegistryError if what it holds
    is not signed, damaged, or older than what the folder holds; InputError if it is no archive or holds anything
    else; OSError if the disk refuses.
    """
    anchor = folder / TRUSTED_ROOT
    with FolderStorage(folder).alone(folder), _work_folder(folder) as work:
        stage, memory = work / "stage", work / "client"
        _unpack(tar, stage)
        _remember(folder, memory)
        trusted = root if root is not None or not anchor.exists() else anchor.read_bytes()
        client = RegistryClient(_Staged(folder=stage), memory, root=trusted)
        moment = client.moment()
        blobs, listings = _verified(moment, client.metadata, stage)
        signed = _signed(client.metadata)
        _refuse_strays(tar, stage, signed.keys(), {blob.sha256 for blob in blobs})
        write_bytes(anchor, (memory / TRUSTED_ROOT).read_bytes())
        for blob in blobs:
            _install(stage / "targets" / blob.sha256, folder / blob.path)
        for name, path in signed.items():
            _install(path, folder / "metadata" / name)
    return listings


@contextmanager
def _work_folder(folder: Path) -> Iterator[Path]:
    """A folder on the same disk, gone afterwards; what a killed import left of one goes first."""
    for leftover in folder.glob(f"{_WORK}*"):
        shutil.rmtree(leftover)
    with tempfile.TemporaryDirectory(prefix=_WORK, dir=folder, ignore_cleanup_errors=True) as work:
        yield Path(work)


@dataclass(frozen=True, kw_only=True)
class _Staged:
    """An unpacked archive as a registry: targets are found by the digest that their address begins with."""

    folder: Path

    @property
    def name(self) -> str:
        """What messages call it."""
        return "the archive"

    def open(self, path: str, *, start: int = 0, tag: str | None = None) -> AbstractContextManager[Stream]:
        """As `Source.open`."""
        if path.startswith("targets/"):
            path = f"targets/{path.rpartition('/')[2].partition('.')[0]}"
        return FolderSource(folder=self.folder).open(path, start=start, tag=tag)


def _stage_blob(moment: Moment, blob: Blob, stage: Path) -> None:
    target = stage / "targets" / blob.sha256
    if not target.exists():
        pull_blob(moment.source, blob, target.parent, moment.patience).rename(target)


def _stage_metadata(client: RegistryClient, stage: Path) -> None:
    """The verified files under their published names, and every root up to the newest, which verify each other."""
    target = stage / "metadata"
    target.mkdir()
    for role in ("snapshot", "targets"):
        raw = (client.metadata / f"{role}.json").read_bytes()
        (target / f"{Metadata.from_bytes(raw).signed.version}.{role}.json").write_bytes(raw)
    shutil.copy(client.metadata / "timestamp.json", target)
    newest = Metadata.from_bytes((client.metadata / "root.json").read_bytes()).signed.version
    for version in range(1, newest + 1):
        path = metadata_path("root", version)
        with (stage / path).open("w+b") as sink:
            order = Order(path=path, limit=MAX_METADATA_BYTES, exact=False)
            download(client.source, order, sink, client.patience)


def _write_tar(stage: Path, out: Path) -> None:
    """A tar without times or owners, the same for the same contents."""
    with tarfile.open(out, mode="x", format=tarfile.USTAR_FORMAT) as archive:
        for path in sorted(stage.glob("*/*")):
            member = tarfile.TarInfo(str(path.relative_to(stage)))
            member.size = path.stat().st_size
            with path.open("rb") as content:
                archive.addfile(member, content)


def _unpack(tar: Path, stage: Path) -> None:
    """Put the members of an archive into an empty folder, each once its name and size are found allowed."""
    for part in ("metadata", "targets"):
        (stage / part).mkdir(parents=True)
    with tar.open("rb") as file:
        for member in _members(tar, file):
            limit = MAX_METADATA_BYTES if member.name.startswith("metadata/") else MAX_BYTES
            plain = member.type == tarfile.REGTYPE and 0 <= member.size <= limit
            if not _NAME.fullmatch(member.name) or not plain:
                raise InputError(
                    f"{tar} is refused: '{plain_text(member.name)}' is no file of an exported registry"
                )
            if (stage / member.name).exists():
                raise InputError(f"{tar} is refused: {member.name} is there twice")
            with (stage / member.name).open("xb") as out:
                _copy(tar, file, out, member.size)
            file.seek(-member.size % _BLOCK, os.SEEK_CUR)


def _members(tar: Path, file: BufferedIOBase) -> Iterator[tarfile.TarInfo]:
    """The headers of a tar as they stand, without what extensions would make of them."""
    while (header := file.read(_BLOCK)) != bytes(_BLOCK):
        try:
            yield tarfile.TarInfo.frombuf(header, "ascii", "strict")
        except (tarfile.HeaderError, ValueError) as error:
            raise InputError(f"{tar} is no exported registry, or damaged: {plain_text(error)}") from error


def _copy(tar: Path, file: BufferedIOBase, out: BufferedIOBase, size: int) -> None:
    left = size
    while left:
        chunk = file.read(min(left, 1 << 20))
        if not chunk:
            raise InputError(f"{tar} is damaged: it ends too early; carry it again")
        out.write(chunk)
        left -= len(chunk)


def _remember(folder: Path, client: Path) -> None:
    """Give a client the memory of what a folder holds, so that nothing older is imported."""
    if not (folder / TIMESTAMP).exists():
        return
    (client / "metadata" / "root_history").mkdir(parents=True)
    raw = (folder / TIMESTAMP).read_bytes()
    (client / "metadata" / "timestamp.json").write_bytes(raw)
    version = parse_signed(Timestamp, str(folder / TIMESTAMP), raw).signed.snapshot_meta.version
    shutil.copy(folder / metadata_path("snapshot", version), client / "metadata" / "snapshot.json")
    for path in (folder / "metadata").glob("*.root.json"):
        if _VERSIONED.fullmatch(path.name):
            shutil.copy(path, client / "metadata" / "root_history")


def _verified(moment: Moment, metadata: Path, stage: Path) -> tuple[list[Blob], list[Listing]]:
    """All files of the channels that are there, once each is what was signed and every bundle is sound."""
    channels, listings = [], []
    for name in channel_names(metadata):
        blob = moment.channel_blob(name)
        if (stage / "targets" / blob.sha256).exists():
            channels.append(blob)
            listings += moment.channel(name)
    if not channels:
        raise RegistryError("missing", "the archive holds no channel; export it again")
    blobs = []
    for listing in listings:
        if listing.canary is not None:
            read_blob(moment.source, listing.canary, moment.patience)
            blobs.append(listing.canary)
        part = pull_blob(moment.source, listing.tar, stage.parent / "pulled", moment.patience)
        if read_manifest(part).id != listing.id:
            raise RegistryError("damaged", f"bundle {listing.id[:12]} of the archive is another bundle")
        blobs.append(listing.tar)
    return [*dict.fromkeys(blobs), *channels], listings


def _signed(metadata: Path) -> dict[str, Path]:
    """What a client has verified, by its published name, in the order in which readers may see it."""
    files = {path.name: path for path in (metadata / "root_history").iterdir()}
    for role in ("targets", "snapshot"):
        path = metadata / f"{role}.json"
        files[f"{Metadata.from_bytes(path.read_bytes()).signed.version}.{role}.json"] = path
    return {**files, "timestamp.json": metadata / "timestamp.json"}


def _refuse_strays(tar: Path, stage: Path, signed: Set[str], digests: set[str]) -> None:
    """Raise InputError if the archive holds what nothing signed names; roots before the trusted one may be there."""
    trusted = min(int(found[1]) for name in signed if (found := _VERSIONED.fullmatch(name)))
    for path in sorted(stage.glob("*/*")):
        found = _VERSIONED.fullmatch(path.name)
        known = signed if path.parent.name == "metadata" else digests
        if path.name not in known and not (found and int(found[1]) < trusted):
            raise InputError(f"{tar} is refused: nothing that is signed names {path.parent.name}/{path.name}")


def _install(path: Path, target: Path) -> None:
    """Copy a file to its place, whole and on the disk; contents may have several places."""
    write_bytes(target, path.read_bytes())
