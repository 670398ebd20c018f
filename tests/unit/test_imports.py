"""Imports point one way, and `import dekag` stays light."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from places import ROOT


def load_checker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("imports", ROOT / "scripts" / "imports.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


CHECKER = load_checker()


def complaints(root: Path, files: dict[str, str]) -> list[str]:
    """What the checker says of a package made of these files, without the folder."""
    for name, text in files.items():
        path = root / "dekag" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return [line.replace(f"{root / 'dekag'}/", "") for line in CHECKER.violations(root)]


def test_imports_of_the_package_point_one_way() -> None:
    assert list(CHECKER.violations(ROOT / "src")) == []


@pytest.mark.parametrize(
    ("name", "text", "complaint"),
    [
        ("types.py", "import dekag.units\n", "1: types must not import dekag.units"),
        ("channel/awgn.py", "\nfrom dekag.link import x\n", "2: channel must not import dekag.link"),
        ("channel/awgn.py", "from dekag import codec\n", "1: channel must not import dekag.codec"),
        ("channel/awgn.py", "from ..codec import x\n", "1: channel must not import dekag.codec"),
        ("codec/jscc.py", "from .. import link\n", "1: codec must not import dekag.link"),
        ("codec/jscc.py", "def f():\n    import dekag.cli\n", "2: codec must not import dekag.cli"),
        (
            "link.py",
            "import dekag.alignment.transmission.cala\n",
            "1: link must not import dekag.alignment.transmission.cala",
        ),
        ("training/loop.py", "import dekag.alignment\n", "1: training must not import dekag.alignment"),
        ("alignment/makd.py", "import dekag.world\n", "1: alignment must not import dekag.world"),
        ("evaluation/cells.py", "import dekag.alignment\n", "1: evaluation must not import dekag.alignment"),
        ("world/world.py", "import dekag.cli\n", "1: world must not import dekag.cli"),
        ("__init__.py", "from dekag.link import x\n", "1: dekag imports dekag.link before it is used"),
        ("common.py", "", "1: layer common is not in the table of imports.py"),
    ],
)
def test_a_wrong_import_is_found(tmp_path: Path, name: str, text: str, complaint: str) -> None:
    assert complaints(tmp_path, {name: text}) == [f"{name}:{complaint}"]


def test_right_imports_pass(tmp_path: Path) -> None:
    files = {
        "__init__.py": "from dekag.version import x\ndef f():\n    from dekag.world import y\n",
        "channel/awgn.py": "import torch\nfrom dekag.types import x\nfrom . import fading\n",
        "alignment/makd.py": "from dekag.training.loop import train\nfrom ..link import x\n",
        "world/world.py": "from dekag import version, registry\n",
        "cli.py": "import dekag.world\n",
    }
    assert complaints(tmp_path, files) == []


def test_importing_dekag_leaves_heavy_libraries_alone() -> None:
    heavy = ("sionna", "matplotlib", "fastapi", "pyarrow", "ray", "submitit")
    code = f"import sys, dekag; print([m for m in {heavy!r} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
