"""What a program says where a package is not installed."""

import subprocess
import sys
from collections.abc import Sequence
from textwrap import indent


def complaints(*codes: str, missing: Sequence[str]) -> list[str]:
    """The message of the InputError that each piece of code ends in, in one process that lacks the packages."""
    program = f"import sys\nsys.modules.update(dict.fromkeys({list(missing)!r}))\n"
    program += "from dekag.errors import InputError\n"
    for code in codes:
        program += f"try:\n{indent(code.strip(), '    ')}\nexcept InputError as error:\n    print(error)\n"
        program += "else:\n    sys.exit('nothing was missing')\n"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def complaint(code: str, *, missing: Sequence[str]) -> str:
    """As `complaints`, of one piece of code."""
    (message,) = complaints(code, missing=missing)
    return message
