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
from jaxtyping import TypeCheckError
from random_draws import normal
from safetensors.torch import load_file, save_file
from torch import Tensor

from dekag.bundle.bundle import Bundle, Contents, load_bundle, save_bundle
from dekag.bundle.canonical import canonical_json, digest_file, digest_json
from dekag.bundle.container import (
    CALA,
    EMBEDDING,
    FEW_STEP,
    LORA,
    MANIFEST,
    NOISE_MAP,
    QUANTISED,
)
from dekag.bundle.digest import digest_tensors
from dekag.bundle.manifest import Metaword, Metrics
from dekag.bundle.quantise import Bits, dequantise, quantise
from dekag.bundle.sound import pack
from dekag.types import InputError
from dekag.world import locate

BASE = digest_json("a base model")
TOKENIZER = digest_json("a tokenizer")
BITS: dict[str, Bits] = {"int8": 8, "int4": 4}
CODED = QUANTISED[LORA]
FORK = multiprocessing.get_context("fork")


def noise(*shape: int, seed: int = 0) -> Tensor:
    return normal(*shape, seed=seed).half()


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


def complete() -> dict[str, Any]:
    """Arguments of a generation bundle of every file, in float32; no length but the rank is even."""
    return {
        **generation(),
        "tensors": {
            LORA: {
                "unet.a.lora_A.weight": noise(4, 67).float(),
                "unet.a.lora_B.weight": noise(33, 4, seed=1).float(),
                "unet.c.lora_A.weight": noise(4, 5, 3, 3, seed=2).float(),
                "unet.c.lora_B.weight": noise(7, 4, 1, 1, seed=3).float(),
                "unet.norm.weight": noise(9, seed=4).float(),
            },
            FEW_STEP: {
                "unet.a.lora_A.weight": noise(2, 67, seed=5).float(),
                "unet.a.lora_B.weight": noise(33, 2, seed=6).float(),
            },
            EMBEDDING: {"<dekag>": noise(4, 5, seed=7).float()},
            NOISE_MAP: {"noise_map": noise(3, 3, seed=8).float()},
        },
    }


def rewrite(folder: Path, file: str, tensors: dict[str, Tensor]) -> None:
    """Put other tensors in a file and sign it anew, as a liar would: the manifest fits in every respect."""
    names = {torch.int8: "I8", torch.uint8: "U8", torch.float16: "F16", torch.float32: "F32"}
    save_file(tensors, folder / file)
    specs = {n: {"dtype": names[t.dtype], "shape": list(t.shape)} for n, t in tensors.items()}
    forge(folder, lambda fields: fields["files"][file].update(tensors=specs))


def save(folder: Path, **changes: Any) -> Bundle:
    return save_bundle(folder, Contents(**{**generation(), **changes}))


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
    saved = save_bundle(path, Contents(**given))
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
    for name in (MANIFEST, *generation()["tensors"]):
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
        lambda f: f.update(schema_version=3, colour="red"),
        "schema version 3, this dekag reads 2",
    ),
    "earlier schema": (lambda f: f.update(schema_version=1), "schema version 1, this dekag reads 2"),
    "true for two": (lambda f: f.update(schema_version=True), "schema version True"),
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
    "raw", [b"", b"[]", b"\xff", b"[" * 100_000, b'{"schema_version":2', b"NaN", b"1" * 5000]
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
    drawn, sent = save(tmp_path / "g"), save_bundle(tmp_path / "t", Contents(**transmission()))
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
    return save_bundle(folder, Contents(**given))


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


def test_the_id_of_given_contents_stays(tmp_path: Path) -> None:
    """Golden: the id that schema version 2 gives these contents; every field and file name counts in it."""
    steps = torch.arange(12.0).reshape(3, 4) / 8
    bundle = save_bundle(
        tmp_path / "b",
        Contents(
            kind="generation",
            base_digest="a" * 64,
            tokenizer_digest="b" * 64,
            tensors={
                LORA: {"unet.a.lora_A.weight": steps.half(), "unet.a.lora_B.weight": steps.T.half()},
                EMBEDDING: {"<dekag>": steps.half()},
            },
            metaword=Metaword(token="<dekag>", vectors=3, position="suffix"),
            licence="Apache-2.0",
            settings={"rank": 3},
        ),
    )
    assert bundle.id == "98bc15b17a162317531e199a97bac2375f3982d44fd274d5291da1377b9dc58e"


