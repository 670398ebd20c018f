"""Check that imports inside `dekag` point one way: `python scripts/imports.py`.

Every module of the package belongs to a layer, named by its first component, and may import its own layer,
`dekag.version`, `dekag.lazy` and what the table below allows. Imports within functions and type-checking
blocks count as well. `dekag/__init__.py` may import anything, but only when it is used.
"""

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PACKAGE = "dekag"
NOUNS = frozenset({"errors", "types", "units", "config", "choices"})
STAGES = NOUNS | {"channel", "codec", "generation"}
LINKED = STAGES | {"wire", "link"}
PARTS = LINKED | {"baseline", "bundle", "engine", "training", "alignment", "evaluation", "data", "registry"}
TASKS = PARTS | {"world", "tasks"}
EVERYWHERE = frozenset({"version", "lazy"})
LAYERS = {
    "version": frozenset[str](),
    "lazy": frozenset[str](),
    "errors": frozenset[str](),
    "types": frozenset({"errors"}),
    "units": frozenset({"errors"}),
    "config": frozenset({"errors"}),
    "choices": frozenset({"errors"}),
    "channel": NOUNS,
    "codec": NOUNS,
    "generation": NOUNS,
    "wire": NOUNS | {"channel", "codec"},
    "link": STAGES | {"wire"},
    "baseline": LINKED,
    "bundle": NOUNS | {"wire"},
    "engine": STAGES | {"wire", "bundle"},
    "training": LINKED,
    "alignment": LINKED | {"bundle", "training"},
    "evaluation": LINKED,
    "data": NOUNS | {"wire"},
    "registry": LINKED | {"bundle"},
    "world": PARTS,
    "tasks": PARTS | {"world"},
    "serving": TASKS,
    "cli": TASKS | {"serving"},
    "__main__": frozenset({"cli"}),
}
"""Layer -> the layers that it may import."""


@dataclass(frozen=True, kw_only=True)
class Import:
    """A module of the package as it is named at one line of a file."""

    file: Path
    line: int
    module: str
    lazy: bool

    @property
    def layer(self) -> str:
        """The first component below the package; empty for the package itself."""
        return self.module.partition(".")[2].partition(".")[0]


def violations(source: Path) -> Iterator[str]:
    """One line of text for every import below `source` that the table does not allow."""
    for file in sorted((source / PACKAGE).rglob("*.py")):
        layer = layer_of(file.relative_to(source / PACKAGE))
        if layer and layer not in LAYERS:
            yield f"{file}:1: layer {layer} is not in the table of {Path(__file__).name}"
            continue
        for imported in package_imports(file, source):
            if complaint := judge(layer, imported):
                yield f"{file}:{imported.line}: {complaint}"


def layer_of(path: Path) -> str:
    """The layer of a file, given its path in the package; empty for the package's own `__init__.py`."""
    return "" if path == Path("__init__.py") else path.with_suffix("").parts[0]


def judge(layer: str, imported: Import) -> str | None:
    """What is wrong with one import, or None."""
    if imported.layer in {layer, *EVERYWHERE}:
        return None
    if not layer:
        return None if imported.lazy else f"{PACKAGE} imports {imported.module} before it is used"
    if imported.layer in LAYERS[layer]:
        return None
    return f"{layer} must not import {imported.module}"


def package_imports(file: Path, source: Path) -> Iterator[Import]:
    """Every import of a module of the package in one file."""
    tree = ast.parse(file.read_text(encoding="utf-8"), filename=str(file))
    lazy = {id(inner) for node in ast.walk(tree) if is_deferred(node) for inner in ast.walk(node)}
    parents = file.relative_to(source).parent.parts
    for node in ast.walk(tree):
        if not isinstance(node, ast.Import | ast.ImportFrom):
            continue
        for module in imported_modules(node, parents):
            if module.split(".")[0] == PACKAGE:
                yield Import(file=file, line=node.lineno, module=module, lazy=id(node) in lazy)


def is_deferred(node: ast.AST) -> bool:
    """Whether what is below the node does not run when the module is imported."""
    if isinstance(node, ast.If):
        return "TYPE_CHECKING" in ast.unparse(node.test)
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)


def imported_modules(node: ast.Import | ast.ImportFrom, parents: tuple[str, ...]) -> list[str]:
    """Full names of what an import statement names; `from dekag import link` is `dekag.link`."""
    if isinstance(node, ast.Import):
        return [name.name for name in node.names]
    base = [*parents[: len(parents) + 1 - node.level]] if node.level else []
    module = ".".join([*base, *([node.module] if node.module else [])])
    return [f"{module}.{name.name}" for name in node.names] if module == PACKAGE else [module]


def main() -> int:
    """Print every violation; 1 if there is any."""
    found = list(violations(Path(__file__).parents[1] / "src"))
    print("\n".join(found) if found else "imports: all point one way")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
