"""Bundles: what is written comes back, and whatever else is on the disk is refused in one line."""

import gzip
import hashlib
import io
import itertools
import json
import multiprocessing
import os
import random
import resource
import subprocess
import tarfile
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dekag.alignment.bundle import (
    Bundle,
    Metaword,
    Metrics,
    load_bundle,
    pack,
    save_bundle,
)
from dekag.alignment.container import CALA, EMBEDDING, FILES, LORA, MANIFEST
from dekag.alignment.digest import canonical_json, digest_file, digest_json, digest_tensors
from dekag.types import InputError

BASE = digest_json("a base model")
TOKENIZER = digest_json("a tokenizer")
FORK = multiprocessing.get_context("fork")


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).half()


def generation() -> dict[str, Any]:
    """Arguments of a small generation bundle."""
    names = ("unet.a.lora_A.weight", "unet.a.lora_B.weight", "unet.b.lora_A.weight")
    return {
        "kind": "generation",
        "base_digest": BASE,
        "tokenizer_digest": TOKENIZER,
        "tensors": {
            LORA: {name: noise(2, 3, seed=seed) for seed, name in enumerate(names)},
            EMBEDDING: {"<dekag>": noise(4, 5)},
        },
        "metadata": {LORA: {f"key{i}": f"value {i}" for i in range(8)}},
        "metaword": Metaword(token="<dekag>", vectors=4, position="prefix"),
        "licence": "Apache-2.0",
        "metrics": Metrics(before={"mini_dino": 0.25}, after={"mini_dino": 0.75}),
        "settings": {"steps": 20, "guidance": 2.0, "learning_rate": 1e-05, "scheduler": "ddim"},
        "training_digest": digest_json({"seed": 0}),
    }


def transmission() -> dict[str, Any]:
    """Arguments of a small transmission bundle, in float32."""
    tensors = {CALA: {"gate.weight": noise(6, 2).float(), "scale": noise().float()}}
    return {"kind": "transmission", "base_digest": BASE, "tensors": tensors, "licence": "Apache-2.0"}


def save(folder: Path, **changes: Any) -> Bundle:
    return save_bundle(folder, **{**generation(), **changes})


def forge(folder: Path, change: Callable[[dict[str, Any]], object] = lambda fields: None) -> None:
    """Sign the folder anew after a change, as a liar would: digests, sizes and id are right."""
    fields = json.loads((folder / MANIFEST).read_bytes())
    for name, spec in fields["files"].items():
        raw = (folder / name).read_bytes()
        spec |= {"sha256": hashlib.sha256(raw).hexdigest(), "bytes": len(raw)}
    change(fields)
    fields.pop("id", None)
    (folder / MANIFEST).write_bytes(canonical_json({**fields, "id": digest_json(fields)}) + b"\n")


def refused(path: Path, reason: str | None = None, **limits: int) -> None:
    with pytest.raises(InputError, match=reason) as caught:
        load_bundle(path, **limits)
    assert_one_line(caught.value)


def assert_one_line(err: BaseException) -> None:
    assert str(err).isprintable()
    assert len(str(err)) < 700


def same(first: Bundle, second: Bundle) -> bool:
    return (
        first.manifest == second.manifest
        and first.metadata == second.metadata
        and all(
            torch.equal(value, second.tensors[file][name]) and value.dtype == second.tensors[file][name].dtype
            for file, part in first.tensors.items()
            for name, value in part.items()
        )
    )


def tar_of(path: Path, members: list[tuple[tarfile.TarInfo, bytes]]) -> Path:
    with tarfile.open(path, "w") as tar:
        for member, raw in members:
            member.size = len(raw)
            tar.addfile(member, io.BytesIO(raw))
    return path


def members_of(folder: Path) -> list[tuple[tarfile.TarInfo, bytes]]:
    return [(tarfile.TarInfo(file.name), file.read_bytes()) for file in sorted(folder.iterdir())]


