"""What someone between publisher and edge, or a publisher who lies, can try: each is refused by name.

After each attack the shelf is as it was, the active bundle serves on, and no file but those of the edge is touched.
"""

import gc
import hashlib
import io
import json
import pickle
import random
import shutil
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from published_registry import BASE, RegistrySetup, before, check_shelf, http_server, make_bundle, outside
from tuf.api.metadata import Metadata

from dekag.bundle.bundle import load_bundle
from dekag.bundle.canonical import canonical_json, digest_json
from dekag.bundle.container import CALA, MANIFEST
from dekag.registry import RegistryError, Repository
from dekag.registry.keys import Keys
from dekag.registry.listing import Listed
from dekag.registry.signed import Signing
from dekag.types import InputError


def refused(setup: RegistrySetup, fault: str | None, url: str | Path | None = None) -> InputError:
    """Pull; it must be refused, by this name, and leave the edge and all else as they were."""
    shelf = setup.shelf()
    bundles_before, rest = shelf.bundles(), outside(setup.folder, setup.folder / "edge")
    with pytest.raises(InputError) as caught:
        setup.pull(url)
    assert str(caught.value).isprintable()
    if fault is not None:
        assert isinstance(caught.value, RegistryError)
        assert caught.value.fault == fault, str(caught.value)
    assert shelf.bundles() == bundles_before
    assert outside(setup.folder, setup.folder / "edge") == rest
    check_shelf(shelf)
    return caught.value


@pytest.fixture
def setup(tmp_path: Path) -> RegistrySetup:
    """A registry with one bundle, which the edge has pulled and made active."""
    setup = RegistrySetup(tmp_path)
    setup.publish()
    setup.pull()
    return setup


# --- someone between


def test_rollback(setup: RegistrySetup) -> None:
    """An older state as a whole, and an old timestamp alone before new files (a replay)."""
    old = setup.copy("old")
    setup.publish()
    setup.pull()
    refused(setup, "rollback", old)
    shutil.copy(old / "metadata" / "timestamp.json", setup.registry / "metadata")
    refused(setup, "rollback")


def test_freeze(tmp_path: Path) -> None:
    """Nothing new is let through: as soon as the timestamp's days are over, the edge says so."""
    setup = RegistrySetup(tmp_path, clock=before(7 - 1.5 / 86400))
    setup.publish()
    setup.pull()
    time.sleep(2.5)
    refused(setup, "expired")


@pytest.mark.parametrize(
    ("days", "file"), [(8, "timestamp"), (15, "snapshot"), (91, "targets"), (366, "root")]
)
def test_expired(tmp_path: Path, days: int, file: str) -> None:
    """Each signed file counts for its own days; renewing the others does not help."""
    setup = RegistrySetup(tmp_path, clock=before(days))
    setup.publish()
    fresh = Repository(str(setup.registry), setup.keys)
    if file in {"snapshot", "root"}:
        signing = fresh._read()
        signing.commit("timestamp" if file == "snapshot" else "targets")
    if file == "targets":
        fresh.refresh_timestamp()
    error = refused(setup, "expired")
    assert f"{file}.json" in str(error) or f"{file} is expired" in str(error)
    fresh.renew()
    setup.pull()


def test_mix_and_match(setup: RegistrySetup) -> None:
    """Files of different moments, each well signed: the one that names the other tells its digest."""
    setup.publish()
    for role in ("snapshot", "targets"):
        versions = sorted(
            (setup.registry / "metadata").glob(f"*.{role}.json"), key=lambda p: int(p.name.split(".")[0])
        )
        kept = versions[-1].read_bytes()
        shutil.copy(versions[-2], versions[-1])
        refused(setup, "mixed")
        versions[-1].write_bytes(kept)
    setup.pull()


