"""Pack what a run needs for a machine without a network, and a run's results for the way back."""

import io
import json
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from safetensors.torch import save_file
from transformers import CLIPModel, ViTModel
from world import Concept

from .concepts import core_concepts, roles
from .loop import write_atomically
from .lpips import read_package
from .measures import save_pipeline
from .pictures import ART
from .run import PACKED_LPIPS

MIB = 2**20
MAX_ART, MAX_TRAVEL, MAX_RESULT, MAX_RESULTS = 6 * MIB, 62 * MIB, 16 * MIB, 8
QUALITY = 75
"""Of the others' drawings, which no number is reported on."""
WHEELS = ("diffusers", "peft")
"""Packages that machines with torch often lack."""


class PackError(Exception):
    """What was packed does not fit; the message says what and by how much."""


def pack(data: Path, out: Path, root: Path, *, wheels: bool = True) -> dict[str, int]:
    """Write the art of core and others, LPIPS in fp16 and wheels into `out`; bytes by name, the checkout's too.

    `root` is the checkout, whose tracked files travel with the pack. Raises PackError if it is too large.
    """
    out.mkdir(parents=True, exist_ok=True)
    rows = json.loads((data / "concepts.json").read_text(encoding="utf-8"))
    concepts = [Concept(**{**row, "keywords": tuple(row["keywords"])}) for row in rows]
    core = {c.id for c in core_concepts(concepts)}
    others = {c.id for c in roles(concepts).others}
    for hand in ART:
        # no model learns from this hand's drawings of the others but the autoencoder, which can do without
        copy_members(data, out, hand, core, frozenset() if hand == "twemoji" else others)
    text = (data / "concepts.json").read_bytes()
    write_atomically(out / "concepts.json", lambda part: part.write_bytes(text))
    tensors = {name: value.half() for name, value in read_package("alexnet").items()}
    write_atomically(out / PACKED_LPIPS, lambda part: save_file(tensors, part))
    if wheels:
        fetch_wheels(out / "wheels", root / "constraints.txt")
    sizes = {str(p.relative_to(out)): p.stat().st_size for p in sorted(out.rglob("*")) if p.is_file()}
    sizes["checkout"] = checkout_bytes(root)
    check(sizes)
    return sizes


def check(sizes: dict[str, int]) -> None:
    """Raise PackError if the art or the whole is too large."""
    art = sum(size for name, size in sizes.items() if name.endswith((".zip", "concepts.json")))
    if art > MAX_ART:
        raise PackError(f"the art has {art / MIB:.2f} MiB, at most {MAX_ART // MIB}")
    if (total := sum(sizes.values())) > MAX_TRAVEL:
        raise PackError(f"{total / MIB:.2f} MiB would travel, at most {MAX_TRAVEL // MIB}")


def copy_members(data: Path, out: Path, hand: str, core: Iterable[str], others: Iterable[str]) -> None:
    """A zip of one hand with these concepts only: the core's drawings as they are, the others' compressed more."""

    def write(part: Path) -> None:
        with zipfile.ZipFile(data / f"{hand}.zip") as source, zipfile.ZipFile(part, "w") as target:
            rows = [(i, source.read(f"{i}.webp")) for i in core]
            rows += [(i, compressed(source.read(f"{i}.webp"))) for i in others]
            for name, content in sorted(rows):
                target.writestr(zipfile.ZipInfo(f"{name}.webp", date_time=(1980, 1, 1, 0, 0, 0)), content)

    write_atomically(out / f"{hand}.zip", write)


def compressed(picture: bytes) -> bytes:
    """A WebP picture with its colours at QUALITY and its alpha as it is."""
    buffer = io.BytesIO()
    Image.open(io.BytesIO(picture)).save(buffer, "WEBP", quality=QUALITY)
    return buffer.getvalue()


def fetch_wheels(folder: Path, constraints: Path) -> None:
    """Bring the pinned wheels into `folder`. Raises PackError if pip cannot."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "-q",
        "--no-deps",
        "-c",
        str(constraints),
        "-d",
        str(folder),
    ]
    result = subprocess.run([*command, *WHEELS], capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise PackError(f"pip could not bring {', '.join(WHEELS)}: {result.stderr.strip().splitlines()[-1]}")


def checkout_bytes(root: Path) -> int:
    """Bytes of the files that git tracks."""
    listed = subprocess.run(
        ["git", "-C", str(root), "ls-files", "-z"], capture_output=True, check=True
    ).stdout
    paths = (root / name.decode() for name in listed.split(b"\0") if name)
    return sum(path.stat().st_size for path in paths if path.is_file())


def pack_results(run: Path, out: Path) -> dict[str, int]:
    """Write a run's models in fp16 and its reports as at most 8 tar files under 16 MiB; bytes by name.

    Raises PackError if a file is too large.
    """
    out.mkdir(parents=True, exist_ok=True)
    half = out / "half"
    for name in ("cloud", "edge"):
        if (run / name / "model").exists():
            pipeline = StableDiffusionPipeline.from_pretrained(run / name / "model", dtype=torch.float16)
            save_pipeline(pipeline, half / name)
    for name, kind in (("mini-clip", CLIPModel), ("mini-dino", ViTModel)):
        if (run / name / "model").exists():
            extra: dict[str, Any] = {"add_pooling_layer": False} if kind is ViTModel else {}
            kind.from_pretrained(run / name / "model", dtype=torch.float16, **extra).save_pretrained(
                half / name
            )
    groups = {name: [half / name] for name in ("cloud", "edge", "mini-clip", "mini-dino")}
    groups["autoencoder"] = [run / "autoencoder" / "model"]
    groups["reports"] = [
        *run.glob("*.json"), *run.glob("*.md"), run / "tokenizer",
        *run.glob("*/progress.json"), *(s for f in sorted(run.glob("*/sheets")) for s in sorted(f.iterdir())[-2:]),
        *run.glob("mini-*/model/*.json"),
    ]  # fmt: skip
    sizes = {}
    for name, paths in groups.items():
        write_tar(out / f"{name}.tar", [p for p in paths if p.exists()], run, half)
        sizes[f"{name}.tar"] = (out / f"{name}.tar").stat().st_size
    shutil.rmtree(half, ignore_errors=True)
    large = [name for name, size in sizes.items() if size > MAX_RESULT]
    if large or len(sizes) > MAX_RESULTS:
        raise PackError(f"{large[0] if large else len(sizes)} is too large for the way back")
    return sizes


def write_tar(path: Path, members: list[Path], run: Path, half: Path) -> None:
    """A tar of files and folders, named as in the run, without times and owners."""

    def plain(info: tarfile.TarInfo) -> tarfile.TarInfo:
        info.mtime, info.uid, info.gid, info.uname, info.gname = 0, 0, 0, "", ""
        return info

    def write(part: Path) -> None:
        with tarfile.open(part, "w") as archive:
            for member in members:
                below = half if member.is_relative_to(half) else run
                archive.add(member, str(member.relative_to(below)), filter=plain)

    write_atomically(path, write)
