"""Every command that the texts show exists, with the options that they show."""

import re
import shlex

import click
import pytest
import typer
from places import ROOT

from dekag.cli import app

TEXTS = ("README.md", "docs/operations.md", "docs/own_world.md")


def shown(text: str) -> list[list[str]]:
    """The words of every `dekag` command line of a text, in blocks and between backticks."""
    joined = text.replace("\\\n", " ")
    lines = re.findall(r"^\s*(dekag .*)$", joined, flags=re.MULTILINE)
    lines += re.findall(r"`(dekag [^`]*)`", joined)
    return [shlex.split(line, comments=True) for line in lines]


def command_of(words: list[str]) -> tuple[click.Command, list[str]]:
    """The command that the words name, and the words after it."""
    command: click.Command = typer.main.get_command(app)
    rest = words[1:]
    while rest and hasattr(command, "commands"):
        assert rest[0] in command.commands, f"{' '.join(words)}: there is no {rest[0]}"
        command, rest = command.commands[rest[0]], rest[1:]
    return command, rest


@pytest.mark.parametrize("name", TEXTS)
def test_commands_and_options_exist(name: str) -> None:
    found = shown((ROOT / name).read_text())
    assert len(found) > 8
    for words in found:
        command, rest = command_of(words)
        options = {
            option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)
        }
        given = {word.partition("=")[0] for word in rest if word.startswith("--")} - {"--help"}
        assert given <= options, f"{' '.join(words)}: unknown {given - options}"


def test_a_wrong_option_would_be_found() -> None:
    """The test above can fail."""
    command, rest = command_of(["dekag", "bundle", "inspect", "emoji/makd", "--nonsense"])
    assert "--nonsense" in rest
    assert all("--nonsense" not in parameter.opts for parameter in command.params)
