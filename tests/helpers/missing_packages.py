"""What a program says where a package is not installed."""

import subprocess
import sys
from collections.abc import Sequence


def complaint(code: str, *, missing: Sequence[str]) -> str:
    """The message of the InputError that these lines end in, in a process that lacks the packages."""
    first = f"import sys\nsys.modules.update(dict.fromkeys({list(missing)!r}))\n"
    lines = "\n".join(f"    {line}" for line in code.strip().splitlines())
    last = "\nexcept InputError as error:\n    print(error)\nelse:\n    sys.exit('nothing was missing')\n"
    program = f"{first}from dekag.errors import InputError\ntry:\n{lines}{last}"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout
