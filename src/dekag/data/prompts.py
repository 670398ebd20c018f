"""Prompts of a text file."""

from pathlib import Path

from dekag.types import InputError


def read_prompts(path: Path) -> list[str]:
    """One prompt a line of a UTF-8 text file."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is no UTF-8 text; give a text file with one prompt a line") from error
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist; give a text file with one prompt a line") from error
    empty = [number for number, line in enumerate(lines, 1) if not line.strip()]
    if empty or not lines:
        where = f"line {empty[0]} is empty" if empty else "it has no line"
        raise InputError(f"{path}: {where}; give one prompt a line")
    return lines
