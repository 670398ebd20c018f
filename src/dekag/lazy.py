"""Packages whose names are imported when they are first used, so that importing the package itself stays quick.

A package says what it offers twice, as any other does: in `__all__`, and as imports. These stand below
`if TYPE_CHECKING:`, where type checkers and editors read them, and so does this file.
"""

import ast
import pkgutil
import sys
from collections.abc import Callable, Iterator
from functools import cache
from importlib import import_module


def lazy(package: str) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of a package, whose imports stand below `if TYPE_CHECKING:`."""
    module = sys.modules[package]

    def find(name: str) -> object:
        if name not in module.__all__ or name not in homes(package):
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(homes(package)[name]), name)
        setattr(module, name, value)
        return value

    def names() -> list[str]:
        return sorted({*vars(module), *module.__all__})

    return find, names


@cache
def homes(package: str) -> dict[str, str]:
    """The module that each name of a package comes from."""
    source = pkgutil.get_data(package, "__init__.py")
    assert source is not None
    return dict(_imports(ast.parse(source)))


def _imports(tree: ast.Module) -> Iterator[tuple[str, str]]:
    for block in tree.body:
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING":
            for node in block.body:
                assert isinstance(node, ast.ImportFrom)
                assert node.module is not None
                yield from ((name.name, node.module) for name in node.names)