@pytest.mark.parametrize("name", ["emoji/makd", "emoji/cala"])
def test_shipped_bundles_are_what_would_be_written_today(tmp_path: Path, name: str) -> None:
    """Loaded and saved again they are the same bytes, hence the same id."""
    source = Path(locate(name, "bundle"))
    bundle = load_bundle(source)
    fields = {
        field: getattr(bundle.manifest, field)
        for field in ("kind", "base_digest", "tokenizer_digest", "metaword", "licence", "metrics", "settings")
    }
    again = save_bundle(
        tmp_path / "b",
        Contents(
            **fields,
            tensors=bundle.tensors,
            metadata=bundle.metadata,
            training_digest=bundle.manifest.training_digest,
        ),
    )
    assert same(again, bundle)
    for file in source.iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()


@pytest.mark.parametrize("quantisation", ["fp32", "fp16", "int8", "int4"])
@pytest.mark.parametrize("suffix", ["", ".tar.gz"])
def test_callers_do_not_see_the_form(tmp_path: Path, quantisation: str, suffix: str) -> None:
    """Whatever the files hold, the same names and shapes come back in float32, as near as the form allows."""
    given = complete()
    save_bundle(tmp_path / "b", Contents(**given, quantisation=quantisation))
    pack(tmp_path / "b", tmp_path / "b.tar.gz")
    bundle = load_bundle(tmp_path / f"b{suffix}")
    assert bundle.manifest.quantisation == quantisation
    noise_map = bundle.noise_map()
    assert noise_map is not None
    back = {
        LORA: bundle.lora(),
        FEW_STEP: bundle.few_step(),
        EMBEDDING: bundle.embedding(),
        NOISE_MAP: {"noise_map": noise_map},
    }
    share = {"fp32": 0.0, "fp16": 0.0, "int8": 0.5 / 127, "int4": 0.2}[quantisation]
    for file, part in given["tensors"].items():
        assert back[file].keys() == part.keys()
        for name, exact in part.items():
            assert back[file][name].dtype == torch.float32
            allowed = share * float(exact.abs().max()) if file in QUANTISED and exact.dim() > 1 else 0
            torch.testing.assert_close(back[file][name], exact, rtol=0, atol=1.001 * allowed)


@pytest.mark.parametrize("quantisation", ["int8", "int4"])
def test_quantised_files(tmp_path: Path, quantisation: str) -> None:
    """LoRA goes by its other name, with its metadata, in the form of `quantise`; all else is fp16."""
    given = complete()
    bundle = save_bundle(tmp_path / "b", Contents(**given, quantisation=quantisation))
    assert bundle.tensors.keys() == {CODED, QUANTISED[FEW_STEP], EMBEDDING, NOISE_MAP}
    assert bundle.metadata[CODED] == given["metadata"][LORA]
    assert {t.dtype for f in (EMBEDDING, NOISE_MAP) for t in bundle.tensors[f].values()} == {torch.float16}
    for plain in (LORA, FEW_STEP):
        coded = QUANTISED[plain]
        expected = quantise(given["tensors"][plain], bits=BITS[quantisation])
        assert bundle.tensors[coded].keys() == expected.keys()
        assert all(torch.equal(bundle.tensors[coded][name], value) for name, value in expected.items())


@pytest.mark.parametrize("quantisation", ["fp16", "int8", "int4"])
def test_same_contents_same_bytes_in_every_form(tmp_path: Path, quantisation: str) -> None:
    """Order and strides do not reach the bytes; storing what was loaded gives them once more."""
    given = complete()
    other = {
        file: {n: t.mT.contiguous().mT if t.dim() > 1 else t for n, t in reversed(part.items())}
        for file, part in reversed(given["tensors"].items())
    }
    first = save_bundle(tmp_path / "0", Contents(**given, quantisation=quantisation))
    save_bundle(tmp_path / "1", Contents(**{**given, "tensors": other}, quantisation=quantisation))
    save_bundle(tmp_path / "2", Contents(**{**given, "tensors": first.tensors, "metadata": first.metadata}))
    decoded = {LORA: first.lora(), FEW_STEP: first.few_step(), EMBEDDING: first.embedding()}
    decoded[NOISE_MAP] = {"noise_map": given["tensors"][NOISE_MAP]["noise_map"]}
    save_bundle(tmp_path / "3", Contents(**{**given, "tensors": decoded}, quantisation=quantisation))
    for file in (MANIFEST, *first.tensors):
        assert len({(tmp_path / str(run) / file).read_bytes() for run in range(4)}) == 1


def test_fewer_bits_are_fewer_bytes(tmp_path: Path) -> None:
    """Of the tensors alone: halves, but for the scales."""
    lora = {"x.lora_A.weight": noise(16, 2048).float(), "x.lora_B.weight": noise(2048, 16, seed=1).float()}
    sizes = {}
    for form in ("fp32", "fp16", "int8", "int4"):
        bundle = save(tmp_path / form, tensors={LORA: lora}, metaword=None, quantisation=form)
        (part,) = bundle.tensors.values()
        sizes[form] = sum(t.numel() * t.element_size() for t in part.values())
    assert sizes["fp16"] == sizes["fp32"] // 2 == 2 * 65536
    assert 65536 < sizes["int8"] < 1.01 * 65536
    assert 32768 < sizes["int4"] < 1.07 * 32768


PARTS = {
    "LoRA": (LORA,),
    "few steps": (FEW_STEP,),
    "both LoRA": (LORA, FEW_STEP),
    "metaword": (EMBEDDING,),
    "metaword and few steps": (EMBEDDING, FEW_STEP),
    "noise map": (NOISE_MAP,),
    "metaword and noise map": (EMBEDDING, NOISE_MAP),
}


@pytest.mark.parametrize("quantisation", ["fp16", "int8"])
@pytest.mark.parametrize("files", PARTS.values(), ids=PARTS.keys())
def test_any_part_may_be_left_out(tmp_path: Path, files: tuple[str, ...], quantisation: str) -> None:
    """What is not there is empty; without LoRA nothing is in int8, and the manifest says fp16."""
    given = complete()
    changes = {
        "tensors": {file: given["tensors"][file] for file in files},
        "metadata": None,
        "metaword": given["metaword"] if EMBEDDING in files else None,
    }
    save_bundle(tmp_path / "b", Contents(**{**given, **changes}, quantisation=quantisation))
    bundle = load_bundle(tmp_path / "b")
    assert bool(bundle.lora()) == (LORA in files)
    assert bool(bundle.few_step()) == (FEW_STEP in files)
    assert bool(bundle.embedding()) == (EMBEDDING in files)
    assert (bundle.noise_map() is not None) == (NOISE_MAP in files)
    assert bundle.manifest.quantisation == (quantisation if {LORA, FEW_STEP} & {*files} else "fp16")


def test_two_text_encoders(tmp_path: Path) -> None:
    """One matrix each, of any width, under the names that diffusers and ComfyUI give them; clip_l first."""
    two = {"clip_l": noise(4, 5), "clip_g": noise(4, 8, seed=1)}
    save(tmp_path / "b", tensors={EMBEDDING: two}, metadata=None)
    back = load_bundle(tmp_path / "b").embedding()
    assert list(back) == ["clip_l", "clip_g"]
    assert all(torch.equal(back[name], value.float()) for name, value in two.items())


def test_other_files_choose_their_own_width(tmp_path: Path) -> None:
    """Quantisation speaks of the LoRA alone: fp16 beside an fp32 metaword."""
    tensors = {LORA: {"x": noise(2, 3)}, EMBEDDING: {"<dekag>": noise(4, 5).float()}}
    assert save(tmp_path / "b", tensors=tensors).manifest.quantisation == "fp16"


