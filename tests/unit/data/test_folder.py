"""Cloud images from a folder: each layout, what becomes of the pixels, and what every mistake is told."""

import hashlib
import json
import os
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from PIL import Image

from dekag.data.images import read_folder
from dekag.data.picture import open_picture
from dekag.types import InputError
from dekag.wire.files import write_json
from dekag.wire.png import write_images

PROMPTS = tuple(f"a {thing} on a {colour} ground" for thing in ("cat", "cup", "kiwi") for colour in "xyz")
Layout = Callable[[Path, Sequence[str], Sequence[str]], None]


def colour(prompt: str) -> tuple[int, int, int]:
    red, green, blue = hashlib.sha256(prompt.encode()).digest()[:3]
    return red, green, blue


def expected(prompts: Sequence[str], side: int) -> torch.Tensor:
    values = torch.tensor([colour(prompt) for prompt in prompts]) / 255
    return values[:, :, None, None].expand(-1, -1, side, side)


def save(path: Path, prompt: str, size: tuple[int, int] = (8, 8)) -> None:
    Image.new("RGB", size, colour(prompt)).save(path)


def index(folder: Path, names: Sequence[str], prompts: Sequence[str]) -> None:
    rows = [{"file": name, "prompt": p, "seed": 1} for name, p in zip(names, prompts, strict=True)]
    write_json(folder / "index.json", {"model": "m", "images": rows})


def metadata(folder: Path, names: Sequence[str], prompts: Sequence[str]) -> None:
    keys = ("text", "caption", "prompt")
    rows = [{"file_name": n, keys[i % 3]: p} for i, (n, p) in enumerate(zip(names, prompts, strict=True))]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + "\n")


def captions(folder: Path, names: Sequence[str], prompts: Sequence[str]) -> None:
    for name, prompt in zip(names, prompts, strict=True):
        (folder / name).with_suffix(".txt").write_text(f"{prompt}\n")


@pytest.mark.parametrize("write", [index, metadata, captions])
@pytest.mark.parametrize("seed", range(3))
def test_image_i_belongs_to_prompt_i(tmp_path: Path, write: Layout, seed: int) -> None:
    """Whatever the order in which the files were made and touched, and whatever the index's own order."""
    order = random.Random(seed)
    names = [f"{number:04d}.png" for number in range(len(PROMPTS))]
    if write is not captions:
        order.shuffle(names)
    files = list(zip(names, PROMPTS, strict=True))
    for name, prompt in order.sample(files, k=len(files)):
        save(tmp_path / name, prompt)
        os.utime(tmp_path / name, (order.randrange(10**9),) * 2)
    write(tmp_path, names, PROMPTS)
    data = read_folder(tmp_path)
    assert data.prompts == PROMPTS
    assert torch.equal(data.images, expected(PROMPTS, 8))


def test_what_generate_writes_is_read_back_exactly(tmp_path: Path) -> None:
    images = torch.randint(256, (4, 3, 6, 10), generator=torch.Generator().manual_seed(0)) / 255
    names = [f"000{number}_seed7.png" for number in range(4)]
    write_images(tmp_path, names, images)
    index(tmp_path, names, PROMPTS[:4])
    assert torch.equal(read_folder(tmp_path).images, images)


def test_layouts_have_an_order(tmp_path: Path) -> None:
    """index.json, then metadata.jsonl, then captions."""
    save(tmp_path / "a.png", "x")
    for write, prompt in ((captions, "third"), (metadata, "second"), (index, "first")):
        write(tmp_path, ["a.png"], [prompt])
        assert read_folder(tmp_path).prompts == (prompt,)


