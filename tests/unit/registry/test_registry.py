"""A registry in use: what is published arrives, keys change, archives carry it, and errors say what to do."""

import io
import json
import shutil
import tarfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from command_line import dekag
from published_registry import CANARY, HASTE, RegistrySetup, before, check_shelf, http_server, make_bundle

from dekag.bundle.bundle import load_bundle
from dekag.registry import Lifetimes, RegistryClient, RegistryError, Repository, Shelf
from dekag.registry.archive import export_archive, import_archive
from dekag.registry.keys import ROLES, Role
from dekag.registry.source import open_source
from dekag.registry.storage import FolderStorage
from dekag.types import InputError
from dekag.world import shipped


@pytest.fixture
def setup(tmp_path: Path) -> RegistrySetup:
    return RegistrySetup(tmp_path)


def test_what_is_published_arrives(setup: RegistrySetup) -> None:
    """Through a folder, a file:// address and HTTP alike: the bundle, its name and its canary."""
    bundle = setup.publish()
    with http_server(setup.registry) as server:
        addresses = (setup.registry, f"file://{setup.registry}", f"http://127.0.0.1:{server.port}/")
        for number, address in enumerate(addresses):
            assert setup.pull(address, name=str(number)) == [bundle]
            shelf = setup.shelf(str(number))
            assert load_bundle(shelf.path(bundle)).id == bundle
            assert shelf.canary(bundle) == CANARY
            assert [entry.name for entry in shelf.bundles()] == ["cala"]
            assert setup.client(address, name=str(number)).channel("stable")[0].version == 1


def test_a_channel_has_one_bundle_of_a_name(setup: RegistrySetup) -> None:
    """The next one takes its place; another name, base or channel does not."""
    first, second = setup.publish(), setup.publish()
    other = setup.publish(name="other")
    assert [listing.id for listing in setup.client().channel("stable")] == [second, other]
    make_bundle(setup.folder / "base", base="f" * 64)
    third = setup.repository.publish(setup.folder / "base", channel="stable", name="cala")
    assert {listing.id for listing in setup.client().channel("stable")} == {second, other, third}
    setup.repository.promote(first[:9])
    assert {listing.id for listing in setup.client().channel("stable")} == {first, other, third}
    setup.repository.withdraw("stable", third)
    setup.repository.promote(third, to="canary")
    assert {listing.id for listing in setup.client().channel("stable")} == {first, other}
    assert [listing.id for listing in setup.client().channel("canary")] == [third]
    with pytest.raises(InputError, match="does not list"):
        setup.repository.withdraw("canary", first)
    with pytest.raises(RegistryError, match="no channel none"):
        setup.client().channel("none")


def test_an_edge_says_who_it_is(setup: RegistrySetup) -> None:
    """For the ledger of a cloud that serves the registry."""
    bundle = setup.publish()
    with http_server(setup.registry) as server:
        source = open_source(f"http://127.0.0.1:{server.port}", edge="edge-1")
        client = RegistryClient(source, setup.folder / "edge" / "registry", root=setup.root)
        assert [listing.id for listing in client.channel("stable")] == [bundle]
        assert set(server.edges) == {"edge-1"}


def test_publishing_again_changes_no_file_of_targets(setup: RegistrySetup) -> None:
    """Same contents, same addresses: a publish can simply be repeated."""
    setup.publish(seed=0)
    files = {path: path.read_bytes() for path in setup.registry.glob("targets/*.*")}
    setup.publish(seed=0)
    assert {path: path.read_bytes() for path in setup.registry.glob("targets/*.*")} == files


@pytest.mark.parametrize("role", ROLES)
def test_keys_rotate(setup: RegistrySetup, role: str) -> None:
    """An edge follows by itself, an edge that slept through it too, and a new one with the first root."""
    first = setup.publish()
    setup.pull()
    shutil.copytree(setup.folder / "edge", setup.folder / "sleeper")
    old = {path.name for path in setup.keys.glob("*.pem")}
    setup.repository.rotate_keys(role)
    setup.repository.rotate_keys(role)
    assert setup.pull() == [first]
    assert len({path.name for path in setup.keys.glob("*.pem")} & old) == (3 if role == "root" else 5)
    second = setup.publish()
    for name in ("edge", "sleeper", "fresh"):
        assert setup.pull(name=name) == [second]
        check_shelf(setup.shelf(name))