@pytest.mark.parametrize("arguments", [generation, transmission])
@pytest.mark.parametrize("suffix", ["", ".tar", ".tar.gz", ".tgz"])
def test_round_trip(tmp_path: Path, arguments: Callable[[], dict[str, Any]], suffix: str) -> None:
    """What is saved, packed and loaded is what was given, tensor for tensor."""
    given, path = arguments(), tmp_path / "update"
    saved = save_bundle(path, **given)
    if suffix:
        pack(path, tmp_path / f"update{suffix}")
    loaded = load_bundle(tmp_path / f"update{suffix}")
    assert same(saved, loaded)
    for file, part in given["tensors"].items():
        assert loaded.tensors[file].keys() == part.keys()
        assert all(torch.equal(loaded.tensors[file][name], value) for name, value in part.items())
    assert loaded.size_bytes == sum(file.stat().st_size for file in path.iterdir())
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted({"update", f"update{suffix}"})


def test_fields_survive(tmp_path: Path) -> None:
    """Numbers keep value and type, metadata comes back, and the id is that of the other fields."""
    save(tmp_path / "b")
    bundle = load_bundle(tmp_path / "b")
    fields = json.loads((tmp_path / "b" / MANIFEST).read_bytes())
    assert bundle.manifest.settings == generation()["settings"]
    assert [type(v) for v in bundle.manifest.settings.values()] == [float, float, str, int]
    assert bundle.metadata == {**generation()["metadata"], EMBEDDING: {}}
    assert bundle.manifest.metrics.after == {"mini_dino": 0.75}
    assert bundle.manifest.quantisation == "fp16"
    assert bundle.id == fields.pop("id") == digest_json(fields)


def test_floats_keep_their_last_bit(tmp_path: Path) -> None:
    """A thousand random doubles of all magnitudes are read as they were written."""
    rng = random.Random(0)
    numbers = {str(i): rng.uniform(-1, 1) * 10.0 ** rng.randint(-300, 300) for i in range(1000)}
    save(tmp_path / "b", metrics=Metrics(after=numbers))
    assert load_bundle(tmp_path / "b").manifest.metrics.after == numbers


def test_same_contents_same_bytes(tmp_path: Path) -> None:
    """Neither the order in which contents are given nor the time reaches the bytes."""
    given = generation()
    backwards = {key: dict(reversed(value.items())) for key, value in given.items() if type(value) is dict}
    inner = {
        key: {f: dict(reversed(v.items())) for f, v in backwards[key].items()}
        for key in ("tensors", "metadata")
    }
    for run in range(4):
        save(tmp_path / str(run), **({**backwards, **inner} if run % 2 else {}))
        os.utime(tmp_path / str(run) / LORA, (run, run))
        pack(tmp_path / str(run), tmp_path / f"{run}.tar")
        pack(tmp_path / str(run), tmp_path / f"{run}.tar.gz")
    for name in (MANIFEST, *FILES["generation"]):
        assert len({(tmp_path / str(run) / name).read_bytes() for run in range(4)}) == 1
    for suffix in (".tar", ".tar.gz"):
        assert len({(tmp_path / f"{run}{suffix}").read_bytes() for run in range(4)}) == 1


def test_other_tools_read_and_pack(tmp_path: Path) -> None:
    """safetensors reads the files, and what `tar` makes of the folder is a bundle."""
    saved = save(tmp_path / "b")
    assert torch.equal(load_file(tmp_path / "b" / EMBEDDING)["<dekag>"], noise(4, 5))
    with safetensors.safe_open(tmp_path / "b" / LORA, "pt") as file:
        assert file.metadata() == generation()["metadata"][LORA]
    names = sorted(os.listdir(tmp_path / "b"))
    subprocess.run(["tar", "-C", tmp_path / "b", "-cf", tmp_path / "gnu.tar", *names], check=True)
    with tarfile.open(tmp_path / "pax.tar.gz", "w:gz", format=tarfile.PAX_FORMAT) as tar:
        for name in names:
            tar.add(tmp_path / "b" / name, arcname=name)
    assert same(load_bundle(tmp_path / "gnu.tar"), saved)
    assert same(load_bundle(tmp_path / "pax.tar.gz"), saved)