NOT_SAVED: dict[str, tuple[dict[str, Any], str]] = {
    "one encoder of two": ({"tensors": {EMBEDDING: {"clip_l": noise(4, 5)}}}, "metaword alone"),
    "token and encoder": (
        {"tensors": {EMBEDDING: {"clip_l": noise(4, 5), "<dekag>": noise(4, 5)}}},
        "metaword alone",
    ),
    "encoders of other vectors": (
        {"tensors": {EMBEDDING: {"clip_l": noise(4, 5), "clip_g": noise(3, 8)}}},
        "metaword alone",
    ),
    "flat metaword": ({"tensors": {EMBEDDING: {"<dekag>": noise(4)}}}, "metaword alone"),
    "oblong map": ({"tensors": {NOISE_MAP: {"noise_map": noise(3, 4)}}, "metaword": None}, "noise_map alone"),
    "deep map": (
        {"tensors": {NOISE_MAP: {"noise_map": noise(3, 3, 3)}}, "metaword": None},
        "noise_map alone",
    ),
    "other map": ({"tensors": {NOISE_MAP: {"map": noise(3, 3)}}, "metaword": None}, "noise_map alone"),
    "two maps": (
        {"tensors": {NOISE_MAP: {"noise_map": noise(3, 3), "b": noise(3, 3)}}, "metaword": None},
        "noise_map alone",
    ),
    "coded in a plain file": (
        {"tensors": {LORA: quantise({"x": noise(2, 3).float()})}, "metaword": None},
        "must be F16 or F32, got I8",
    ),
    "plain in a coded file": (
        {"tensors": {CODED: {"x": noise(2, 3)}}, "metaword": None},
        f"with quantisation fp16, LoRA is in {LORA} and {FEW_STEP}",
    ),
    "fp32 in a coded file": (
        {"tensors": {CODED: {"x": noise(2, 3).float()}}, "metaword": None},
        "must be F16 or I8 or U8, got F32",
    ),
    "both forms": (
        {"tensors": {LORA: {"x": noise(2, 3)}, CODED: quantise({"x": noise(2, 3)})}, "metaword": None},
        "LoRA is in|its LoRA",
    ),
    "two forms": (
        {
            "tensors": {
                CODED: quantise({"x": noise(2, 3)}),
                QUANTISED[FEW_STEP]: quantise({"x": noise(2, 3)}, bits=4),
            },
            "metaword": None,
        },
        "LoRA is in|its LoRA",
    ),
    "two widths": (
        {"tensors": {CODED: quantise({"x": noise(2, 3)}) | quantise({"y": noise(2, 3)}, bits=4)}},
        "LoRA is in|its LoRA",
    ),
    "coded twice": (
        {"tensors": {CODED: quantise({"x": noise(2, 3)})}, "metaword": None, "quantisation": "int8"},
        f"{CODED} cannot be encoded in int8",
    ),
    "vectors alone": (
        {"tensors": {LORA: {"x": noise(3)}}, "metaword": None, "quantisation": "int8"},
        "LoRA is in",
    ),
    "whole numbers as fp16": (
        {"tensors": {LORA: {"x": torch.ones(2, 2, dtype=torch.int64)}}, "quantisation": "fp16"},
        "must be F16 or F32, got I64",
    ),
    "whole numbers as int8": (
        {"tensors": {LORA: {"x": torch.ones(2, 2, dtype=torch.int64)}}, "quantisation": "int8"},
        "must hold finite floating-point",
    ),
    "NaN as int8": (
        {"tensors": {LORA: {"x": noise(2, 2) / 0}}, "quantisation": "int8"},
        "must hold finite floating-point",
    ),
    "too large for fp16": (
        {"tensors": {EMBEDDING: {"<dekag>": 1e6 * noise(4, 5).float()}}, "quantisation": "int4"},
        "'<dekag>' is too large for fp16",
    ),
}