class KilledStorage(FolderStorage):
    """A folder whose publisher is killed after some files; `look` is called after each."""

    def __init__(self, folder: Path, look: Callable[[], None]) -> None:
        super().__init__(folder)
        self.look = look
        self.left = 0

    def write(self, path: str, raw: bytes) -> None:
        super().write(path, raw)
        self.left -= 1
        self.look()
        if self.left == 0:
            raise KeyboardInterrupt


def test_a_kill_within_a_rotation_leaves_readers_a_whole_moment(setup: RegistrySetup) -> None:
    """After each file that a rotation writes, a reader is content; and the rotation can be made again."""
    bundle = setup.publish()

    def look() -> None:
        assert [listing.id for listing in setup.client().channel("stable")] == [bundle]

    storage = KilledStorage(setup.registry, look)
    repository = Repository(str(setup.registry), setup.keys, clock=setup.clock, storage=storage)
    roles: tuple[Role, ...] = ("timestamp", "snapshot", "targets", "root")
    for role in roles:
        for left in (1, 2, 3):
            storage.left = left
            with suppress(KeyboardInterrupt):
                repository.rotate_keys(role)
            storage.left = 0
            repository.rotate_keys(role)
    assert setup.pull() == [bundle]


def test_root_keys_can_be_elsewhere(setup: RegistrySetup) -> None:
    """Publishing needs none of them; a new root needs as many as the threshold, and says so."""
    roots = sorted(setup.keys.glob("root-*.pem"))
    assert len(roots) == 3
    safe = setup.folder / "safe"
    safe.mkdir()
    for path in roots[:2]:
        shutil.move(path, safe)
    bundle = setup.publish()
    setup.repository.refresh_timestamp()
    with pytest.raises(InputError, match=r"a new root needs 2 root keys, but .* holds 1"):
        setup.repository.rotate_keys("timestamp")
    shutil.move(safe / roots[0].name, setup.keys)
    setup.repository.rotate_keys("timestamp")
    setup.repository.renew()
    assert setup.pull() == [bundle]
    for path in setup.keys.glob("targets-*.pem"):
        path.unlink()
    with pytest.raises(InputError, match="to sign targets takes 1 of its keys"):
        setup.publish()


def test_keys_are_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mode 0600, and a passphrase that is asked for."""
    monkeypatch.setenv("DEKAG_KEY_PASSPHRASE", "correct horse")
    setup = RegistrySetup(tmp_path)
    for path in setup.keys.glob("*.pem"):
        assert path.stat().st_mode & 0o777 == 0o600
        assert path.read_bytes().startswith(b"-----BEGIN ENCRYPTED PRIVATE KEY")
    (setup.keys / ".part-9-root-0.pem").write_text("half a key, of a rotation that was killed")
    setup.publish()
    assert not list(setup.keys.glob(".part-*"))
    for passphrase in ("wrong", ""):
        monkeypatch.setenv("DEKAG_KEY_PASSPHRASE", passphrase)
        with pytest.raises(InputError, match="DEKAG_KEY_PASSPHRASE must hold its passphrase"):
            setup.publish()
    monkeypatch.setenv("DEKAG_KEY_PASSPHRASE", "correct horse")
    setup.publish()


def test_a_registry_is_made_once(setup: RegistrySetup) -> None:
    """Neither keys nor registry are made anew over others; what an interrupted call left is used."""
    with pytest.raises(InputError, match="is a registry already"):
        Repository.init(str(setup.registry), setup.keys)
    with pytest.raises(InputError, match="is a registry already"):
        Repository.init(str(setup.registry), setup.folder / "others")
    shutil.rmtree(setup.registry)
    Repository.init(str(setup.registry), setup.keys)
    setup.repository.rotate_keys("root")
    shutil.rmtree(setup.registry)
    with pytest.raises(InputError, match="restore it, or make other keys"):
        Repository.init(str(setup.registry), setup.keys)
    (setup.folder / "full").mkdir()
    (setup.folder / "full" / "letter").write_text("mine")
    with pytest.raises(InputError, match="is not empty"):
        Repository.init(str(setup.folder / "third"), setup.folder / "full")
    with pytest.raises(InputError, match="threshold must be 1 to the 3"):
        Repository.init(str(setup.folder / "third"), setup.folder / "more", threshold=4)
    assert not (setup.folder / "more").exists()
    with pytest.raises(InputError, match=r"holds no root\.json"):
        Repository(str(setup.registry), setup.folder / "none").describe()


def test_lifetimes_are_kept(tmp_path: Path) -> None:
    """What init was told counts for every later signature."""
    days = Lifetimes(root=400, targets=200, snapshot=100, timestamp=50)
    repository = Repository.init(str(tmp_path / "r"), tmp_path / "k", lifetimes=days, clock=before(0))
    repository.renew()
    roles = repository.describe()["roles"]
    expiries = [roles[role]["expires"] for role in ("timestamp", "snapshot", "targets", "root")]
    assert expiries == sorted(expiries)
    (tmp_path / "k" / "registry.json").write_text('{"root":0}')
    with pytest.raises(InputError, match="days"):
        repository.refresh_timestamp()


def test_objects_instead_of_files(tmp_path: Path) -> None:
    """fsspec's memory stands for an object store: what is put there is what a folder would hold."""
    repository = Repository.init("memory://registry", tmp_path / "keys")
    make_bundle(tmp_path / "b")
    bundle = repository.publish(tmp_path / "b", channel="stable", name="cala")
    repository.rotate_keys("root")
    assert repository.describe()["channels"][0]["bundles"][0]["id"] == bundle
    system = repository._storage._system  # type: ignore[attr-defined]
    system.get("/registry", str(tmp_path / "copy"), recursive=True)
    for url in (str(tmp_path / "copy"), "memory://registry"):
        edge = tmp_path / url.rpartition("/")[2]
        client = RegistryClient(url, edge / "registry", root=repository.root)
        (listing,) = client.channel("stable")
        client.fetch(listing, Shelf(edge / "bundles"))
        assert [held.id for held in Shelf(edge / "bundles").bundles()] == [bundle]
    with pytest.raises(RegistryError) as caught:
        RegistryClient("memory://elsewhere", tmp_path / "other", root=repository.root).channel("stable")
    assert caught.value.fault == "unreachable"
    with pytest.raises(InputError, match="cannot be reached"):
        Repository("nowhere://registry", tmp_path / "keys")