def test_a_root_of_too_few_keys(setup: RegistrySetup) -> None:
    """One root key of three signs a root that would give the thief all roles: two are needed."""
    metadata = Metadata.from_bytes(setup.root)
    key_id = metadata.signed.roles["root"].keyids[0]
    signer = Keys(folder=setup.keys).signer("root", key_id)
    assert signer is not None
    metadata.signed.version += 1
    metadata.signed.roles["root"].threshold = 1
    metadata.sign(signer)
    (setup.registry / "metadata" / "2.root.json").write_bytes(metadata.to_bytes())
    refused(setup, "signature")


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets"])
def test_a_rotated_key(setup: RegistrySetup, role: str) -> None:
    """Who stole a key that was replaced since signs in vain, even with the other keys at hand.

    What those others signed an edge remembers; replacing their keys makes it forget.
    """
    shutil.copytree(setup.keys, setup.folder / "stolen")
    old = setup.repository._read().root
    setup.repository.rotate_keys(role)  # type: ignore[arg-type]
    setup.pull()
    state = setup.repository._read()
    thief = Signing(
        storage=state.storage,
        keys=Keys(folder=setup.folder / "stolen"),
        clock=state.clock,
        root=old,
        targets=state.targets,
        snapshot=state.snapshot,
        timestamp=state.timestamp,
    )
    shutil.copytree(setup.registry, setup.folder / "kept")
    thief.commit(role)  # type: ignore[arg-type]
    refused(setup, "signature")
    shutil.rmtree(setup.registry)
    shutil.copytree(setup.folder / "kept", setup.registry)
    for poisoned in ("timestamp", "snapshot"):
        setup.repository.rotate_keys(poisoned)  # type: ignore[arg-type]
    setup.publish()
    setup.pull()


def test_a_publisher_does_not_sign_what_others_changed(setup: RegistrySetup) -> None:
    """A store that was broken into does not get a signature over it with the next publish."""
    for path in sorted((setup.registry / "metadata").glob("*[0-9].targets.json"))[-1:]:
        raw = path.read_bytes()
        path.write_bytes(raw.replace(b'"length":', b'"length":1', 1))
        with pytest.raises(RegistryError) as caught:
            setup.publish()
        assert caught.value.fault == "signature"
        path.write_bytes(raw)
    setup.publish()


# --- a server that lies


Spoiled = Callable[[str, int, dict[str, str], bytes], tuple[int, dict[str, str], bytes]]


def bundle_only(change: Spoiled) -> Spoiled:
    return lambda path, *answer: change(path, *answer) if path.endswith(".tar") else answer


LIES: dict[str, tuple[Spoiled, str]] = {
    "too many bytes": (bundle_only(lambda p, s, h, b: (s, h, b + b"x" * 100)), "length"),
    "too few bytes": (bundle_only(lambda p, s, h, b: (s, h, b[:-1])), "length"),
    "claims more": (bundle_only(lambda p, s, h, b: (s, {**h, "Content-Length": "9" * 15}, b)), "length"),
    "no length": (
        bundle_only(lambda p, s, h, b: (s, {**h, "Connection": "close", "Content-Length": "x"}, b)),
        "unreachable",
    ),
    "other bytes": (bundle_only(lambda p, s, h, b: (s, h, bytes(len(b)))), "damaged"),
    "redirect": (lambda p, s, h, b: (302, {"Location": "http://127.0.0.1:1/x"}, b""), "redirect"),
    "redirect of the bundle": (
        bundle_only(lambda p, s, h, b: (307, {"Location": "file:///etc/passwd"}, b"")),
        "redirect",
    ),
    "zipped": (lambda p, s, h, b: (s, {**h, "Content-Encoding": "gzip"}, b), "unreachable"),
    "gone": (bundle_only(lambda p, s, h, b: (404, {}, b"")), "missing"),
    "busy": (lambda p, s, h, b: (503, {}, b""), "unreachable"),
    "teapot": (lambda p, s, h, b: (418, {}, b""), "unreachable"),
    "another range": (
        bundle_only(lambda p, s, h, b: (206, {**h, "Content-Range": f"bytes 9-{len(b)}/{len(b)}"}, b)),
        "length",
    ),
    "endless timestamp": (lambda p, s, h, b: (s, h, b + b" " * (6 << 20)), "length"),
}


@pytest.mark.parametrize(("lie", "fault"), LIES.values(), ids=LIES.keys())
def test_a_server_that_lies(setup: RegistrySetup, lie: Spoiled, fault: str) -> None:
    """Wrong lengths, redirects, encodings and ranges are refused, and an honest answer afterwards is taken."""
    second = setup.publish(count=5000)
    with http_server(setup.registry) as server:
        honest, server.spoil = server.spoil, lie
        url = f"http://127.0.0.1:{server.port}"
        refused(setup, fault, url)
        server.spoil = honest
        assert setup.pull(url) == [second]
    check_shelf(setup.shelf())


# --- a publisher who lies, or whose keys were stolen: everything is well signed


def publish_raw(setup: RegistrySetup, raw: bytes, bundle_id: str, *, name: str = "cala") -> None:
    """Sign any bytes as a bundle, past the checks of `Repository.publish`."""
    repository = setup.repository
    signing = repository._read()
    repository._put(
        signing, f"{bundle_id}.tar", raw, {"kind": "transmission", "base_digest": BASE, "name": name}
    )
    listed = Listed(id=bundle_id, kind="transmission", base_digest=BASE, name=name)
    repository._relist(signing, repository._channel(signing, "stable").with_bundle(listed))
    signing.commit("targets")


