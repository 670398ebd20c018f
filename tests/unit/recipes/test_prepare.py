"""The parts of the emoji data recipe that need no download."""

import hashlib
import io
import json
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from places import EMOJI_DATA
from prepare import (
    HELD_OUT,
    PACKAGES,
    Package,
    PrepareError,
    download,
    encode_webp,
    normalise_id,
    noto_art,
    render_svg,
    select_concepts,
    shrink,
    split_of,
    twemoji_art,
    write_art,
    write_concepts,
)
from world import Concept, World

SQUARE = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32">'
    '<path fill="#dd2e44" d="M0 0h16v32H0z"/></svg>'
)


def tarball(path: Path, files: dict[str, bytes]) -> Path:
    """An npm tarball with these files."""
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def row(code_points: str, label: str, group: int | None = 4) -> dict[str, object]:
    """An emojibase row."""
    return {"hexcode": code_points, "label": label, "tags": ["a", "b"], "group": group}


@pytest.mark.parametrize(
    ("code_points", "concept_id"),
    [
        ("1F34E", "1f34e"),
        ("2764-FE0F", "2764"),
        ("1F3CB-FE0F-200D-2642-FE0F", "1f3cb-200d-2642"),
        ("1f469-200d-1f4bb", "1f469-200d-1f4bb"),
    ],
)
def test_ids_are_lower_case_without_variation_selectors(code_points: str, concept_id: str) -> None:
    assert normalise_id(code_points) == concept_id
    assert normalise_id(concept_id) == concept_id


def test_held_out_ids_are_the_published_ones() -> None:
    """Regression, not truth: a changed split would make published numbers incomparable."""
    digest = hashlib.sha256("\n".join(sorted(HELD_OUT)).encode()).hexdigest()
    assert len(HELD_OUT) == 324
    assert digest == "af06c381800cc4398fc008e7a0370201fef26c7b77fdd0caf87745765952bef4"
    assert all(normalise_id(i) == i for i in HELD_OUT)


def test_split_follows_the_held_out_ids() -> None:
    assert split_of(min(HELD_OUT)) == "heldout"
    assert split_of("1f34e") == "distill"


def test_concepts_are_emoji_that_every_set_draws_without_flags_and_keycaps() -> None:
    groups = {"2": "component", "4": "food-drink", "8": "symbols", "9": "flags"}
    emoji = [
        row("1F34E", "red apple"),
        row("1F1E6", "regional indicator A", None),
        row("1F3FB", "light skin tone", 2),
        row("1F3C1", "chequered flag", 9),
        row("1F51F", "keycap: 10", 8),
        row("1F34F", "green apple"),
        row("1F33D", "ear of corn"),
    ]
    drawn = frozenset({"1f34e", "1f1e6", "1f3fb", "1f3c1", "1f51f", "1f33d"})
    concepts = select_concepts(emoji, groups, drawn)
    assert [c.name for c in concepts] == ["ear of corn", "red apple"]
    assert concepts[1] == Concept(
        id="1f34e", name="red apple", keywords=("a", "b"), group="food-drink", split="distill"
    )


def test_svg_is_drawn_at_128_pixels_with_alpha() -> None:
    """The left half is the fill colour of the SVG, the right half is transparent."""
    image = render_svg(SQUARE)
    assert (image.size, image.mode) == ((128, 128), "RGBA")
    assert image.getpixel((10, 64)) == (0xDD, 0x2E, 0x44, 255)
    assert image.getpixel((120, 64)) == (0, 0, 0, 0)


def test_webp_keeps_alpha_and_nearly_keeps_colour() -> None:
    image = render_svg(SQUARE)
    decoded = np.asarray(Image.open(io.BytesIO(encode_webp(image))).convert("RGBA"), dtype=int)
    original = np.asarray(image, dtype=int)
    assert np.array_equal(decoded[..., 3], original[..., 3])
    assert np.abs(decoded - original)[:, :48].max() <= 4


def test_shrink_halves_a_picture() -> None:
    buffer = io.BytesIO()
    Image.new("RGBA", (256, 256), (10, 200, 30, 255)).save(buffer, "PNG")
    image = shrink(buffer.getvalue())
    assert image.size == (128, 128)
    assert image.getpixel((64, 64)) == (10, 200, 30, 255)


