"""Rebuild the emoji data from public npm packages: `python recipes/emoji/prepare.py --out DATA`.

Writes `concepts.json` and one zip of 128 x 128 RGBA WebP pictures for each of three drawings of the same
concepts. A concept is an emoji that all three packages draw; flags and keycaps are left out. What exists
already is kept, so an interrupted run goes on where it stopped. Needs the npm client and `resvg-py`.
"""

import argparse
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import resvg_py
from PIL import Image
from rich.progress import track
from world import Concept

SIZE = 128
QUALITY = 88
EXCLUDED_GROUPS = frozenset({"flags", "component"})
HELD_OUT = frozenset(Path(__file__).with_name("heldout.txt").read_text(encoding="ascii").split())
"""Ids of the concepts that distillation never sees."""

Draw = Callable[[], Image.Image]
Art = Mapping[str, Draw]
"""Concept id -> what draws its picture."""


class PrepareError(Exception):
    """The data cannot be prepared; the message says what to do."""


@dataclass(frozen=True, kw_only=True)
class Package:
    """One version of an npm package and the digest of its tarball."""

    name: str
    version: str
    sha256: str

    @property
    def file_name(self) -> str:
        return f"{self.name.removeprefix('@').replace('/', '-')}-{self.version}.tgz"


PACKAGES = {
    "names": Package(
        name="emojibase-data",
        version="17.0.0",
        sha256="d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a",
    ),
    "fluent3d": Package(
        name="@lobehub/fluent-emoji-3d",
        version="1.1.0",
        sha256="c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58",
    ),
    "noto": Package(
        name="@iconify-json/noto",
        version="1.2.9",
        sha256="3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad",
    ),
    "twemoji": Package(
        name="@twemoji/svg",
        version="15.0.0",
        sha256="1d2907557a422c7c4e3feca50ef915c39da1db3d76b4a4d7e73fb59bce4403c3",
    ),
}


def normalise_id(code_points: str) -> str:
    """Hexadecimal code points in lower case, without U+FE0F: `2764-FE0F` becomes `2764`."""
    return "-".join(part for part in code_points.lower().split("-") if part != "fe0f")


def split_of(concept_id: str) -> str:
    """`heldout` or `distill`."""
    return "heldout" if concept_id in HELD_OUT else "distill"


def select_concepts(
    emoji: Iterable[Mapping[str, Any]], groups: Mapping[str, str], drawn: frozenset[str]
) -> list[Concept]:
    """The concepts of emojibase rows, in order of their ids; `drawn` holds the ids that every set draws."""
    concepts = []
    for row in emoji:
        concept_id = normalise_id(row["hexcode"])
        group = groups.get(str(row.get("group")), "component")
        if concept_id in drawn and group not in EXCLUDED_GROUPS and not row["label"].startswith("keycap"):
            concepts.append(
                Concept(
                    id=concept_id,
                    name=row["label"],
                    keywords=tuple(row.get("tags", ())),
                    group=group,
                    split=split_of(concept_id),
                )
            )
    return sorted(concepts, key=lambda concept: concept.id)


def render_svg(svg: str) -> Image.Image:
    """Draw an SVG as RGBA, 128 x 128."""
    png = resvg_py.svg_to_bytes(svg_string=svg, width=SIZE, height=SIZE, skip_system_fonts=True)
    return Image.open(io.BytesIO(bytes(png))).convert("RGBA")


def shrink(picture: bytes) -> Image.Image:
    """Resize an encoded picture to RGBA, 128 x 128."""
    image = Image.open(io.BytesIO(picture)).convert("RGBA")
    return image.resize((SIZE, SIZE), Image.Resampling.LANCZOS)


def encode_webp(image: Image.Image) -> bytes:
    """WebP with lossy colour and lossless alpha."""
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=QUALITY)
    return buffer.getvalue()


def download(package: Package, folder: Path) -> Path:
    """The package's tarball in `folder`, fetched by `npm pack` unless it is there. Raises PrepareError."""
    target = folder / package.file_name
    if not target.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as part:
            os.replace(npm_pack(f"{package.name}@{package.version}", Path(part)), target)
    if hashlib.sha256(target.read_bytes()).hexdigest() != package.sha256:
        raise PrepareError(
            f"{target} is not the expected {package.name} {package.version}; delete it and try again"
        )
    return target