def test_strided_and_shared_tensors(tmp_path: Path) -> None:
    """Views of one storage are stored as separate tensors with the values they show."""
    whole = noise(4, 6)
    part = {"a": whole[:, ::2], "b": whole.T, "c": whole.requires_grad_()}
    bundle = save(tmp_path / "b", tensors={LORA: part}, metaword=None)
    assert all(torch.equal(bundle.tensors[LORA][name], value) for name, value in part.items())


def test_every_flipped_bit_is_refused(tmp_path: Path) -> None:
    """One flipped bit anywhere: 200 positions drawn over all files of a folder."""
    save(tmp_path / "b")
    rng = random.Random(0)
    files = sorted((tmp_path / "b").iterdir())
    for _ in range(200):
        file = rng.choices(files, [f.stat().st_size for f in files])[0]
        whole = file.read_bytes()
        flipped = bytearray(whole)
        flipped[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        file.write_bytes(flipped)
        refused(tmp_path / "b")
        file.write_bytes(whole)
    load_bundle(tmp_path / "b")


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz"])
def test_flipped_archive_is_refused_or_the_same(tmp_path: Path, suffix: str) -> None:
    """Flipped bits in a tar are refused, unless they lie in what carries nothing (padding, owners, times)."""
    saved, path = save(tmp_path / "b"), tmp_path / f"b{suffix}"
    pack(tmp_path / "b", path)
    whole, rng = path.read_bytes(), random.Random(0)
    for _ in range(300):
        flipped = bytearray(whole)
        flipped[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        path.write_bytes(flipped)
        try:
            assert same(load_bundle(path), saved)
        except InputError as err:
            assert_one_line(err)


@pytest.mark.parametrize("name", [MANIFEST, LORA, EMBEDDING])
def test_truncated_file(tmp_path: Path, name: str) -> None:
    save(tmp_path / "b")
    file = tmp_path / "b" / name
    whole = file.read_bytes()
    for length in (0, 1, 8, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:length])
        refused(tmp_path / "b", name)


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz"])
def test_truncated_archive(tmp_path: Path, suffix: str) -> None:
    """Cut anywhere before the end of the last file's contents."""
    save(tmp_path / "b")
    path = tmp_path / f"b{suffix}"
    pack(tmp_path / "b", path)
    whole = path.read_bytes()
    end = len(whole) if suffix == ".tar.gz" else whole.rindex(noise(2, 3, seed=2).numpy().tobytes())
    for length in range(0, end, 61):
        path.write_bytes(whole[:length])
        refused(path)


def test_pickle_is_refused(tmp_path: Path) -> None:
    """A pickle under a safetensors name is refused by its digest, and by its form if a liar signed it."""
    save(tmp_path / "b")
    torch.save(noise(2, 3), tmp_path / "b" / LORA)
    refused(tmp_path / "b", f"{LORA} is damaged: it has")
    forge(tmp_path / "b")
    refused(tmp_path / "b", "no safetensors file")


def test_missing_files(tmp_path: Path) -> None:
    refused(tmp_path / "none", "there is no such folder or file")
    save(tmp_path / "b")
    (tmp_path / "b" / EMBEDDING).unlink()
    refused(tmp_path / "b", f"{EMBEDDING} is missing")
    (tmp_path / "b" / MANIFEST).unlink()
    refused(tmp_path / "b", f"there is no {MANIFEST}")


def test_extra_files(tmp_path: Path) -> None:
    """A stranger's name, a folder, and a file of the package's own names that the manifest does not list."""
    save(tmp_path / "b")
    folder = tmp_path / "b"
    (folder / "run\n.py").write_text("")
    refused(folder, "must not be there; a bundle holds bundle.json, ")
    (folder / "run\n.py").rename(folder / CALA)
    refused(folder, f"{CALA} is not listed")
    (folder / CALA).unlink()
    (folder / CALA).mkdir()
    refused(folder, f"{CALA} is a link, a folder or doubled")


def test_symlink_in_a_folder(tmp_path: Path) -> None:
    """Not even a link to the right bytes; the folder itself may be reached by one."""
    save(tmp_path / "b")
    (tmp_path / "b" / LORA).rename(tmp_path / "elsewhere")
    (tmp_path / "b" / LORA).symlink_to(tmp_path / "elsewhere")
    refused(tmp_path / "b", f"{LORA} is a link")
    save(tmp_path / "sound")
    (tmp_path / "current").symlink_to(tmp_path / "sound")
    load_bundle(tmp_path / "current")


@pytest.mark.parametrize(
    "name", ["../evil", "/tmp/evil", "./bundle.json", "b/bundle.json", "evil.pt", "x" * 3000]
)
def test_archive_with_a_strange_name(tmp_path: Path, name: str) -> None:
    save(tmp_path / "b")
    evil = (tarfile.TarInfo(name), b"evil")
    for members in ([evil, *members_of(tmp_path / "b")], [*members_of(tmp_path / "b"), evil]):
        refused(tar_of(tmp_path / "b.tar", members), "must not be there")
    assert sorted(os.listdir(tmp_path)) == ["b", "b.tar"]


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE]
)
def test_archive_with_a_strange_member(tmp_path: Path, kind: bytes) -> None:
    save(tmp_path / "b")
    member = tarfile.TarInfo(CALA)
    member.type, member.linkname = kind, "/etc/passwd"
    path = tar_of(tmp_path / "b.tar", [*members_of(tmp_path / "b"), (member, b"")])
    refused(path, f"{CALA} is a link, a folder or doubled")


