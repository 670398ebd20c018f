"""What ships: sizes, formats, model cards; and what the README says exists."""

import re

import pytest
from places import ROOT

from dekag.world import card, load_world, shipped, shipped_parts
from dekag.world.shipped import WEIGHTS

README = (ROOT / "README.md").read_text()
LIMIT = 36 * 2**20
PICTURES = 1_500_000
"""Bytes of all pictures in docs/."""


def test_weights_fit_the_budget() -> None:
    weights = [p for p in WEIGHTS.rglob("*") if p.suffix == ".safetensors"]
    assert 0 < sum(p.stat().st_size for p in weights) <= LIMIT


def test_nothing_that_can_run_code_ships() -> None:
    kinds = {p.suffix for p in WEIGHTS.rglob("*") if p.is_file()}
    assert kinds <= {".safetensors", ".json", ".md", ".txt"}


@pytest.mark.parametrize("name", shipped_parts())
def test_every_shipped_model_is_there_with_its_card(name: str) -> None:
    """A card says data, licence, seed, numbers and the command that they came out of."""
    assert shipped(name).is_dir()
    text = card(name).read_text()
    for heading in ("Data", "Licence", "Numbers", "How it was made"):
        assert f"## {heading}" in text
    assert "```" in text


def test_readme_tree_is_the_tree() -> None:
    for line in re.findall(r"^  (\w+(?:\.py|/)) ", README, flags=re.MULTILINE):
        assert (ROOT / "src" / "dekag" / line).exists(), line


def test_readme_commands_exist() -> None:
    for target in re.findall(r"^make (\w+)", README, flags=re.MULTILINE):
        assert f"\n{target}:" in (ROOT / "Makefile").read_text()


def test_pictures_are_there_and_small() -> None:
    """Those that the texts show exist; all together stay under the budget (`scripts/small_picture.py`)."""
    texts = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    shown = {
        text.parent / picture
        for text in texts
        for picture in re.findall(r"!\[[^]]*\]\(([^)]+)\)", text.read_text())
    }
    assert len(shown) > 3
    assert all(picture.is_file() for picture in shown)
    kinds = {".png", ".jpg", ".jpeg", ".webp", ".gif", ".svg"}
    pictures = [path for path in (ROOT / "docs").rglob("*") if path.suffix in kinds]
    assert sum(path.stat().st_size for path in pictures) < PICTURES


def test_readme_python_runs() -> None:
    """The first Python block of the README, as it stands."""
    block = re.search(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert block is not None
    names: dict[str, object] = {}
    exec(block.group(1), names)
    assert "delivery" in names


@pytest.mark.slow
def test_readme_library_runs() -> None:
    """All its other Python blocks, in one go."""
    code = "\n".join(re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)[1:])
    names: dict[str, object] = {}
    exec(code, names)
    assert {"report", "pizza", "owl"} <= names.keys()


def test_held_out_prompts_are_not_distilled() -> None:
    """No evaluation prompt is among the distilled ones, and no held-out concept is named there."""
    distilled = load_world("emoji").prompts("distill")
    assert not set(distilled) & set(load_world("emoji").prompts("compositions"))

    def concept(prompt: str) -> str:
        return prompt.split(" on a")[0]

    assert not {concept(p) for p in distilled} & {concept(p) for p in load_world("emoji").prompts("concepts")}
    assert {concept(p) for p in load_world("emoji").prompts("compositions")} <= {
        concept(p) for p in distilled
    }
