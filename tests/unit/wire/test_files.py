"""A folder that a command writes twice holds what its last run says, and whatever else somebody put there."""

from pathlib import Path

import pytest

from dekag.wire.files import staged, write_json


def write(out: Path, images: int, *, fails: bool = False) -> None:
    """What a command does: some pictures, and an index that names them."""
    with staged(out) as folder:
        names = [f"{number:04d}.png" for number in range(images)]
        for name in names:
            (folder / name).write_text(f"of {images}")
        write_json(
            folder / "index.json",
            {"file": "sent.frame", "images": [{"file": n, "prompt": "mine.png"} for n in names]},
        )
        if fails:
            raise OSError("the disk is full")


def test_fewer_pictures_leave_none_of_the_run_before(tmp_path: Path) -> None:
    out = tmp_path / "received"
    write(out, 5)
    for name in ("mine.png", "sent.frame"):
        (out / name).write_text("somebody's own")
    write(out, 2)
    assert sorted(path.name for path in out.iterdir()) == [
        *("0000.png", "0001.png", "index.json", "mine.png", "sent.frame")
    ]
    assert (out / "0000.png").read_text() == "of 2"


def test_a_run_that_fails_leaves_all_as_it_was(tmp_path: Path) -> None:
    out = tmp_path / "received"
    write(out, 3)
    with pytest.raises(OSError, match="full"):
        write(out, 1, fails=True)
    assert len(list(out.glob("*.png"))) == 3
    assert (out / "0000.png").read_text() == "of 3"


@pytest.mark.parametrize(
    "index", ['{"images": [{"file": "../mine.png"}, {"file": "sub/mine.png"}]}', "{", "[[[", '"mine"']
)
def test_an_index_that_is_no_index_of_ours_takes_nothing_away(tmp_path: Path, index: str) -> None:
    """Names with a way out of the folder are none; a file that is no JSON names nothing."""
    out = tmp_path / "received"
    (out / "sub").mkdir(parents=True)
    for path in (tmp_path / "mine.png", out / "sub" / "mine.png", out / "mine.png"):
        path.write_text("mine")
    (out / "index.json").write_text(index)
    write(out, 1)
    assert all(path.exists() for path in (tmp_path / "mine.png", out / "sub" / "mine.png", out / "mine.png"))