def test_archive_with_a_doubled_member(tmp_path: Path) -> None:
    save(tmp_path / "b")
    refused(tar_of(tmp_path / "b.tar", members_of(tmp_path / "b") * 2), "doubled")


def test_archive_of_another_kind(tmp_path: Path) -> None:
    for name, raw in (
        ("empty", b""),
        ("text", b"hello" * 500),
        ("zeros", bytes(20480)),
        ("zip", b"PK\3\4" * 500),
    ):
        (tmp_path / name).write_bytes(raw)
        refused(tmp_path / name)


def test_archive_bombs(tmp_path: Path) -> None:
    """Members that claim much or less than nothing or are much, endless names, and zeros that gzip shrinks."""
    member = tarfile.TarInfo(LORA)
    member.size = 1 << 40
    (tmp_path / "claim.tar").write_bytes(member.tobuf())
    refused(tmp_path / "claim.tar", f"{LORA} has {1 << 40} bytes")
    member.size = -512
    (tmp_path / "negative.tar").write_bytes(member.tobuf(tarfile.GNU_FORMAT) * 4)
    refused(tmp_path / "negative.tar", f"{LORA} has -512 bytes")
    refused(
        tar_of(tmp_path / "big.tar", [(tarfile.TarInfo(LORA), bytes(2000))]), "at most 999", max_bytes=999
    )
    refused(
        tar_of(tmp_path / "m.tar", [(tarfile.TarInfo(MANIFEST), bytes(5 << 20))]), f"{MANIFEST} has 5242880"
    )
    (tmp_path / "zeros.tar.gz").write_bytes(gzip.compress(bytes(32 << 20)))
    assert (tmp_path / "zeros.tar.gz").stat().st_size < 40_000
    refused(tmp_path / "zeros.tar.gz", "unpacks to more than the 1000000 bytes", max_bytes=1_000_000)
    links = tarfile.TarInfo("x")
    links.type = tarfile.GNUTYPE_LONGNAME
    (tmp_path / "nested.tar").write_bytes(links.tobuf() * 5000)
    refused(tmp_path / "nested.tar")


