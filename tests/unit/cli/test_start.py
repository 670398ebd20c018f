"""What each command imports: one that needs no model starts without the libraries of models."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import typer
from commands_in_one_process import Ended, run_lines

from dekag.bundle import load_bundle
from dekag.cli import app
from dekag.world import shipped

HEAVY = ("torch", "diffusers", "transformers", "accelerate", "peft", "scipy", "matplotlib", "onnxruntime")
WITH_MODELS = {
    *("demo", "generate", "deliver", "receive", "train codec", "align generation", "align transmission"),
    *("evaluate generation", "evaluate transmission", "evaluate accuracy", "world new", "world draw"),
    *("serve edge", "radio send", "radio receive", "radio papr"),
    "world show",  # a world's parts are the classes that load them
    "bundle export",  # factors are multiplied out
    "bundle import",
    "registry canary",  # an edge draws the references
}
"""Commands that draw, train or send, or read a world."""
SERVICES = {
    "up",
    "serve cloud",
    "cloud migrate",
    "cloud backup",
    *(f"jobs {verb}" for verb in ("submit", "watch")),
}
"""Commands of services, which are not run here but for their help; `up` starts others as processes of their own."""
REFUSED = {"jobs list", "jobs cancel"}
"""Commands that find no service here."""


def leaves(command: Any, path: tuple[str, ...] = ()) -> Iterator[str]:
    """Names of a command, or of all in a group, as words."""
    parts: dict[str, Any] = getattr(command, "commands", {})
    for name, part in parts.items():
        yield from leaves(part, (*path, name))
    if not parts:
        yield " ".join(path)


COMMANDS = tuple(leaves(typer.main.get_command(app)))


def started(lines: Sequence[str], folder: Path) -> list[Ended]:
    """How each line ends, all in one process, with the heavy modules that are there after it."""
    return run_lines([(line.split(), ()) for line in lines], folder, watched=HEAVY)


def light(folder: Path) -> dict[str, str]:
    """A line that works of each command that needs no model, in their order."""
    registry, root = f"--registry {folder}/registry", f"--root {folder}/keys/root.json"
    places, packed = f"{registry} --keys {folder}/keys", f"{folder}/bundle.tar"
    promoted = load_bundle(shipped("emoji/cala")).id
    return {
        "bundle inspect": "bundle inspect emoji/makd",
        "bundle pack": f"bundle pack emoji/makd --out {packed}",
        "registry init": f"registry init {places}",
        "registry publish": f"registry publish emoji/cala {places} --name cala",
        "registry promote": f"registry promote {promoted} {places}",
        "registry list": f"registry list {places}",
        "registry refresh": f"registry refresh {places}",
        "registry rotate-keys": f"registry rotate-keys timestamp {places}",
        "registry export": f"registry export --out {folder}/archive.tar {registry} {root}",
        "registry import": f"registry import {folder}/other --from {folder}/archive.tar {root}",
        "registry pull": f"registry pull {folder}/edge {registry} {root}",
        "registry withdraw": f"registry withdraw {promoted} {places} --channel stable",
    }


def test_every_command_is_in_one_of_the_lists(tmp_path: Path) -> None:
    """So that a new one is not forgotten."""
    assert {*WITH_MODELS, *SERVICES, *REFUSED, *light(tmp_path)} == set(COMMANDS)


def test_help_of_no_command_imports_a_model(tmp_path: Path) -> None:
    for command, (code, told, heavy) in zip(
        COMMANDS, started([f"{command} --help" for command in COMMANDS], tmp_path), strict=True
    ):
        assert code == 0, told
        assert not heavy, f"dekag {command} --help imports {heavy}"


def test_commands_without_a_model_import_none(tmp_path: Path) -> None:
    lines = light(tmp_path)
    for command, (code, told, heavy) in zip(lines, started(list(lines.values()), tmp_path), strict=True):
        assert code == 0, f"dekag {lines[command]}: {told}"
        assert not heavy, f"dekag {command} imports {heavy}"


@pytest.mark.parametrize("command", sorted(REFUSED))
def test_refusals_import_none(tmp_path: Path, command: str) -> None:
    ((code, told, heavy),) = started(
        [f"{command} {'1 ' if command == 'jobs cancel' else ''}--url http://127.0.0.1:9"], tmp_path
    )
    assert code != 0
    assert told
    assert not heavy
