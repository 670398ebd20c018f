"""Data at size: every layout that people bring, several captions, repeats, tables, and what is broken in them."""

import io
import json
import pickle
import random
import string
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dekag.data.entries import Faults
from dekag.data.images import CloudImages, Pictures, StoredSource, read_dataset
from dekag.data.pictures import PictureSet
from dekag.errors import InputError
from dekag.wire.rows import columns_on_disk, map_rows, rows_on_disk, write_rows

NAMES = ("a", "b", "c")
COLOURS = ((250, 10, 10), (10, 240, 10), (10, 10, 230))


def raw(number: int, size: tuple[int, int] = (8, 8), kind: str = "png") -> bytes:
    data = io.BytesIO()
    Image.new("RGB", size, COLOURS[number % 3]).save(data, kind)
    return data.getvalue()


def save(path: Path, number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(raw(number))


def colours(data: CloudImages) -> list[tuple[int, ...]]:
    return [tuple((255 * image[:, 0, 0]).round().int().tolist()) for image in data.images[:]]


def jsonl(folder: Path) -> None:
    rows = [{"file_name": f"{name}.png", "text": f"thing {name}"} for name in NAMES]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def table(folder: Path) -> None:
    lines = [f'{name}.png,"thing {name}",ignored' for name in NAMES]
    (folder / "metadata.csv").write_text("\r\n".join(["file_name,text,more", *lines, ""]))


def beside(folder: Path) -> None:
    for name in NAMES:
        (folder / f"{name}.txt").write_text(f"thing {name}\n")


def beside_as_sd_scripts(folder: Path) -> None:
    for name in NAMES:
        (folder / f"{name}.caption").write_text(f"thing {name}")


def pictures_of(folder: Path) -> None:
    for number, name in enumerate(NAMES):
        save(folder / f"{name}.png", number)


def on_disk(folder: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = [
        {"image": {"bytes": raw(n), "path": None}, "text": f"thing {name}"} for n, name in enumerate(NAMES)
    ]
    made = datasets.Dataset.from_list(rows)
    made.cast_column("image", datasets.Image(decode=False)).save_to_disk(str(folder))


def parquet(folder: Path) -> None:
    arrow = pytest.importorskip("pyarrow")

    for part, numbers in enumerate(((0, 1), (2,))):
        columns = {"img": [raw(n) for n in numbers], "caption": [f"thing {NAMES[n]}" for n in numbers]}
        arrow.parquet.write_table(arrow.table(columns), folder / f"{part:05d}.parquet")


def tars(folder: Path) -> None:
    for part, numbers in enumerate(((0, 1), (2,))):
        with tarfile.open(folder / f"{part:05d}.tar", "w") as archive:
            for number in numbers:
                for suffix, content in (("png", raw(number)), ("txt", f"thing {NAMES[number]}".encode())):
                    member = tarfile.TarInfo(f"{number:06d}.{suffix}")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))


@pytest.mark.parametrize("write", [jsonl, table, beside, beside_as_sd_scripts, on_disk, parquet, tars])
def test_every_layout_gives_the_same(tmp_path: Path, write: Callable[[Path], None]) -> None:
    if write in (jsonl, table, beside, beside_as_sd_scripts):
        pictures_of(tmp_path)
    write(tmp_path)
    data = read_dataset(tmp_path, pixels=4)
    assert data.prompts == tuple(f"thing {name}" for name in NAMES)
    assert colours(data) == list(COLOURS)
    assert data.images.shape == (3, 3, 4, 4)
    assert data.weights is None
    again = read_dataset(tmp_path, pixels=4)
    assert isinstance(data.images, Pictures)
    assert isinstance(again.images, Pictures)
    assert data.images.source.digest == again.images.source.digest