def tar_of(members: list[tuple[tarfile.TarInfo, bytes]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for info, raw in members:
            info.size = len(raw)
            tar.addfile(info, io.BytesIO(raw))
    return buffer.getvalue()


def members_of(folder: Path) -> list[tuple[tarfile.TarInfo, bytes]]:
    return [(tarfile.TarInfo(path.name), path.read_bytes()) for path in sorted(folder.iterdir())]


def forged(folder: Path, raw: bytes, tensors: dict[str, Any] | None = None) -> tuple[list[Any], str]:
    """A bundle whose tensor file is `raw`, with a manifest that fits in every digest; and its id."""
    fields = json.loads((folder / MANIFEST).read_bytes())
    spec = fields["files"][CALA]
    spec |= {"sha256": hashlib.sha256(raw).hexdigest(), "bytes": len(raw)}
    if tensors is not None:
        spec["tensors"] = tensors
    fields.pop("id")
    bundle_id = digest_json(fields)
    manifest = canonical_json({**fields, "id": bundle_id}) + b"\n"
    return [(tarfile.TarInfo(MANIFEST), manifest), (tarfile.TarInfo(CALA), raw)], bundle_id


def named(name: str, kind: bytes = tarfile.REGTYPE) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, "../../../evil"
    return info, b"evil" if kind == tarfile.REGTYPE else b""


STRANGERS = {
    "traversal": named("../evil"),
    "deep traversal": named("x/../../../evil"),
    "absolute": named("/evil"),
    "percent": named("%2e%2e%2fevil"),
    "NUL": named("bundle.json\0.py"),
    "backslash": named("..\\evil"),
    "long": named("a" * 4000),
    "other letters": named("b\u00fcndel.json"),
    "full width": named("\uff0e\uff0e/evil"),
    "right to left": named("bundle\u202enosj.json"),
    "code": named("adapter.py"),
    "pickle": named("adapter.bin"),
    "symlink": named(CALA, tarfile.SYMTYPE),
    "symlink of a stranger": named("evil", tarfile.SYMTYPE),
    "hard link": named(CALA, tarfile.LNKTYPE),
    "folder": named("evil", tarfile.DIRTYPE),
    "device": named("evil", tarfile.CHRTYPE),
    "pipe": named("evil", tarfile.FIFOTYPE),
    "doubled": named(MANIFEST),
}


@pytest.mark.parametrize("stranger", STRANGERS.values(), ids=STRANGERS.keys())
@pytest.mark.parametrize("first", [True, False], ids=["first", "last"])
def test_a_stranger_in_the_tar(
    setup: RegistrySetup, stranger: tuple[tarfile.TarInfo, bytes], first: bool
) -> None:
    """Names, links and further files, before the bundle's own or after them."""
    bundle_id = make_bundle(setup.folder / "b", seed=9)
    own = members_of(setup.folder / "b")
    publish_raw(setup, tar_of([stranger, *own] if first else [*own, stranger]), bundle_id)
    refused(setup, None)


class Payload:
    """Unpickled, it would write a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.target,)


def test_a_pickle_by_another_name(setup: RegistrySetup) -> None:
    """It is looked at as tensors, and is none; what it would run does not run."""
    make_bundle(setup.folder / "b", seed=9)
    for raw in (pickle.dumps(Payload(setup.folder / "ran")), pickle.dumps(Payload(setup.folder / "ran"), 0)):
        members, bundle_id = forged(setup.folder / "b", raw)
        publish_raw(setup, tar_of(members), bundle_id)
        refused(setup, None)
    assert not (setup.folder / "ran").exists()


def header(entries: dict[str, Any], data: bytes) -> bytes:
    """A tensor file with this header."""
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data


def many_tensors() -> bytes:
    """Half a million tensors of one number each, in a header of 36 MB."""
    form = '"layer.{}":{{"dtype":"F16","shape":[1],"data_offsets":[{},{}]}}'
    text = ",".join(form.format(i, 2 * i, 2 * i + 2) for i in range(500_000))
    return (len(text) + 2).to_bytes(8, "little") + f"{{{text}}}".encode() + bytes(1_000_000)


BOMBS: dict[str, tuple[Callable[[], bytes], str]] = {
    "500 thousand tensors": (many_tensors, "has a header of"),
    "2^50 numbers": (
        lambda: header({"x": {"dtype": "F16", "shape": [1 << 50], "data_offsets": [0, 1 << 51]}}, bytes(64)),
        "no safetensors file",
    ),
    "2^64 numbers": (
        lambda: header(
            {"x": {"dtype": "F16", "shape": [1 << 32, 1 << 32], "data_offsets": [0, 64]}}, bytes(64)
        ),
        "no safetensors file",
    ),
    "header beyond the file": (lambda: (1 << 62).to_bytes(8, "little") + bytes(64), "no safetensors file"),
    "depth": (lambda: (50_000).to_bytes(8, "little") + b"[" * 50_000, "no safetensors file"),
}


@pytest.fixture
def own_heap() -> Iterator[None]:
    """What other tests left behind is not looked through when this one makes objects, as that counts as its time."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.usefixtures("own_heap")
@pytest.mark.parametrize(("bomb", "reason"), BOMBS.values(), ids=BOMBS.keys())
def test_a_bomb(setup: RegistrySetup, bomb: Callable[[], bytes], reason: str) -> None:
    """A header that would take memory is refused before it is parsed: under 0.1 s and 50 MB for the check itself."""
    make_bundle(setup.folder / "b", seed=9)
    raw = bomb()
    members, bundle_id = forged(setup.folder / "b", raw)
    path = setup.folder / "bomb.tar"
    path.write_bytes(tar_of(members))
    del members
    gc.collect()
    process = psutil.Process()
    resident, start = process.memory_info().rss, time.process_time()
    with pytest.raises(InputError, match=reason):
        load_bundle(path)
    took, grown = time.process_time() - start, (process.memory_info().rss - resident) / 1e6
    print(f"bomb of {len(raw)} bytes: {1000 * took:.0f} ms, resident memory {grown:+.1f} MB")
    assert grown < 50
    # the file itself is read and hashed, which takes as long as it takes
    assert took < 0.1 + len(raw) / 100e6
    publish_raw(setup, path.read_bytes(), bundle_id)
    refused(setup, None)


MANIFEST_BOMBS = {
    "a list": b"[%s]",
    "a field": b'{"schema_version":2,"x":[%s]}',
    "a shape": b'{"schema_version":2,%s"files":{"cala.safetensors":{"tensors":{"a":{"shape":[%%s]}}}}}',
}


@pytest.mark.alone
@pytest.mark.usefixtures("own_heap")
@pytest.mark.parametrize("form", MANIFEST_BOMBS.values(), ids=MANIFEST_BOMBS.keys())
def test_a_manifest_bomb(setup: RegistrySetup, form: bytes) -> None:
    """As many objects as JSON can name in a manifest of the largest size: under 150 MB, and not many times
    what it takes to parse it at all."""
    if b"%%s" in form:
        names = list(json.loads((setup.folder / "bundle0-64" / MANIFEST).read_bytes()))
        others = b"".join(
            b'"%s":null,' % name.encode() for name in names if name not in {"files", "schema_version"}
        )
        form = form % others
    raw = form % (b"[]," * 349_000 + b"[]")
    (setup.folder / "bomb.tar").write_bytes(tar_of([(tarfile.TarInfo(MANIFEST), raw)]))
    start = time.process_time()
    json.loads(raw)
    least = time.process_time() - start
    gc.collect()
    process = psutil.Process()
    resident, start = process.memory_info().rss, time.process_time()
    with pytest.raises(InputError, match=MANIFEST):
        load_bundle(setup.folder / "bomb.tar")
    took, grown = time.process_time() - start, (process.memory_info().rss - resident) / 1e6
    print(
        f"manifest bomb: {1000 * took:.0f} ms, {took / least:.1f} times json's, resident memory {grown:+.1f} MB"
    )
    assert took < 10 * least + 0.1
    assert grown < 150


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_none(setup: RegistrySetup, value: float) -> None:
    """NaN and infinity, signed and with every digest right."""
    import torch
    from safetensors.torch import save

    make_bundle(setup.folder / "b", seed=9)
    values = torch.ones(64)
    values[5] = value
    members, bundle_id = forged(setup.folder / "b", save({"gate.weight": values}))
    publish_raw(setup, tar_of(members), bundle_id)
    assert "must be finite" in str(refused(setup, None))


def test_a_bundle_under_another_id(setup: RegistrySetup) -> None:
    """The channel names one bundle and the file is another one, sound in itself."""
    make_bundle(setup.folder / "b", seed=9)
    publish_raw(setup, tar_of(members_of(setup.folder / "b")), "a" * 64)
    assert "holds bundle" in str(refused(setup, None))


def test_wrong_base(setup: RegistrySetup) -> None:
    """It says what it was made for, so an edge with another model does not apply it."""
    make_bundle(setup.folder / "b", seed=9, base=digest_json("another model"))
    bundle = setup.repository.publish(setup.folder / "b", channel="stable", name="other")
    active = setup.shelf().active("transmission")
    listing = next(listing for listing in setup.client().channel("stable") if listing.id == bundle)
    assert listing.base_digest != BASE
    setup.client().fetch(listing, setup.shelf())
    with pytest.raises(InputError, match="was made for base model"):
        load_bundle(setup.shelf().path(bundle)).require_base(BASE)
    assert setup.shelf().active("transmission") == active


def test_too_large_for_the_edge(setup: RegistrySetup) -> None:
    """The limit counts before the first byte of it is asked for."""
    setup.publish(count=100_000)
    with http_server(setup.registry) as server:
        client = setup.client(f"http://127.0.0.1:{server.port}")
        client._max_bytes = 50_000
        with pytest.raises(RegistryError, match="at most 50000 are pulled"):
            client.channel("stable")
        assert not [path for path, _ in server.asked if path.endswith(".tar")]


def test_a_channel_that_lies(setup: RegistrySetup) -> None:
    """A signed channel file of another channel, with a slot twice, or that is none."""
    repository = setup.repository
    listed = repository._channel(repository._read(), "stable")
    for raw in (
        b"{}",
        b"[" * 60_000,
        listed.to_json().replace(b'"stable"', b'"canary"'),
        canonical_json({**json.loads(listed.to_json()), "bundles": [vars(b) for b in listed.bundles] * 2}),
    ):
        signing = repository._read()
        repository._put(signing, "channels/stable.json", raw, {})
        signing.commit("targets")
        refused(setup, "damaged")


# --- mutations


def mutated(raw: bytes, rng: random.Random) -> bytes:
    """One of: a bit flipped, cut, longer, a stretch zeroed, a stretch doubled, two stretches swapped."""
    kind, place = rng.randrange(6), rng.randrange(len(raw))
    length = rng.randint(1, max(1, min(200, len(raw) - place)))
    if kind == 0:
        changed = bytearray(raw)
        changed[place] ^= 1 << rng.randrange(8)
        return bytes(changed)
    if kind == 1:
        return raw[:place]
    if kind == 2:
        return raw + rng.randbytes(length)
    if kind == 3:
        return raw[:place] + bytes(length) + raw[place + length :]
    if kind == 4:
        return raw[:place] + raw[place : place + length] * 2 + raw[place + length :]
    return raw[place:] + raw[:place]


def check_mutations(setup: RegistrySetup, count: int) -> None:
    """Mutate one published file at a time and pull with an edge that knows the state before.

    Refused, or of no effect: of three root keys two are enough, so one signature of a root may be spoilt; and in
    the two files that no digest names, what is signed may be spelt in another way. What is signed is the same then.
    """
    setup.repository.rotate_keys("root")
    second = setup.publish()
    shutil.copytree(setup.folder / "edge", setup.folder / "kept", symlinks=True)
    files = asked_for(setup)
    assert len(files) == 7
    rng, without_effect = random.Random(0), 0
    for number in range(count):
        target = files[number % len(files)]
        kept = target.read_bytes()
        other = mutated(kept, rng)
        if other == kept:
            continue
        target.write_bytes(other)
        error = pulled(setup)
        if error is None:
            without_effect += 1
            assert target.name in {"2.root.json", "timestamp.json"}
            assert json.loads(other)["signed"] == json.loads(kept)["signed"]
        else:
            assert str(error).isprintable()
            # what is signed refuses it, before a bundle is opened
            assert isinstance(error, RegistryError)
            assert [bundle.id for bundle in setup.shelf().bundles()] == setup.ids[:1]
        target.write_bytes(kept)
        shutil.rmtree(setup.folder / "edge")
        shutil.copytree(setup.folder / "kept", setup.folder / "edge", symlinks=True)
    assert setup.pull() == [second]
    print(f"{count} mutations of {len(files)} files: {without_effect} without effect, all others refused")
    assert without_effect <= count / 50


def pulled(setup: RegistrySetup) -> InputError | None:
    """Why a pull was refused."""
    try:
        assert setup.pull() == setup.ids[1:]
    except InputError as error:
        return error
    return None


def asked_for(setup: RegistrySetup) -> list[Path]:
    """The files that an edge with the first bundle reads to get the second one."""
    shutil.copytree(setup.folder / "edge", setup.folder / "scout", symlinks=True)
    with http_server(setup.registry) as server:
        setup.pull(f"http://127.0.0.1:{server.port}", name="scout")
        paths = [setup.registry / path.lstrip("/") for path, _ in server.asked]
    return sorted({path for path in paths if path.exists()})


def test_mutations(setup: RegistrySetup) -> None:
    """150 of the 2,000 below."""
    check_mutations(setup, 150)


@pytest.mark.slow
def test_many_mutations(setup: RegistrySetup) -> None:
    """2,000 mutations of bundle, canary, channel and all four signed roles."""
    check_mutations(setup, 2000)