def test_the_first_pull_needs_a_root(setup: RegistrySetup) -> None:
    """There is no trust at first sight; afterwards the client remembers."""
    setup.publish()
    with pytest.raises(InputError, match=r"needs its root\.json"):
        RegistryClient(str(setup.registry), setup.folder / "edge")
    RegistryClient(str(setup.registry), setup.folder / "edge", root=setup.root).channel("stable")
    RegistryClient(str(setup.registry), setup.folder / "edge").channel("stable")


@pytest.mark.parametrize("raw", [b"", b"{}", b"\xff", b"[" * 9000])
def test_a_root_that_is_none(setup: RegistrySetup, raw: bytes) -> None:
    """One line, for the edge and for the publisher; nothing of it is remembered."""
    client = RegistryClient(str(setup.registry), setup.folder / "edge", root=raw)
    with pytest.raises(RegistryError, match=r"root\.json is no signed file"):
        client.channel("stable")
    with pytest.raises(InputError, match=r"needs its root\.json"):
        RegistryClient(str(setup.registry), setup.folder / "edge")
    (setup.keys / "root.json").write_bytes(raw)
    with pytest.raises(RegistryError, match=r"root\.json is damaged"):
        setup.repository.refresh_timestamp()


@pytest.mark.parametrize("url", ["ftp://host/x", "http://", "http://h/x?y=1", "http://h:x/", "https:///x"])
def test_an_address_that_is_none(url: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="address"):
        RegistryClient(url, tmp_path, root=b"")


def test_secrets_of_an_address_are_not_told(tmp_path: Path) -> None:
    client = RegistryClient(
        "http://user:secret@127.0.0.1:9/r", tmp_path, root=RegistrySetup(tmp_path).root, patience=HASTE
    )
    with pytest.raises(RegistryError) as caught:
        client.channel("stable")
    assert caught.value.fault == "unreachable"
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("name", ["Stable", "../x", "a" * 40, "", "a\n", "ä"])
def test_names_that_are_none(setup: RegistrySetup, name: str) -> None:
    make_bundle(setup.folder / "b")
    with pytest.raises(InputError):
        setup.repository.publish(setup.folder / "b", channel=name, name="x")
    with pytest.raises(InputError):
        setup.client().channel(name)
    if not name.isalnum() or not name.isascii():
        with pytest.raises(InputError):
            setup.repository.publish(setup.folder / "b", name=name)


