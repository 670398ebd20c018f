"""Prompts of a text file."""

from pathlib import Path

from dekag.data.text import read_lines
from dekag.errors import InputError

RIGHT = "give a text file with one prompt a line"


def read_prompts(path: Path) -> list[str]:
    """One prompt a line of a UTF-8 text file. Raises InputError as `read_lines`, or if there is none or a gap."""
    lines = read_lines(path, right=RIGHT)
    empty = [number for number, line in enumerate(lines, 1) if not line.strip()]
    if empty or not lines:
        where = f"line {empty[0]} is empty" if empty else "it has no line"
        raise InputError(f"{path}: {where}; {RIGHT}")
    return lines