@pytest.mark.parametrize("write", [jsonl, beside])
def test_several_captions_and_their_weights(tmp_path: Path, write: Callable[[Path], None]) -> None:
    """A picture is drawn as often however many captions it has; each picture is one latent."""
    pictures_of(tmp_path)
    write(tmp_path)
    if write is jsonl:
        rows = [
            {"file_name": "a.png", "text": ["one", "two", "one"]},
            {"file_name": "b.png", "caption": "three"},
            {"file_name": "c.png", "prompt": "four"},
            {"file_name": "c.png", "prompt": "five"},
        ]
        (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        for name, text in (("a", "one\ntwo\n\none\n"), ("b", "three"), ("c", "four\nfive")):
            (tmp_path / f"{name}.txt").write_text(text)
    data = read_dataset(tmp_path)
    assert data.prompts == ("one", "two", "three", "four", "five")
    assert data.weights is not None
    assert data.weights.tolist() == [0.5, 0.5, 1, 0.5, 0.5]
    assert isinstance(data.images, Pictures)
    once, places = data.images.distinct()
    assert (len(once), places.tolist()) == (3, [0, 0, 1, 2, 2])
    some = data.subset(torch.tensor([True, False, False, False, True]))
    assert some.prompts == ("one", "five")
    assert colours(some) == [COLOURS[0], COLOURS[2]]


def test_folders_of_sd_scripts_repeat(tmp_path: Path) -> None:
    save(tmp_path / "10_sks dog" / "a.png", 0)
    save(tmp_path / "1_a cat" / "b.png", 1)
    save(tmp_path / "1_a cat" / "deep" / "c.png", 2)
    (tmp_path / "1_a cat" / "b.txt").write_text("a cat asleep")
    data = read_dataset(tmp_path)
    assert data.prompts == ("sks dog", "a cat asleep", "a cat")
    assert data.weights is not None
    assert data.weights.tolist() == [10, 1, 1]
    save(tmp_path / "other" / "d.png", 0)  # one folder of another kind, and names say nothing of repeats
    with pytest.raises(InputError, match="3 images have no caption"):
        read_dataset(tmp_path)


def test_pictures_are_read_when_they_are_asked_for(tmp_path: Path) -> None:
    pictures_of(tmp_path)
    beside(tmp_path)
    data = pickle.loads(pickle.dumps(read_dataset(tmp_path)))
    (tmp_path / "b.png").write_bytes(b"changed")
    assert torch.equal(data.images[2], data.images[[2]][0])
    with pytest.raises(InputError, match=r"b\.png is no PNG, JPEG or WebP"):
        data.images[:]
    (tmp_path / "a.png").unlink()
    with pytest.raises(InputError, match=r"a\.png cannot be read \(No such file"):
        data.images[0]


def test_pictures_by_prompt(tmp_path: Path) -> None:
    pictures_of(tmp_path)
    for name, text in (("a", "x"), ("b", "x\ny"), ("c", "z")):
        (tmp_path / f"{name}.txt").write_text(text)
    cloud = PictureSet(folder=tmp_path, pixels=4)
    rows = cloud.images(["x", "x", "y"], seeds=[0, 1, 7])
    assert [tuple((255 * row[:, 0, 0]).round().int().tolist()) for row in rows] == [
        COLOURS[0],
        COLOURS[1],
        COLOURS[1],
    ]
    data = cloud.all_of(["z", "x", "z"])
    assert (data.prompts, colours(data)) == (("z", "x", "x"), [COLOURS[2], COLOURS[0], COLOURS[1]])


def test_broken_entries_are_named_or_skipped_and_counted(tmp_path: Path) -> None:
    pictures_of(tmp_path)
    beside(tmp_path)
    save(tmp_path / "d.png", 0)
    (tmp_path / "e.txt").write_text("no picture")
    save(tmp_path / "f.png", 0)
    (tmp_path / "f.txt").write_text(" \n")
    (tmp_path / "b.png").write_bytes(raw(1)[:40])
    with pytest.raises(InputError, match=r"d\.png"):
        read_dataset(tmp_path)
    faults = Faults(skip=True)
    data = read_dataset(tmp_path, faults=faults)
    assert data.prompts == ("thing a", "thing c")
    assert colours(data) == [COLOURS[0], COLOURS[2]]
    assert faults.count == 4
    for name in ("b.png", "d.png", "e.txt", "f.txt"):
        assert sum(name in line for line in faults.lines) == 1
    for path in tmp_path.glob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(InputError, match="has no picture that can be used; the first: "):
        read_dataset(tmp_path, faults=Faults(skip=True))


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (
            lambda f: (f / "metadata.csv").write_text("name,words\na.png,x\n"),
            "line 2 must have the texts file_name",
        ),
        (lambda f: (f / "metadata.csv").write_text('file_name,text\na.png,"x\n'), "is no table of commas"),
        (lambda f: (f / "metadata.csv").write_text("file_name,text\na.png\n"), "line 2 must have the texts"),
        (lambda f: (f / "x.parquet").write_bytes(b"PAR1 not"), "is no table that can be read"),
        (lambda f: (f / "x.tar").write_bytes(b"not a tar" * 100), "is no table that can be read"),
        (lambda f: (f / "dataset_dict.json").write_text("{}"), "holds several datasets; give one of them"),
    ],
)
def test_tables_that_cannot_be_read_are_named(
    tmp_path: Path, make: Callable[[Path], object], line: str
) -> None:
    pytest.importorskip("datasets")
    make(tmp_path)
    with pytest.raises(InputError, match=line) as caught:
        read_dataset(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_rows_on_disk(tmp_path: Path) -> None:
    """What was written in parts is there, of every type, and is mapped: pages are not the process's own."""
    for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.uint8, torch.int64):
        values = torch.arange(60).view(10, 2, 3).to(dtype)
        found = rows_on_disk(10, values.split(4))
        assert found.dtype == dtype
        assert torch.equal(found, values)
    both = columns_on_disk(
        4, [{"a": torch.ones(3, 2), "b": torch.zeros(3)}, {"a": torch.ones(1, 2), "b": torch.ones(1)}]
    )
    assert both["b"].tolist() == [0, 0, 0, 1]
    with pytest.raises(ValueError, match="has 3 rows, not 4"):
        write_rows(tmp_path / "x.safetensors", "x", 4, [torch.ones(3, 2)])
    with pytest.raises(ValueError, match="rows of x are"):
        write_rows(tmp_path / "x.safetensors", "x", 4, [torch.ones(3, 2), torch.ones(1, 3)])
    assert not list(tmp_path.iterdir())
    write_rows(tmp_path / "x.safetensors", "x", 2, [torch.tensor([[[[51.0]]] * 3] * 2).to(torch.uint8)])
    stored = StoredSource(path=tmp_path / "x.safetensors", name="x", digest="d")
    assert torch.equal(pickle.loads(pickle.dumps(stored)).picture(1), torch.full((3, 1, 1), 0.2))
    assert map_rows(tmp_path / "x.safetensors", "x").shape == (2, 3, 1, 1)