@pytest.mark.parametrize(("changes", "reason"), NOT_SAVED.values(), ids=NOT_SAVED.keys())
def test_forms_that_cannot_be_saved(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    """One line says why, and the disk is untouched."""
    with pytest.raises(InputError, match=reason) as caught:
        save(tmp_path / "new" / "b", **{"metadata": None, **changes})
    assert_one_line(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("quantisation", ["fp16", "int8", "int4"])
def test_an_update_of_a_codec_goes_in_every_form(tmp_path: Path, quantisation: str) -> None:
    """As the low-rank files of a generator do: by its other name in whole numbers, and back."""
    given = transmission()
    bundle = save_bundle(tmp_path / "t", Contents(**given, quantisation=quantisation))
    assert bundle.manifest.quantisation == quantisation
    assert bundle.tensors.keys() == {CALA if quantisation == "fp16" else QUANTISED[CALA]}
    expected = given["tensors"][CALA]
    if quantisation != "fp16":
        expected = dequantise(quantise(expected, bits=BITS[quantisation]))
    found = load_bundle(tmp_path / "t").cala()
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor.half().float(), rtol=1e-3, atol=1e-6)


def test_unknown_forms(tmp_path: Path) -> None:
    with pytest.raises((InputError, TypeCheckError), match=r"one of fp16, fp32, int8, int4|Literal"):
        save(tmp_path / "b", quantisation="int2")
    assert list(tmp_path.iterdir()) == []


MATRIX, SCALE = "unet.a.lora_A.weight", "unet.a.lora_A.weight.scale"
LIES: dict[str, tuple[Callable[[dict[str, Tensor]], object], str]] = {
    "missing scale": (lambda t: t.pop(SCALE), "must have a scale"),
    "missing matrix": (lambda t: t.pop(MATRIX), f"'{SCALE}' is neither"),
    "extra scale": (lambda t: t.update({"x.scale": t[SCALE].clone()}), "'x.scale' is neither"),
    "extra matrix": (lambda t: t.update(x=t[SCALE].clone()), "'x' is neither"),
    "larger scale": (lambda t: t.update({SCALE: t[SCALE].repeat(1, 2)}), "must be float16"),
    "flat scale": (lambda t: t.update({SCALE: t[SCALE].flatten()}), "must be float16"),
    "coded scale": (lambda t: t.update({SCALE: t[MATRIX].clone()}), "must be float16|must have a scale"),
    "negative scale": (lambda t: t.update({SCALE: -t[SCALE]}), "at least 0"),
    "infinite scale": (lambda t: t.update({SCALE: t[SCALE] / 0}), f"'{SCALE}' must be finite"),
    "reshaped": (lambda t: t.update({MATRIX: t[MATRIX].reshape(-1, 2)}), "must be float16|holds -8"),
    "flat": (lambda t: t.update({MATRIX: t[MATRIX].flatten()}), "2 to 5 dimensions"),
    "eight dimensions": (
        lambda t: t.update({MATRIX: t[MATRIX].reshape(4, -1, *[1] * 6)}),
        "2 to 5 dimensions",
    ),
    "seventy dimensions": (lambda t: t.update({MATRIX: t[MATRIX].reshape(4, -1, *[1] * 68)}), "shape: "),
    "fp32 vector": (lambda t: t.update({"unet.norm.weight": t["unet.norm.weight"].float()}), "its LoRA, or"),
    "other bits": (
        lambda t: t.update(
            {MATRIX: t[MATRIX].view(torch.uint8 if t[MATRIX].dtype == torch.int8 else torch.int8)}
        ),
        "its LoRA, or",
    ),
    "strange name": (lambda t: t.update({"a\x1b[2J\nb" * 90: t[MATRIX].clone()}), "must have a scale"),
}


@pytest.mark.parametrize("quantisation", ["int8", "int4"])
@pytest.mark.parametrize(("change", "reason"), LIES.values(), ids=LIES.keys())
def test_signed_lies_about_quantised_tensors(
    tmp_path: Path, change: Callable[[dict[str, Tensor]], object], reason: str, quantisation: str
) -> None:
    """Digests, sizes, shapes and id all agree with the file, and still it is not quantised LoRA."""
    save_bundle(tmp_path / "b", Contents(**complete(), quantisation=quantisation))
    tensors = load_file(tmp_path / "b" / CODED)
    rewrite(tmp_path / "b", CODED, tensors)
    load_bundle(tmp_path / "b")
    change(tensors)
    rewrite(tmp_path / "b", CODED, tensors)
    refused(tmp_path / "b", reason)


def test_signed_lies_about_the_form(tmp_path: Path) -> None:
    """The name of the form, whole numbers in files that hold none, and a number outside four bits' range."""
    folder = tmp_path / "b"
    save_bundle(folder, Contents(**complete(), quantisation="int4"))
    for form in ("fp16", "fp32", "int8"):
        forge(folder, lambda fields, form=form: fields.update(quantisation=form))
        refused(folder, f"with quantisation {form}, LoRA is in|its LoRA, or")
    for form in ("int2", "INT4", 4):
        forge(folder, lambda fields, form=form: fields.update(quantisation=form))
        refused(folder, "quantisation: ")
    save_bundle(folder, Contents(**complete(), quantisation="int4"))
    tensors = load_file(folder / CODED)
    tensors[MATRIX][0, 0] = 0x88
    rewrite(folder, CODED, tensors)
    refused(folder, "holds -8 elsewhere")
    for file, name in ((EMBEDDING, "<dekag>"), (NOISE_MAP, "noise_map")):
        save_bundle(folder, Contents(**complete(), quantisation="int8"))
        rewrite(folder, file, {name: load_file(folder / file)[name].to(torch.int8)})
        refused(folder, "all but the LoRA must be F16 or F32")


@pytest.mark.parametrize("quantisation", ["int8", "int4"])
def test_every_flipped_bit_of_a_quantised_bundle_is_refused(tmp_path: Path, quantisation: str) -> None:
    """100 positions drawn over all files; nothing but an InputError of one line ever comes of it."""
    save_bundle(tmp_path / "b", Contents(**complete(), quantisation=quantisation))
    rng = random.Random(1)
    files = sorted((tmp_path / "b").iterdir())
    for _ in range(100):
        file = rng.choice(files)
        whole = file.read_bytes()
        flipped = bytearray(whole)
        flipped[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        file.write_bytes(flipped)
        refused(tmp_path / "b")
        file.write_bytes(whole)
    assert load_bundle(tmp_path / "b").lora().keys() == complete()["tensors"][LORA].keys()
