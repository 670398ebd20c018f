"""What travels to a machine without a network, and what comes back."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from places import EMOJI_DATA, ROOT
from safetensors.torch import load_file
from stages.cards import edge_card
from stages.loop import write_json
from stages.lpips import Lpips, load_lpips
from stages.packing import (
    MAX_ART,
    MIB,
    PackError,
    check,
    checkout_bytes,
    compressed,
    pack,
    pack_results,
    write_tar,
)
from stages.pictures import ART, drawn_ids
from stages.plan import make_plan
from stages.run import PACKED_LPIPS, Run

needs_data = pytest.mark.skipif(not EMOJI_DATA.exists(), reason="the emoji art lies beside the checkout only")


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, int]]:
    """A pack without wheels, and its sizes."""
    folder = tmp_path_factory.mktemp("pack")
    return folder, pack(EMOJI_DATA, folder, ROOT, wheels=False)


@needs_data
def test_a_pack_holds_all_that_a_run_needs_and_little_else(packed: tuple[Path, dict[str, int]]) -> None:
    folder, sizes = packed
    here, there = (
        Run(folder=folder, data=data, plan=make_plan("cpu", 64, minutes=1.0)) for data in (EMOJI_DATA, folder)
    )
    assert there.things == here.things
    assert there.roles == here.roles
    core, others = set(here.ids("core")), set(here.ids("others"))
    assert drawn_ids(folder, "fluent3d") == core | others == drawn_ids(folder, "noto")
    assert drawn_ids(folder, "twemoji") == core
    assert sum(size for name, size in sizes.items() if name.endswith((".zip", ".json"))) <= MAX_ART
    assert sizes["checkout"] == checkout_bytes(ROOT)


@needs_data
def test_the_cores_drawings_are_packed_as_they_are(packed: tuple[Path, dict[str, int]]) -> None:
    run = Run(folder=packed[0], data=EMOJI_DATA, plan=make_plan("cpu", 64, minutes=1.0))
    for hand in ART:
        with (
            zipfile.ZipFile(EMOJI_DATA / f"{hand}.zip") as a,
            zipfile.ZipFile(packed[0] / f"{hand}.zip") as b,
        ):
            assert all(a.read(f"{i}.webp") == b.read(f"{i}.webp") for i in run.ids("core"))


@needs_data
def test_packed_lpips_is_the_packages_in_half_precision(packed: tuple[Path, dict[str, int]]) -> None:
    """Rounding of 2^-11 a weight moves a distance by less than 1 %."""
    path = packed[0] / PACKED_LPIPS
    assert {value.dtype for value in load_file(path).values()} == {torch.float16}
    pictures = torch.rand(2, 4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    whole, half = load_lpips(), load_lpips(packed=path)
    assert isinstance(half, Lpips)
    torch.testing.assert_close(half(*pictures), whole(*pictures), rtol=0.01, atol=1e-5)


def test_what_is_too_large_is_refused() -> None:
    check({"noto.zip": MAX_ART, "checkout": 56 * MIB})
    with pytest.raises(PackError, match=r"art has 6\.00 MiB"):
        check({"noto.zip": MAX_ART, "concepts.json": 1})
    with pytest.raises(PackError, match=r"62\.00 MiB would travel"):
        check({"noto.zip": MAX_ART, "checkout": 56 * MIB, "wheels/a.whl": 1})


@needs_data
def test_compressed_drawings_keep_size_and_mode() -> None:
    with zipfile.ZipFile(EMOJI_DATA / "fluent3d.zip") as archive:
        picture = archive.read(archive.namelist()[0])
    assert len(compressed(picture)) < len(picture)


def test_a_tar_has_the_same_bytes_whenever_it_is_written(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"b": 1})
    for name in ("one.tar", "two.tar"):
        write_tar(tmp_path / name, [tmp_path / "a.json"], tmp_path, tmp_path / "half")
        (tmp_path / "a.json").touch()
    assert (tmp_path / "one.tar").read_bytes() == (tmp_path / "two.tar").read_bytes()


def test_results_are_at_most_eight_files(tmp_path: Path) -> None:
    write_json(tmp_path / "run" / "progress.json", {})
    sizes = pack_results(tmp_path / "run", tmp_path / "out")
    assert len(sizes) <= 8
    assert {path.name for path in (tmp_path / "out").iterdir()} == set(sizes)


@needs_data
def test_the_edges_card_is_up_to_date() -> None:
    run = Run(folder=ROOT, data=EMOJI_DATA, plan=make_plan("cpu", 64, minutes=1.0))
    assert (ROOT / "recipes" / "emoji" / "edge.md").read_text() == edge_card(run.concepts)


@pytest.mark.slow
def test_packing_without_data_is_one_line(tmp_path: Path) -> None:
    command = [
        sys.executable,
        ROOT / "recipes" / "emoji" / "prepare.py",
        "--out",
        tmp_path,
        "--pack",
        tmp_path / "p",
    ]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode != 0
    (line,) = [line for line in result.stderr.splitlines() if not line.startswith("[transformers]")]
    assert "concepts.json" in line
    assert not (tmp_path / "p").exists()