def mutated(data: bytes, rng: random.Random) -> bytes:
    """Bytes changed, cut out, put in, doubled or cut off."""
    changed = bytearray(data)
    for _ in range(rng.randrange(1, 5)):
        at, kind = rng.randrange(max(1, len(changed))), rng.randrange(5)
        if kind == 0 and changed:
            changed[at] = rng.randrange(256)
        elif kind == 1:
            del changed[at : at + rng.randrange(1, 20)]
        elif kind == 2:
            changed[at:at] = rng.randbytes(rng.randrange(1, 20))
        elif kind == 3:
            changed[at:at] = changed[at : at + rng.randrange(1, 40)]
        else:
            del changed[max(4, at) :]
    return bytes(changed)


KINDS = (
    ("RGB", "png", {}),
    ("RGBA", "png", {}),
    ("P", "png", {"transparency": 0}),
    ("LA", "png", {}),
    ("1", "png", {}),
    ("I;16", "png", {}),
    ("RGB", "jpeg", {"tags": True}),
    ("L", "jpeg", {}),
    ("CMYK", "jpeg", {}),
    ("RGB", "jpeg", {"progressive": True}),
    ("RGB", "webp", {"tags": True}),
    ("RGBA", "webp", {"lossless": True}),
)


def whole_pictures() -> list[bytes]:
    """Of many modes and containers, with and without tags."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a picture"
    found = []
    for mode, kind, options in KINDS:
        data = io.BytesIO()
        more = {"exif": exif} if "tags" in options else options
        noise.convert("L").convert(mode).save(data, kind, **more) if mode == "I;16" else noise.convert(
            mode
        ).save(data, kind, **more)
        found.append(data.getvalue())
    return found


def refusal(folder: Path) -> tuple[str, float]:
    """What is said of a folder, empty if it is read, and the seconds that it took."""
    started, said = time.perf_counter(), ""
    try:
        read_dataset(folder, pixels=8).images[:]
    except InputError as error:
        said = str(error)
    return said, time.perf_counter() - started


def tell(what: str, names: list[Path], found: list[tuple[str, float]]) -> None:
    """Every refusal is one line with the file's name; some are read."""
    refused = [(name, said) for name, (said, _) in zip(names, found, strict=True) if said]
    print(f"{len(found)} {what}: {len(refused)} refused by name, longest {max(s for _, s in found):.2f} s")
    assert 0 < len(refused) < len(found)
    for name, said in refused:
        assert str(name) in said
        assert "\n" not in said