def npm_pack(spec: str, folder: Path) -> Path:
    """Fetch one package into an empty folder."""
    npm = shutil.which("npm")
    if npm is None:
        raise PrepareError("npm was not found; install Node.js, which brings it (on Debian: apt install npm)")
    command = [npm, "pack", spec, "--pack-destination", str(folder), "--ignore-scripts", "--loglevel=error"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    tarballs = list(folder.glob("*.tgz"))
    if result.returncode != 0 or len(tarballs) != 1:
        reason = next((line for line in result.stderr.splitlines() if line.strip()), "no reason given")
        raise PrepareError(f"npm pack {spec} failed: {reason}")
    return tarballs[0]


def read_members(tarball: Path, suffix: str) -> dict[str, bytes]:
    """Path below `package/` -> content, for every file with this suffix."""
    with tarfile.open(tarball) as archive:
        members = [m for m in archive if m.isfile() and m.name.endswith(suffix)]
        files = {m.name.partition("/")[2]: archive.extractfile(m) for m in members}
        return {name: file.read() for name, file in sorted(files.items()) if file is not None}


def first_of_each(drawings: Iterable[tuple[str, Draw]]) -> Art:
    """Drawings by id; of two whose code points differ in U+FE0F only, the first is taken."""
    art: dict[str, Draw] = {}
    for code_points, draw in drawings:
        art.setdefault(normalise_id(code_points), draw)
    return art


def fluent_art(tarball: Path) -> Art:
    """Fluent 3D comes as 256 x 256 WebP pictures named by code points."""
    files = read_members(tarball, ".webp")
    return first_of_each((Path(name).stem, partial(shrink, data)) for name, data in files.items())


def twemoji_art(tarball: Path) -> Art:
    """Twemoji comes as SVG files named by code points."""
    files = read_members(tarball, ".svg")
    return first_of_each(
        (Path(name).stem, partial(render_svg, data.decode())) for name, data in files.items()
    )


def noto_art(tarball: Path) -> Art:
    """Noto comes as one JSON file of SVG bodies by name, and another of names by code points."""
    files = read_members(tarball, ".json")
    bodies = {name: icon["body"] for name, icon in json.loads(files["icons.json"])["icons"].items()}
    names = sorted(json.loads(files["chars.json"]).items())
    return first_of_each(
        (code_points, partial(render_svg, wrap_svg(bodies[name])))
        for code_points, name in names
        if name in bodies
    )


def wrap_svg(body: str) -> str:
    """A whole SVG from the body of a 128 x 128 icon."""
    names = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return f'<svg {names} viewBox="0 0 128 128">{body}</svg>'


ARTISTS = {"fluent3d": fluent_art, "noto": noto_art, "twemoji": twemoji_art}


def write_concepts(path: Path, concepts: Iterable[Concept]) -> None:
    """Write `concepts.json`."""
    part = path.with_name(path.name + ".part")
    rows = [asdict(concept) for concept in concepts]
    part.write_text(json.dumps(rows, indent=0, ensure_ascii=False), encoding="utf-8")
    os.replace(part, path)


def write_art(path: Path, art: Art, concepts: Iterable[Concept]) -> None:
    """Draw every concept into a zip whose members are named by id and carry no time of day."""
    part = path.with_name(path.name + ".part")
    with zipfile.ZipFile(part, "w", zipfile.ZIP_STORED) as archive:
        for concept in track(list(concepts), description=path.name, disable=not sys.stdout.isatty()):
            member = zipfile.ZipInfo(f"{concept.id}.webp", date_time=(1980, 1, 1, 0, 0, 0))
            archive.writestr(member, encode_webp(art[concept.id]()))
    os.replace(part, path)


def prepare(out: Path, packages: Path) -> None:
    """Download what is missing and write what is missing. Raises PrepareError."""
    targets = [out / "concepts.json", *(out / f"{name}.zip" for name in ARTISTS)]
    if all(target.exists() for target in targets):
        print(f"{out} is complete; delete a file in it to rebuild that file")
        return
    tarballs = {}
    for name, package in PACKAGES.items():
        print(f"{package.name} {package.version}", flush=True)
        tarballs[name] = download(package, packages)
    arts = {name: read(tarballs[name]) for name, read in ARTISTS.items()}
    files = read_members(tarballs["names"], ".json")
    groups = json.loads(files["meta/groups.json"])["groups"]
    drawn = frozenset.intersection(*(frozenset(art) for art in arts.values()))
    concepts = select_concepts(json.loads(files["en/data.json"]), groups, drawn)
    out.mkdir(parents=True, exist_ok=True)
    for target in targets:
        if target.exists():
            print(f"{target} is kept")
        elif target.suffix == ".json":
            write_concepts(target, concepts)
            print(f"{target}: {len(concepts)} concepts")
        else:
            write_art(target, arts[target.stem], concepts)
            print(f"{target}: {len(concepts)} pictures")


def pack(data: Path, out: Path) -> None:
    """Write the pack and print what travels. Raises PrepareError."""
    from stages.packing import MAX_TRAVEL, MIB, PackError
    from stages.packing import pack as write

    if not (data / "concepts.json").exists():
        raise PrepareError(f"{data} has no concepts.json; run prepare.py --out {data} first, without --pack")
    try:
        sizes = write(data, out, Path(__file__).parents[2])
    except (PackError, FileNotFoundError) as error:
        raise PrepareError(str(error)) from error
    for name, size in sizes.items():
        print(f"{size / MIB:7.2f} MiB  {name}")
    print(f"{sum(sizes.values()) / MIB:7.2f} MiB  in all, at most {MAX_TRAVEL // MIB}")


def main() -> None:
    """Read the command line and prepare the data."""
    parser = argparse.ArgumentParser(description="Rebuild the emoji data from public npm packages.")
    parser.add_argument("--out", type=Path, required=True, help="folder for the data")
    parser.add_argument("--packages", type=Path, help="folder for downloads (default: OUT/packages)")
    parser.add_argument(
        "--pack",
        type=Path,
        help="write to this folder what train.py needs on a machine without a network, from the data in OUT",
    )
    arguments = parser.parse_args()
    try:
        if arguments.pack is not None:
            pack(arguments.out, arguments.pack)
            return
        prepare(arguments.out, arguments.packages or arguments.out / "packages")
    except (PrepareError, OSError) as error:
        sys.exit(f"prepare: {error}")


if __name__ == "__main__":
    main()