@pytest.mark.parametrize("size", [b"\x80" + b"\xff" * 11, b"\xff" * 12, b"00000000100\0", b"7" * 11 + b"\0"])
def test_archive_with_hostile_headers(tmp_path: Path, size: bytes) -> None:
    """Every type of member, with a huge, a negative, a small and a large size, and a sparse map cut short."""
    for kind in range(256):
        header = bytearray(tarfile.TarInfo(LORA).tobuf(tarfile.GNU_FORMAT))
        header[124:136], header[156], header[148:156], header[482] = size, kind, b" " * 8, 1
        header[148:156] = b"%06o\0 " % sum(header)
        (tmp_path / "b.tar").write_bytes(header)
        refused(tmp_path / "b.tar")


def test_folder_larger_than_allowed(tmp_path: Path) -> None:
    size = save(tmp_path / "b").size_bytes
    load_bundle(tmp_path / "b", max_bytes=size)
    refused(tmp_path / "b", "bytes, but at most", max_bytes=size - 1)


FORGERIES: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "later schema": (
        lambda f: f.update(schema_version=2, colour="red"),
        "schema version 2, this dekag reads 1",
    ),
    "true for one": (lambda f: f.update(schema_version=True), "refused|damaged"),
    "no schema": (lambda f: f.pop("schema_version"), "schema version None"),
    "unknown field": (lambda f: f.update(code="import os"), "code: Unexpected"),
    "hidden name": (lambda f: f.update({"a\x1b[2J\nb": 1}), "Unexpected"),
    "missing field": (lambda f: f.pop("licence"), "licence: "),
    "number as text": (lambda f: f["metaword"].update(vectors="4"), "metaword.vectors: "),
    "other kind": (lambda f: f.update(kind="decoder"), "kind: "),
    "kind of another": (lambda f: f.update(kind="transmission"), "kind transmission holds no files but"),
    "no tokenizer": (lambda f: f.update(tokenizer_digest=None), "kind generation has a tokenizer_digest"),
    "upper case": (lambda f: f.update(base_digest=BASE.upper()), "base_digest: "),
    "path": (lambda f: f["files"].update({"../evil": f["files"][LORA]}), "holds no files but"),
    "no files": (lambda f: f.update(files={}), "files: "),
    "no tensors": (lambda f: f["files"][LORA].update(tensors={}), "tensors: "),
    "half a file": (lambda f: f["files"][LORA].update(bytes=7), "bundle.json says 7"),
    "other digest": (lambda f: f["files"][LORA].update(sha256=BASE), f"bundle.json says {BASE[:12]}"),
    "other quantisation": (lambda f: f.update(quantisation="fp32"), "quantisation fp16"),
    "renamed": (
        lambda f: f["files"][LORA]["tensors"].update(x=f["files"][LORA]["tensors"].popitem()[1]),
        "names",
    ),
    "reshaped": (
        lambda f: f["files"][LORA]["tensors"]["unet.a.lora_A.weight"].update(shape=[3, 2]),
        "shapes",
    ),
    "zero size": (
        lambda f: f["files"][LORA]["tensors"]["unet.a.lora_A.weight"].update(shape=[0, 2]),
        "shape.0",
    ),
    "other metaword": (lambda f: f["metaword"].update(token="<other>"), "holds the metaword alone"),
    "no metaword": (lambda f: f.update(metaword=None), "holds the metaword alone"),
    "loud metaword": (lambda f: f["metaword"].update(token="<DekaG>"), "metaword.token: "),
    "list as setting": (lambda f: f["settings"].update(steps=[1]), "settings.steps"),
    "two lines of licence": (lambda f: f.update(licence="MIT\nor not"), "licence: "),
}


@pytest.mark.parametrize(("change", "reason"), FORGERIES.values(), ids=FORGERIES.keys())
def test_forged_manifest(tmp_path: Path, change: Callable[[dict[str, Any]], object], reason: str) -> None:
    """Digests, sizes and id all agree, and still the manifest is not one."""
    save(tmp_path / "b")
    forge(tmp_path / "b")
    load_bundle(tmp_path / "b")
    forge(tmp_path / "b", change)
    refused(tmp_path / "b", reason)


