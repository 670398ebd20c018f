"""`docs/own_codec.md` shows the files that the tests use; the Python of `docs/own_world.md` runs as it stands."""

import re
from pathlib import Path

import pytest
import tiny_pipelines
import torch
from tiny_judges import save_dinov2

from dekag.wire.png import png_bytes

ROOT = Path(__file__).parents[2]
OWN_CODEC, OWN_WORLD = (ROOT / "docs" / name for name in ("own_codec.md", "own_world.md"))
SMALLER = {
    "Sampling(steps=20, guidance=5.0)": "Sampling(steps=2, guidance=2.0)",
    "CodecConfig()": "CodecConfig(steps=2, batch=4, width=16)",
    'MakdConfig(words="glossy 3d")': (
        'MakdConfig(words="red apple", metaword_steps=1, joint_steps=1, frozen_steps=1, batch=4, rank=2,'
        " validate_every=0)"
    ),
    'transmission_training("cala", steps=2000, seed=0)': 'transmission_training("cala", steps=2, seed=0)',
    "GenerationEvaluation(prompts=100)": "GenerationEvaluation(prompts=2)",
}
"""Numbers of the page, and those of a test with tiny models."""


def blocks(page: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL)


@pytest.mark.parametrize("name", ["own_codec", "own_channel"])
def test_the_page_shows_the_tested_file(name: str) -> None:
    (file,) = (ROOT / "tests").rglob(f"{name}.py")
    assert file.read_text() in blocks(OWN_CODEC)


@pytest.mark.parametrize("page", [OWN_CODEC, OWN_WORLD])
def test_what_the_page_names_is_there(page: Path) -> None:
    """Every import of its shorter blocks."""
    for line in re.findall(r"^from dekag[^(\n]*$", page.read_text(), flags=re.MULTILINE):
        exec(line, {})


def pictures(folder: Path) -> None:
    """Pictures with a caption beside each, enough for every split."""
    folder.mkdir()
    captions = [f"a {colour} {thing}" for colour in ("red", "blue", "pink") for thing in ("apple", "tree")]
    captions += [f"a picture of a {colour} cat face" for colour in ("red", "blue", "pink", "green")]
    images = torch.rand(len(captions), 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for number, (caption, png) in enumerate(zip(captions, png_bytes(images), strict=True)):
        (folder / f"{number}.png").write_bytes(png)
        (folder / f"{number}.txt").write_text(caption)


@pytest.mark.slow
@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore:16 x 16 pixels is all that judge:dekag.evaluation.judges.JudgeSizeWarning"
)
def test_the_world_of_the_page_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All its Python, in one go, from a tiny pipeline and a few pictures to a report; only numbers are smaller."""
    pipeline = tiny_pipelines.build(lambda: tiny_pipelines.stable_diffusion(channels=4, pixels=32))
    tiny_pipelines.save(pipeline, tmp_path / "edge")
    pictures(tmp_path / "pictures")
    save_dinov2(tmp_path / "dinov2")
    code = "\n".join(blocks(OWN_WORLD))
    for shown, smaller in SMALLER.items():
        assert shown in code
        code = code.replace(shown, smaller)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(code, names)
    assert "dino" in (tmp_path / "report.csv").read_text()
    assert (tmp_path / "report.tex").read_text().count(r"\toprule") == 1
    assert {path.name for path in (tmp_path / "mine").iterdir()} >= {"codec", "generation", "transmission"}
