"""Text files that people write, with whatever editor: one reader for all of them."""

from pathlib import Path

from dekag.errors import InputError

MARK = "\ufeff"
"""The byte-order mark that some editors put at the head of UTF-8."""


def read_text(path: Path, *, right: str) -> str:
    """A UTF-8 text without the mark at its head.

    right: what the file should be, for the messages, as "give a text file with one prompt a line".
    Raises InputError, one line, if it is missing, a folder, unreadable or no UTF-8 text.
    """
    try:
        text = path.read_bytes().decode("utf-8")
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist; {right}") from error
    except IsADirectoryError as error:
        raise InputError(f"{path} is a folder; {right}") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); {right}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is no UTF-8 text; save it as UTF-8") from error
    if "\0" in text:
        raise InputError(f"{path} holds a NUL, as no text does; {right}")
    return text.removeprefix(MARK)


def read_lines(path: Path, *, right: str) -> list[str]:
    """The lines of `read_text`. LF and CR LF end a line and nothing else does; blank lines at the end are none."""
    lines = [line.removesuffix("\r") for line in read_text(path, right=right).split("\n")]
    while lines and not lines[-1].strip():
        lines.pop()
    return lines