@pytest.mark.parametrize(
    "respell",
    [
        lambda raw: raw.replace(b"1e-05", b"1E-05"),
        lambda raw: raw.replace(b'"steps":20', b'"steps":19,"steps":20'),
        lambda raw: raw.replace(b"ddim", b"d\\u0064im"),
        lambda raw: raw.replace(b",", b", "),
        lambda raw: raw.rstrip(),
    ],
)
def test_manifest_in_another_spelling(tmp_path: Path, respell: Callable[[bytes], bytes]) -> None:
    """Same values, hence the same id; but there is one way to write them."""
    save(tmp_path / "b")
    raw = (tmp_path / "b" / MANIFEST).read_bytes()
    assert respell(raw) != raw
    (tmp_path / "b" / MANIFEST).write_bytes(respell(raw))
    refused(tmp_path / "b", "not canonical JSON")


@pytest.mark.parametrize(
    "raw", [b"", b"[]", b"\xff", b"[" * 100_000, b'{"schema_version":1', b"NaN", b"1" * 5000]
)
def test_manifest_that_is_no_object(tmp_path: Path, raw: bytes) -> None:
    save(tmp_path / "b")
    (tmp_path / "b" / MANIFEST).write_bytes(raw)
    refused(tmp_path / "b", f"{MANIFEST} ")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_not_finite(tmp_path: Path, value: float) -> None:
    """Refused when saved, and when loaded from one who saved with other tools."""
    bad = noise(2, 3)
    bad[1, 2] = value
    with pytest.raises(InputError, match="'x' must be finite"):
        save(tmp_path / "b", tensors={LORA: {"x": bad}}, metaword=None)
    save(tmp_path / "b", tensors={LORA: {"x": noise(2, 3)}}, metaword=None, metadata=None)
    save_file({"x": bad}, tmp_path / "b" / LORA)
    forge(tmp_path / "b")
    refused(tmp_path / "b", "'x' must be finite")


def test_other_dtype_in_a_signed_file(tmp_path: Path) -> None:
    """A file of another dtype than its manifest's is refused before a tensor is made of it."""
    save(tmp_path / "b", tensors={LORA: {"x": noise(2, 3)}}, metaword=None)
    for dtype in (torch.float32, torch.bfloat16, torch.int64, torch.float8_e4m3fn):
        save_file({"x": noise(2, 3).to(dtype)}, tmp_path / "b" / LORA)
        forge(tmp_path / "b")
        refused(tmp_path / "b", "other names, shapes or dtypes|must be F16 or F32")


UNUSABLE: dict[str, tuple[dict[str, Any], str]] = {
    "bf16": (
        {"tensors": {LORA: {"x": noise(2).bfloat16()}}, "metaword": None},
        "'x' must be F16 or F32, got BF16",
    ),
    "integers": (
        {"tensors": {LORA: {"x": torch.ones(2, dtype=torch.int64)}}, "metaword": None},
        "must be F16 or F32, got I64",
    ),
    "mixed": (
        {"tensors": {LORA: {"x": noise(2), "y": noise(2).float()}}, "metaword": None},
        "quantisation fp16",
    ),
    "nothing": ({"tensors": {}, "metadata": None, "metaword": None}, "files: "),
    "empty file": ({"tensors": {LORA: {}}, "metaword": None}, "tensors: "),
    "empty tensor": ({"tensors": {LORA: {"x": noise(0, 2)}}, "metaword": None}, "shape.0: "),
    "stray metadata": ({"metadata": {CALA: {"a": "b"}}}, f"{CALA}.tensors: "),
    "surrogate in metadata": ({"metadata": {LORA: {"rank": "\ud800"}}}, "safetensors cannot hold"),
    "file of the other kind": (
        {"tensors": {CALA: {"x": noise(2)}}, "metaword": None, "metadata": None},
        "no files but",
    ),
    "path": ({"tensors": {"../x": {"x": noise(2)}}, "metaword": None, "metadata": None}, "no files but"),
    "lost embedding": ({"tensors": {LORA: {"x": noise(2)}}}, "holds the metaword alone"),
    "wrong vectors": (
        {"metaword": Metaword(token="<dekag>", vectors=3, position="prefix")},
        "metaword alone",
    ),
    "capitals": ({"metaword": Metaword(token="<DekaG>", vectors=4, position="prefix")}, "metaword.token: "),
    "no tokenizer": ({"tokenizer_digest": None}, "has a tokenizer_digest"),
    "short digest": ({"base_digest": "abc"}, "base_digest: "),
    "metric": ({"metrics": Metrics(after={"psnr_db": float("nan")})}, "metrics.after.psnr_db: "),
    "truth as setting": ({"settings": {"ema": True}}, "settings.ema"),
    "surrogate in settings": ({"settings": {"name": "\ud800"}}, "Invalid JSON"),
}