def test_index_leaves_other_files_alone_and_reaches_into_folders(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    save(tmp_path / "train" / "a.png", "x")
    save(tmp_path / "other.png", "y")
    index(tmp_path, ["train/a.png"], ["x"])
    assert torch.equal(read_folder(tmp_path).images, expected(["x"], 8))


def test_formats_and_upper_case(tmp_path: Path) -> None:
    for name, options in (("a.PNG", {}), ("b.jpeg", {"quality": 100}), ("c.webp", {"lossless": True})):
        Image.new("RGB", (16, 16), colour(name)).save(tmp_path / name, **options)
    names = ["a.PNG", "b.jpeg", "c.webp"]
    captions(tmp_path, names, names)
    images = read_folder(tmp_path).images
    torch.testing.assert_close(images, expected(names, 16), atol=2 / 255, rtol=0)
    assert torch.equal(images[[0, 2]], expected(["a.PNG", "c.webp"], 16))


def test_marks_and_hidden_files_do_not_get_into_prompts(tmp_path: Path) -> None:
    save(tmp_path / "a.png", "x")
    (tmp_path / "a.txt").write_bytes("\N{BYTE ORDER MARK}ein Käfer\r\n".encode())
    (tmp_path / "._a.png").write_bytes(b"resource fork")
    assert read_folder(tmp_path).prompts == ("ein Käfer",)


def test_crop_is_central_and_square(tmp_path: Path) -> None:
    """Of red, green and blue fields side by side the green one stays."""
    for name, size, turn in (("a.png", (24, 8), None), ("b.png", (24, 8), Image.Transpose.ROTATE_90)):
        picture = Image.new("RGB", size, (255, 0, 0))
        picture.paste((0, 255, 0), (8, 0, 16, 8))
        picture.paste((0, 0, 255), (16, 0, 24, 8))
        (picture if turn is None else picture.transpose(turn)).save(tmp_path / name)
    captions(tmp_path, ["a.png", "b.png"], ["x", "y"])
    green = torch.tensor([0.0, 1.0, 0.0])[None, :, None, None]
    for pixels in (4, 8, 16):
        assert torch.equal(read_folder(tmp_path, pixels=pixels).images, green.expand(2, 3, pixels, pixels))


def test_resize_keeps_what_a_smaller_grid_can_hold(tmp_path: Path) -> None:
    """A cosine of one period, sampled at half the points: Lanczos must keep its values at pixel centres."""

    def wave(points: int) -> torch.Tensor:
        return 0.5 + 0.4 * torch.cos(2 * torch.pi * (torch.arange(points) + 0.5) / points)

    write_images(tmp_path, ["a.png"], wave(64).expand(1, 3, 64, 64))
    index(tmp_path, ["a.png"], ["x"])
    inner = read_folder(tmp_path, pixels=32).images[0, 0, 16, 4:-4]
    torch.testing.assert_close(inner, wave(32)[4:-4], atol=2 / 255, rtol=0)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_shows_white(tmp_path: Path, mode: str) -> None:
    """Black of which 0, 40 and 100 percent are left is white, 60 percent grey and black."""
    picture = Image.new("LA", (3, 1))
    for x, alpha in enumerate((0, 102, 255)):
        picture.putpixel((x, 0), (0, alpha))
    stored = picture.convert("RGBA").quantize(4) if mode == "P" else picture.convert(mode)
    stored.save(tmp_path / "a.png")
    index(tmp_path, ["a.png"], ["x"])
    row = read_folder(tmp_path).images[0, :, 0]
    torch.testing.assert_close(row, torch.tensor([1.0, 0.6, 0.0]).expand(3, 3), atol=1 / 255, rtol=0)


def test_exif_orientation(tmp_path: Path) -> None:
    """Orientation 6: the camera lay on its side, so what is stored as the left column is the top row."""
    picture = Image.new("RGB", (4, 2), (255, 255, 255))
    picture.paste((0, 0, 0), (0, 0, 1, 2))
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(tmp_path / "a.png", exif=exif)
    index(tmp_path, ["a.png"], ["x"])
    image = read_folder(tmp_path).images[0, 0]
    assert image.shape == (4, 2)
    assert image.mean(dim=1).tolist() == [0, 1, 1, 1]


def pair(folder: Path, name: str = "0001", prompt: str = "x") -> None:
    save(folder / f"{name}.png", prompt)
    (folder / f"{name}.txt").write_text(prompt)


def gone(folder: Path) -> None:
    folder.rmdir()


def unpaired(folder: Path) -> None:
    (folder / "notes.md").write_text("x")


def cut(folder: Path) -> None:
    pair(folder, "0001")
    for name in ("0002", "0003"):
        noise = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        write_images(folder, [f"{name}.png"], noise)
        data = (folder / f"{name}.png").read_bytes()
        (folder / f"{name}.png").write_bytes(data[: len(data) // 2])
        (folder / f"{name}.txt").write_text("y")


def no_picture(folder: Path) -> None:
    pair(folder)
    (folder / "0001.png").write_text("<html>")


def deep(folder: Path) -> None:
    pair(folder)
    Image.new("I;16", (8, 8)).save(folder / "0001.png")


def blind(folder: Path) -> None:
    pair(folder)
    for name in ("0002.txt", "0003.txt"):
        (folder / name).write_text("y")


def silent(folder: Path) -> None:
    pair(folder)
    save(folder / "0002.png", "y")


def empty_caption(folder: Path) -> None:
    pair(folder)
    (folder / "0001.txt").write_text(" \n")


def latin(folder: Path) -> None:
    pair(folder)
    (folder / "0001.txt").write_bytes("Käfer".encode("latin-1"))


def sizes(folder: Path) -> None:
    pair(folder)
    save(folder / "0002.png", "y", (8, 9))
    (folder / "0002.txt").write_text("y")


def no_json(folder: Path) -> None:
    (folder / "index.json").write_text("{")


def other_json(folder: Path) -> None:
    (folder / "index.json").write_text("[1]")


def no_images(folder: Path) -> None:
    index(folder, [], [])


def missing(folder: Path) -> None:
    save(folder / "a.png", "x")
    index(folder, ["a.png", "b.png"], ["x", "y"])


def no_prompt(folder: Path) -> None:
    write_json(folder / "index.json", {"images": [{"file": "a.png"}]})


def empty_prompt(folder: Path) -> None:
    save(folder / "a.png", "x")
    index(folder, ["a.png"], [" "])


def bad_line(folder: Path) -> None:
    save(folder / "a.png", "x")
    (folder / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "x"}\nnot json\n')


def no_lines(folder: Path) -> None:
    (folder / "metadata.jsonl").write_text("\n")


def no_text(folder: Path) -> None:
    (folder / "metadata.jsonl").write_text('{"file_name": "a.png", "text": 3}\n')


def unnamed(folder: Path) -> None:
    save(folder / "a.png", "x")
    save(folder / "b.png", "y")
    metadata(folder, ["a.png"], ["x"])


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (gone, "is no folder; give a folder with images and their prompts"),
        (lambda folder: None, "is empty; give an index.json, a metadata.jsonl, or PNG, JPEG or WebP files"),
        (unpaired, "holds no images that we know how to pair with prompts; give an index.json"),
        (cut, r"0002.png is damaged or cut short; make the picture again \(2 of 3 images cannot be read\)"),
        (no_picture, r"0001.png is no PNG, JPEG or WebP picture; save it as one of these \(1 of 1"),
        (deep, "0001.png is a picture of mode I;16; save it with 8 bits a channel"),
        (blind, "2 captions have no image, the first is 0002.txt; add 0002.png or take the caption away"),
        (silent, "1 images have no caption, the first is 0002.png; write its prompt into 0002.txt"),
        (empty_caption, "0001.txt is empty; a caption is a line that says what the image shows"),
        (latin, "0001.txt is no UTF-8 text; save it as UTF-8"),
        (sizes, "0002.png has 8x9 pixels, but 0001.png has 8x8; give images of one size, or the side"),
        (no_json, "index.json must be JSON of the form"),
        (other_json, "index.json must be JSON of the form"),
        (no_images, "index.json lists no images; draw them again"),
        (missing, "index.json: 1 of its 2 images are missing, the first is 'b.png'; put them back"),
        (no_prompt, "index.json: image 1 must have the texts file and prompt"),
        (empty_prompt, "index.json: image 1, 'a.png', has an empty prompt; say what it shows"),
        (bad_line, "metadata.jsonl: line 2 is no JSON; give one object a line"),
        (no_lines, "metadata.jsonl is empty; give a line"),
        (no_text, "metadata.jsonl: line 1 must have the texts file_name and text or caption or prompt"),
        (unnamed, "metadata.jsonl: 1 images beside it have no line, the first is b.png; give each its line"),
    ],
)
def test_every_mistake_has_one_line(tmp_path: Path, make: Callable[[Path], None], line: str) -> None:
    folder = tmp_path / "cloud"
    folder.mkdir()
    make(folder)
    with pytest.raises(InputError, match=line) as caught:
        read_folder(folder)
    assert str(caught.value).startswith(str(folder))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("write", [index, metadata])
@pytest.mark.parametrize("name", ["../a.png", "x/../../a.png", "..\\a.png", "C:\\a.png", "absolute"])
def test_paths_stay_in_the_folder(tmp_path: Path, write: Layout, name: str) -> None:
    folder = tmp_path / "cloud"
    folder.mkdir()
    save(tmp_path / "a.png", "x")
    write(folder, [str(tmp_path / "a.png") if name == "absolute" else name], ["x"])
    with pytest.raises(InputError, match="which is outside of the folder; put the image into it"):
        read_folder(folder)


def test_side_must_be_positive(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="at least 1 pixel, got 0"):
        read_folder(tmp_path, pixels=0)


def test_folders_below_belong_to_it(tmp_path: Path) -> None:
    """Pictures at the top and below: all of them, or a refusal that names what would be left out."""
    for number, prompt in enumerate(PROMPTS[:4]):
        folder = tmp_path / ("." if number < 2 else "below/deeper")
        folder.mkdir(parents=True, exist_ok=True)
        save(folder / f"{number}.png", prompt)
        (folder / f"{number}.txt").write_text(prompt)
    read = read_folder(tmp_path)
    assert dict(zip(read.prompts, map(float, read.images.mean((1, 2, 3))), strict=True)) == {
        prompt: pytest.approx(sum(colour(prompt)) / 765, abs=1e-6) for prompt in PROMPTS[:4]
    }
    (tmp_path / "below" / "deeper" / "3.txt").unlink()
    with pytest.raises(
        InputError, match=r"the first is below/deeper/3\.png; write its prompt into below/deeper/3\.txt"
    ):
        read_folder(tmp_path)
    metadata(tmp_path, ["0.png", "1.png", "below/deeper/2.png"], PROMPTS[:3])
    with pytest.raises(
        InputError, match=r"1 images beside it have no line, the first is below/deeper/3\.png"
    ):
        read_folder(tmp_path)


def test_same_names_in_two_folders_are_two_pictures(tmp_path: Path) -> None:
    for name, prompt in zip(("one", "two"), PROMPTS, strict=False):
        (tmp_path / name).mkdir()
        save(tmp_path / name / "0.png", prompt)
        (tmp_path / name / "0.txt").write_text(prompt)
    assert read_folder(tmp_path).prompts == PROMPTS[:2]


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_damaged_pictures_are_read_or_named(tmp_path: Path, form: str) -> None:
    """Whatever Pillow raises on changed bytes, of tags or of pixels, is one line with the file's name.

    200 pictures of each format with 1 to 30 changed bytes, half of them in the first 200, where the tags are.
    """
    rng, refused = random.Random(0), 0
    tags = Image.Exif()
    tags[0x0112], tags[0x010F], tags[0x8769] = 6, "maker", {0x9003: "2026:01:01 00:00:00"}
    path = tmp_path / "0.img"
    picture = Image.effect_noise((40, 30), 60).convert("RGB")
    picture.save(path, form, exif=tags)
    whole = path.read_bytes()
    (tmp_path / "0.txt").write_text("noise")
    path = path.rename(tmp_path / f"0.{form.lower()}")
    for _ in range(200):
        raw = bytearray(whole)
        for _ in range(rng.choice((1, 1, 3, 30))):
            raw[rng.randrange(rng.choice((200, len(raw))))] = rng.randrange(256)
        path.write_bytes(raw)
        said = complaint(tmp_path)
        refused += bool(said)
        assert not said or (str(path) in said and "\n" not in said)
    print(f"{form}: {refused} of 200 refused")


def complaint(folder: Path) -> str:
    """Why a folder is refused, if it is."""
    try:
        read_folder(folder, pixels=8)
    except InputError as error:
        return str(error)
    return ""


def test_the_field_s_own_damaged_tags_are_read() -> None:
    """Pictures whose tags Pillow cannot read are pictures all the same."""
    cases = sorted((Path(__file__).parents[4] / "shared" / "cases").glob("exif_*.jpg"))
    if not cases:
        pytest.skip("the cases from the field are not beside this checkout")
    for case in cases:
        assert open_picture(case).mode == "RGB"