def test_svg_packages_are_read_by_id(tmp_path: Path) -> None:
    twemoji = tarball(tmp_path / "t.tgz", {"2764-fe0f.svg": SQUARE.encode(), "readme.md": b""})
    body = '<path fill="#dd2e44" d="M0 0h64v128H0z"/>'
    icons = {"icons.json": {"icons": {"red-heart": {"body": body}}}, "chars.json": {"2764": "red-heart"}}
    noto = tarball(tmp_path / "n.tgz", {name: json.dumps(v).encode() for name, v in icons.items()})
    drawings = [twemoji_art(twemoji), noto_art(noto)]
    assert [list(d) for d in drawings] == [["2764"], ["2764"]]
    assert drawings[0]["2764"]().tobytes() == drawings[1]["2764"]().tobytes()


def test_of_two_spellings_of_an_id_the_first_is_drawn(tmp_path: Path) -> None:
    blue = SQUARE.replace("dd2e44", "0000ff")
    files = {"26a7.svg": blue.encode(), "26a7-fe0f.svg": SQUARE.encode()}
    art = twemoji_art(tarball(tmp_path / "t.tgz", files))
    assert art["26a7"]().getpixel((10, 64)) == (0xDD, 0x2E, 0x44, 255)


def test_the_world_reads_what_the_recipe_writes(tmp_path: Path) -> None:
    concept = Concept(id="1f34e", name="red apple", keywords=("fruit",), group="food-drink", split="distill")
    write_concepts(tmp_path / "concepts.json", [concept])
    write_art(tmp_path / "noto.zip", {"1f34e": lambda: render_svg(SQUARE)}, [concept])
    world = World(data=tmp_path)
    assert world.concepts == (concept,)
    assert world.art("noto").shape == (1, 4, 48, 48)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["concepts.json", "noto.zip"]


def test_a_zip_is_the_same_each_time(tmp_path: Path) -> None:
    concept = Concept(id="1f34e", name="red apple", keywords=(), group="food-drink", split="distill")
    for name in ("a.zip", "b.zip"):
        write_art(tmp_path / name, {"1f34e": lambda: render_svg(SQUARE)}, [concept])
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()


def test_a_download_is_kept_and_checked(tmp_path: Path) -> None:
    package = Package(name="@x/y", version="1.0.0", sha256=hashlib.sha256(b"right").hexdigest())
    target = tmp_path / "x-y-1.0.0.tgz"
    target.write_bytes(b"right")
    assert download(package, tmp_path) == target
    target.write_bytes(b"wrong")
    with pytest.raises(PrepareError, match=r"is not the expected @x/y 1\.0\.0"):
        download(package, tmp_path)


def test_missing_npm_is_said_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(PrepareError, match=r"^npm was not found; install Node\.js"):
        download(PACKAGES["names"], tmp_path / "packages")


def test_failing_npm_gives_its_first_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    npm = tmp_path / "npm"
    npm.write_text("#!/bin/sh\necho 'npm error code E404' >&2\nexit 1\n")
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(PrepareError, match=r"emojibase-data@17\.0\.0 failed: npm error code E404"):
        download(PACKAGES["names"], tmp_path / "packages")
    assert list((tmp_path / "packages").iterdir()) == []


if EMOJI_DATA.is_dir():

    def test_prepared_data_agrees_with_the_recipe() -> None:
        """Splits, ids and pictures of data prepared earlier are those that the recipe would write."""
        rows = json.loads((EMOJI_DATA / "concepts.json").read_text(encoding="utf-8"))
        assert {r["id"] for r in rows if r["split"] == "heldout"} == HELD_OUT
        assert [r["id"] for r in rows] == sorted(normalise_id(r["id"]) for r in rows)
        for name in ("fluent3d", "noto", "twemoji"):
            with zipfile.ZipFile(EMOJI_DATA / f"{name}.zip") as archive:
                assert archive.namelist() == [f"{r['id']}.webp" for r in rows]
                image = Image.open(io.BytesIO(archive.read("1f34e.webp")))
                assert (image.size, image.mode) == ((128, 128), "RGBA")
