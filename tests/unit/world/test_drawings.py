"""What a cloud drew once: the same pictures, of that cloud only, whole or refused."""

import hashlib
import json
import zipfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dekag.tasks.draw_references import ReferencesTask, draw_references
from dekag.types import Image, InputError
from dekag.world import World, load_world
from dekag.world.drawings import KeptDrawings, rounded, write_drawings

DRAWINGS = [("a dog", 0), ("a dog", 1), ("a ghost", 0)]


class Counted:
    """Draws noise of prompt and seed, and notes what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, int]] = []

    def images(self, prompts: Sequence[str], *, seeds: Sequence[int]) -> Image:
        wanted = list(zip(prompts, seeds, strict=True))
        self.asked += wanted
        rngs = [torch.Generator().manual_seed(len(text) * 100 + seed) for text, seed in wanted]
        return torch.stack([torch.rand(3, 8, 8, generator=rng) for rng in rngs])


def kept(file: Path, cloud: Counted, key: str = "this") -> KeptDrawings:
    return KeptDrawings(file=file, key=key, load=lambda: cloud)


def test_only_what_is_missing_is_drawn(tmp_path: Path) -> None:
    cloud, file = Counted(), tmp_path / "drawings.zip"
    write_drawings(file, cloud, "this", DRAWINGS)
    cloud.asked.clear()
    prompts, seeds = ["a ghost", "a cat", "a dog", "a cat"], [0, 5, 1, 5]
    found = kept(file, cloud).images(prompts, seeds=seeds)
    assert cloud.asked == [("a cat", 5)]
    assert torch.equal(found, rounded(Counted().images(prompts, seeds=seeds)))


def test_drawings_of_another_cloud_are_not_used(tmp_path: Path) -> None:
    cloud, file = Counted(), tmp_path / "drawings.zip"
    write_drawings(file, cloud, "another", DRAWINGS)
    cloud.asked.clear()
    kept(file, cloud).images(["a dog"], seeds=[0])
    assert cloud.asked == [("a dog", 0)]


def test_equal_drawings_are_equal_bytes(tmp_path: Path) -> None:
    for name in ("one.zip", "other.zip"):
        write_drawings(tmp_path / name, Counted(), "this", DRAWINGS)
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "other.zip").read_bytes()


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "drawings.zip"
    write_drawings(file, Counted(), "this", DRAWINGS)
    whole = file.read_bytes()
    with zipfile.ZipFile(file) as archive:
        start = archive.getinfo("00001.png").header_offset + 30 + len("00001.png")
    file.write_bytes(whole[: start + 60] + bytes([whole[start + 60] ^ 1]) + whole[start + 61 :])
    with pytest.raises(InputError, match=r"is damaged: .*make it again"):
        kept(file, Counted()).images(["a dog"], seeds=[1])
    for cut in (b"", whole[:100], b"no zip"):
        file.write_bytes(cut)
        with pytest.raises(InputError, match="holds no drawings"):
            kept(file, Counted()).images(["a dog"], seeds=[1])


@pytest.mark.parametrize("how", ["packed", "encrypted", "without a digest", "no picture"])
def test_zips_of_others_are_refused(how: str, tmp_path: Path) -> None:
    """Packed files that are damaged, encrypted ones, an index that lacks a field, and what is no picture."""
    file = tmp_path / "drawings.zip"
    raw = bytes(1000)
    row = {"prompt": "a dog", "seed": 0, "file": "0.png", "sha256": hashlib.sha256(raw).hexdigest()}
    if how == "without a digest":
        del row["sha256"]
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("index.json", json.dumps({"format": 1, "cloud": "this", "drawings": [row]}))
        archive.writestr("0.png", raw, zipfile.ZIP_DEFLATED if how == "packed" else zipfile.ZIP_STORED)
        start = archive.getinfo("0.png").header_offset
    whole = bytearray(file.read_bytes())
    if how == "packed":
        whole[start + 35] ^= 0xFF
    if how == "encrypted":
        whole[whole.rindex(b"PK\x01\x02") + 8] |= 1
        whole[start + 6] |= 1
    file.write_bytes(whole)
    with pytest.raises(InputError, match=r"drawings\.zip") as refused:
        kept(file, Counted()).images(["a dog"], seeds=[0])
    assert "\n" not in str(refused.value)


def test_a_world_draws_its_references_once(tmp_path: Path) -> None:
    """Of the shipped cloud in two steps: the drawings are those that it makes, and no other cloud's."""
    emoji = load_world("emoji")
    cloud = replace(emoji.cloud_model, sampling=replace(emoji.cloud_model.sampling, steps=2))  # type: ignore[type-var, union-attr]
    world: World = replace(emoji, cloud_model=cloud)
    file = tmp_path / "drawings.zip"
    count = draw_references(
        world, ReferencesTask(prompts=1, seeds=1), file, device="cpu", on_stage=lambda _: None
    )
    assert count == 4
    prompts = [own[0] for own in world.reported_prompts(1).values()]
    reference = replace(world, drawings=file).reference()
    assert isinstance(reference, KeptDrawings)
    found = reference.images(prompts, seeds=[0, 0])
    assert "_cloud" not in vars(reference)
    # of another batch, hence of other roundings
    assert (found - world.cloud().images(prompts, seeds=[0, 0])).abs().max() <= 1.01 / 255
    other = replace(emoji, drawings=file).reference()
    assert isinstance(other, KeptDrawings)
    assert not other._index
