"""Where things are that tests look at."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
"""The repository."""
EMOJI_DATA = ROOT.parent / "shared" / "data" / "emoji"
"""What the emoji recipe has prepared, on machines where it was run."""
HELPERS = ROOT / "tests" / "helpers"
"""Modules that tests share, on the path of them all; some are programs."""