# --- archives


def test_an_archive_carries_a_registry(setup: RegistrySetup, tmp_path: Path) -> None:
    """Out of one registry into a folder, again after a rotation, and edges there pull as from the first one."""
    first = setup.publish()
    setup.repository.publish(tmp_path / "bundle0-64", channel="canary", name="twice")
    export_archive(str(setup.registry), tmp_path / "a.tar", root=setup.root)
    air = tmp_path / "air"
    listings = import_archive(tmp_path / "a.tar", air, root=setup.root)
    assert [listing.id for listing in listings] == [first, first]
    assert setup.pull(air) == [first]
    setup.repository.rotate_keys("root")
    setup.repository.rotate_keys("snapshot")
    second = setup.publish()
    with http_server(setup.registry) as server:
        export_archive(f"http://127.0.0.1:{server.port}", tmp_path / "b.tar", root=setup.root)
    import_archive(tmp_path / "b.tar", air)
    import_archive(tmp_path / "b.tar", air)
    assert setup.pull(air) == [second]
    assert setup.pull(air, name="fresh") == [second]
    check_shelf(setup.shelf())
    assert not list(air.glob(".import-*"))


def test_the_same_registry_is_the_same_archive(setup: RegistrySetup, tmp_path: Path) -> None:
    setup.publish()
    for name in ("a", "b"):
        export_archive(str(setup.registry), tmp_path / name, root=setup.root, channels=["stable"])
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    with pytest.raises(RegistryError, match="no channel canary"):
        export_archive(str(setup.registry), tmp_path / "c", root=setup.root, channels=["canary"])
    assert not (tmp_path / "c").exists()


def test_an_older_archive_is_refused(setup: RegistrySetup, tmp_path: Path) -> None:
    """Rollback by carrier: the folder stays as it is."""
    setup.publish()
    export_archive(str(setup.registry), tmp_path / "old.tar", root=setup.root)
    second = setup.publish()
    export_archive(str(setup.registry), tmp_path / "new.tar", root=setup.root)
    air = tmp_path / "air"
    import_archive(tmp_path / "new.tar", air, root=setup.root)
    files = {path: path.read_bytes() for path in air.rglob("*") if path.is_file()}
    with pytest.raises(RegistryError) as caught:
        import_archive(tmp_path / "old.tar", air)
    assert caught.value.fault == "rollback"
    assert {path: path.read_bytes() for path in air.rglob("*") if path.is_file()} == files
    assert setup.pull(air) == [second]


def member(name: str, raw: bytes = b"x", kind: bytes = tarfile.REGTYPE) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = len(raw), kind, "/etc/passwd"
    return info, raw


STRANGE: dict[str, tuple[tarfile.TarInfo, bytes]] = {
    "traversal": member("targets/../../evil"),
    "absolute": member("/evil"),
    "encoded": member("targets/%2e%2e%2fevil"),
    "symlink": member(f"targets/{'a' * 64}", b"", tarfile.SYMTYPE),
    "hard link": member(f"targets/{'a' * 64}", b"", tarfile.LNKTYPE),
    "folder": member(f"targets/{'a' * 64}", b"", tarfile.DIRTYPE),
    "device": member(f"targets/{'a' * 64}", b"", tarfile.CHRTYPE),
    "long name": member("targets/" + "a" * 90),
    "other letters": member("targets/\u00e4"),
    "other name": member("metadata/evil.json"),
    "extra blob": member(f"targets/{'a' * 64}"),
    "extra root": member("metadata/99.root.json"),
    "extra snapshot": member("metadata/99.snapshot.json"),
    "twice": member("metadata/timestamp.json"),
}


@pytest.mark.parametrize("strange", STRANGE.values(), ids=STRANGE.keys())
@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_strange_archive_is_refused(
    setup: RegistrySetup, tmp_path: Path, strange: tuple[tarfile.TarInfo, bytes], form: int
) -> None:
    """Names, links and files that no export writes: nothing of the archive is kept, nothing else is written."""
    setup.publish()
    export_archive(str(setup.registry), tmp_path / "a.tar", root=setup.root)
    with tarfile.open(tmp_path / "a.tar") as good, tarfile.open(tmp_path / "b.tar", "w", format=form) as bad:
        for info in good:
            content = good.extractfile(info)
            assert content is not None
            bad.addfile(info, io.BytesIO(content.read()))
        bad.addfile(strange[0], io.BytesIO(strange[1]))
    files = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError):
        import_archive(tmp_path / "b.tar", tmp_path / "air", root=setup.root)
    assert set(tmp_path.rglob("*")) - set(files) <= {tmp_path / "air", tmp_path / "air" / ".lock"}


def test_a_damaged_archive_is_refused(setup: RegistrySetup, tmp_path: Path) -> None:
    """Cut at every third block, or with other words in it."""
    setup.publish()
    export_archive(str(setup.registry), tmp_path / "a.tar", root=setup.root)
    raw = (tmp_path / "a.tar").read_bytes()
    end = len(raw.rstrip(b"\0"))
    for length in range(0, end, 3 * 512):
        (tmp_path / "b.tar").write_bytes(raw[:length])
        with pytest.raises(InputError):
            import_archive(tmp_path / "b.tar", tmp_path / "air", root=setup.root)
    assert not (tmp_path / "air" / "metadata").exists()
    (tmp_path / "b.tar").write_bytes(raw.replace(b'"snapshot.json"', b'"snapshut.json"', 1))
    with pytest.raises(InputError):
        import_archive(tmp_path / "b.tar", tmp_path / "air", root=setup.root)
    # a root that is older than the trusted one proves nothing, so it is not kept
    (tmp_path / "b.tar").write_bytes(raw.replace(b'"ed25519"', b'"ed25518"', 1))
    import_archive(tmp_path / "b.tar", tmp_path / "air", root=setup.root)
    assert (tmp_path / "air" / "metadata" / "1.root.json").read_bytes() == setup.root


# --- the command line


def test_the_commands_together(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From init to an edge behind an air gap, as docs/operations.md would have it."""
    monkeypatch.setenv("DEKAG_REGISTRY", str(tmp_path / "registry"))
    monkeypatch.setenv("DEKAG_KEYS", str(tmp_path / "keys"))
    root = tmp_path / "keys" / "root.json"
    full = load_bundle(shipped("emoji/cala")).id
    short = full[:6]
    (tmp_path / "canary.json").write_bytes(CANARY.to_json())
    for words, text in (
        (("init", "--timestamp-days", 3), "edges need"),
        (
            ("publish", "emoji/cala", "--name", "cala", "--canary", tmp_path / "canary.json"),
            "published bundle",
        ),
        (("promote", short), f"channel stable lists bundle {short}"),
        (("list",), f"channel stable, version 1\n  {full[:12]}  transmission  cala"),
        (("refresh",), "timestamp  version"),
        (("refresh", "--all"), "root       version 2"),
        (("rotate-keys", "root"), "root has new keys"),
        (("export", "--root", root, "--out", tmp_path / "a.tar"), "2 listings"),
        (("import", tmp_path / "air", "--from", tmp_path / "a.tar", "--root", root), "imported 2 listings"),
        (("withdraw", short, "--channel", "canary"), "no more"),
        (("pull", tmp_path / "edge", "--registry", tmp_path / "air", "--root", root), full[:12]),
    ):
        done = dekag(capsys, "registry", *words)
        assert (done.code, text in done.out + done.err) == (0, True), done
    done = dekag(capsys, "registry", "pull", tmp_path / "edge", "--registry", tmp_path / "air", "--json")
    assert json.loads(done.out)[0]["id"] == Shelf(tmp_path / "edge" / "bundles").bundles()[0].id


BAD: dict[str, tuple[tuple[object, ...], str]] = {
    "no registry": (("list", "--registry", "none", "--keys", "none"), "there is no registry at none"),
    "no such bundle": (
        ("promote", "abcdef", "--registry", "REG", "--keys", "KEYS"),
        "0 published bundles begin",
    ),
    "no root": (("pull", "edge", "--registry", "REG"), "needs its root.json"),
    "no channel": (
        ("pull", "edge", "--registry", "REG", "--root", "ROOT", "--channel", "beta"),
        "no channel beta",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line(
    case: str, capsys: pytest.CaptureFixture[str], setup: RegistrySetup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(setup.folder)
    places = {"REG": setup.registry, "KEYS": setup.keys, "ROOT": setup.keys / "root.json"}
    words, text = BAD[case]
    done = dekag(capsys, "registry", *(places.get(str(word), word) for word in words))
    assert done.code == 2
    assert text in done.err
    assert len((done.out + done.err).strip().splitlines()) == 1