@pytest.mark.parametrize(("changes", "reason"), UNUSABLE.values(), ids=UNUSABLE.keys())
def test_contents_that_cannot_be_saved(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    """One line says why, and the disk is untouched."""
    with pytest.raises(InputError, match=reason) as caught:
        save(tmp_path / "new" / "b", **changes)
    assert_one_line(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_require_base(tmp_path: Path) -> None:
    other = digest_json("another")
    drawn, sent = save(tmp_path / "g"), save_bundle(tmp_path / "t", **transmission())
    drawn.require_base(BASE, TOKENIZER)
    sent.require_base(BASE)
    for bundle, digests, reason in (
        (drawn, (other, TOKENIZER), f"made for base model {BASE[:12]}, but here it is {other[:12]}"),
        (drawn, (BASE, other), f"made for tokenizer {TOKENIZER[:12]}, but here it is {other[:12]}"),
        (drawn, (BASE,), f"made for tokenizer {TOKENIZER[:12]}, but here it is none"),
        (sent, (other,), "made for base model"),
        (sent, (BASE, TOKENIZER), "made for tokenizer none"),
    ):
        with pytest.raises(InputError, match=reason) as caught:
            bundle.require_base(*digests)
        assert_one_line(caught.value)


def test_saving_over_what_is_there(tmp_path: Path) -> None:
    """A bundle or an empty folder gives way; anything else is kept."""
    folder = tmp_path / "b"
    folder.mkdir()
    first = save(folder)
    second = save(folder, settings={"steps": 5})
    assert first.id != second.id
    assert same(load_bundle(folder), second)
    (folder / "notes.txt").write_text("mine")
    (tmp_path / "link").symlink_to(folder)
    (tmp_path / "file").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    for target in (folder, tmp_path / "link", tmp_path / "file"):
        with pytest.raises(InputError, match="exists and is not a bundle"):
            save(target)
    assert sorted(tmp_path.rglob("*")) == before


def test_permissions_follow_the_umask(tmp_path: Path) -> None:
    save(tmp_path / "b")
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "file").touch()
    assert (tmp_path / "b").stat().st_mode == (tmp_path / "plain").stat().st_mode
    assert (tmp_path / "b" / LORA).stat().st_mode == (tmp_path / "plain" / "file").stat().st_mode


def test_pack_refuses(tmp_path: Path) -> None:
    save(tmp_path / "b")
    with pytest.raises(InputError, match=r"ends in \.tar"):
        pack(tmp_path / "b", tmp_path / "b.zip")
    (tmp_path / "b" / LORA).write_bytes(b"")
    with pytest.raises(InputError, match="damaged"):
        pack(tmp_path / "b", tmp_path / "b.tar")
    assert os.listdir(tmp_path) == ["b"]


def save_numbers(folder: Path, count: int) -> Bundle:
    given = {**transmission(), "tensors": {CALA: {"x": torch.ones(count)}}}
    return save_bundle(folder, **given)


def write_to_a_full_disk(root: Path, results: Connection) -> None:
    """In a process of its own: no file may pass 8 kB, which is how the system spells a full disk here."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))
    for attempt in (
        partial(save_numbers, root / "old", 4096),
        partial(save_numbers, root / "new", 4096),
        partial(pack, root / "large", root / "large.tar"),
    ):
        try:
            attempt()
        except OSError as err:
            results.send(str(err))


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_full_disk_leaves_nothing_behind(tmp_path: Path) -> None:
    """A refused write is an OSError that names the target in one line; all else is as before."""
    save_numbers(tmp_path / "old", 8)
    save_numbers(tmp_path / "large", 4096)
    results, sender = FORK.Pipe(duplex=False)
    writer = FORK.Process(target=write_to_a_full_disk, args=(tmp_path, sender))
    writer.start()
    writer.join()
    for name in ("old", "new", "large.tar"):
        assert results.poll(0)
        line = results.recv()
        assert line.isprintable()
        assert f"{tmp_path / name} was not written and is as it was: File too large" in line
    assert sorted(os.listdir(tmp_path)) == ["large", "old"]
    assert load_bundle(tmp_path / "old").tensors[CALA]["x"].shape == (8,)


def write_without_end(root: Path) -> None:
    for count in itertools.count():
        save_numbers(root / str(count), 20_000)


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_killed_writers_leave_whole_bundles(tmp_path: Path) -> None:
    """Ten writers killed at random moments: every folder that can be seen is a whole bundle."""
    rng = random.Random(0)
    for trial in range(10):
        root = tmp_path / str(trial)
        writer = FORK.Process(target=write_without_end, args=(root,))
        writer.start()
        while not (root / "0").exists():
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.05))
        writer.kill()
        writer.join()
        for path in root.iterdir():
            if not path.name.startswith("."):
                load_bundle(path)


def test_digest_of_tensors_is_that_of_fp16() -> None:
    """An fp16 model and the same held in fp32 agree; so does bf16 with its fp32 copy."""
    half = {"weight": noise(7, 5), "bias": noise(5, seed=1), "ids": torch.arange(3), "scale": noise()}
    full = {name: t.float() if t.is_floating_point() else t for name, t in half.items()}
    brain = {"weight": noise(7, 5).bfloat16()}
    assert digest_tensors(half) == digest_tensors(full)
    assert digest_tensors(brain) == digest_tensors({"weight": brain["weight"].float()})


def test_digest_of_tensors_sees_contents_alone() -> None:
    """Order, strides and gradients do not count; name, shape, dtype and each value do."""
    weight, ids = noise(4, 6), torch.arange(6)
    digest = digest_tensors({"w": weight, "i": ids})
    assert digest == digest_tensors({"i": ids, "w": weight})
    assert digest == digest_tensors({"w": weight.T.contiguous().T.requires_grad_(), "i": ids})
    other = weight.clone()
    other[3, 5] += 0.01
    for changed in (
        {"v": weight, "i": ids},
        {"w": weight.reshape(6, 4), "i": ids},
        {"w": weight, "i": ids.int()},
        {"w": other, "i": ids},
        {"w": weight},
        {"w": weight, "i": ids, "empty": torch.zeros(0)},
    ):
        assert digest_tensors(changed) != digest


def test_digests_are_sha256(tmp_path: Path) -> None:
    """Closed form: sha256 of the bytes, and of the canonical text."""
    (tmp_path / "file").write_bytes(b"abc")
    assert (
        digest_file(tmp_path / "file") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )
    assert (
        digest_json({"b": [1, 2.5], "a": "\u00e9"})
        == hashlib.sha256(b'{"a":"\\u00e9","b":[1,2.5]}').hexdigest()
    )
    for value in ({"x": float("nan")}, {"x": {1}}, Path("x")):
        with pytest.raises(InputError, match="a digest needs a JSON value"):
            digest_json(value)