def mutate_pictures(folder: Path, count: int) -> None:
    rng, originals, path = random.Random(0), whole_pictures(), folder / "a.png"
    path.with_suffix(".txt").write_text("x")
    found = []
    for _ in range(count):
        path.write_bytes(mutated(rng.choice(originals), rng))
        found.append(refusal(folder))
    tell("mutated pictures", [path] * count, found)


def mutate_lists(folder: Path, count: int) -> None:
    rng = random.Random(1)
    pictures_of(folder)
    rows = [{"file_name": f"{n}.png", "text": f"a {n} \u2028 b", "more": [1, {"x": None}]} for n in NAMES]
    lines = [f'{name}.png,"a ""{name}"", b",{string.punctuation[:5]}' for name in NAMES]
    texts = {
        "a.txt": "a caption of a picture\nanother one, with \u00e4\n",
        "metadata.jsonl": "".join(json.dumps(row) + "\n" for row in rows),
        "metadata.csv": "\n".join(["file_name,text,more", *lines, ""]),
    }
    names, found = [], []
    for _ in range(count):
        name = rng.choice(sorted(texts))
        for other in (*texts, "b.txt", "c.txt"):
            (folder / other).unlink(missing_ok=True)
        if name == "a.txt":
            (folder / "b.txt").write_text("x")
            (folder / "c.txt").write_text("y")
        (folder / name).write_bytes(mutated(texts[name].encode(), rng))
        names.append(folder / name)
        found.append(refusal(folder))
    tell("mutated caption files", names, found)


def test_mutated_pictures_are_read_or_named(tmp_path: Path) -> None:
    """`test_10000_mutated_pictures` is the long one."""
    mutate_pictures(tmp_path, 300)


def test_mutated_lists_are_read_or_named(tmp_path: Path) -> None:
    """`test_2000_mutated_lists` is the long one."""
    mutate_lists(tmp_path, 150)


@pytest.mark.slow
def test_10000_mutated_pictures(tmp_path: Path) -> None:
    mutate_pictures(tmp_path, 10_000)


@pytest.mark.slow
def test_2000_mutated_lists(tmp_path: Path) -> None:
    mutate_lists(tmp_path, 2000)
