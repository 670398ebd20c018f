"""Worlds: what a system is made of, as a value that every task takes."""

from typing import TYPE_CHECKING

from dekag.lazy import lazy

# at once: it is light, and a module's name would hide that of its function
from dekag.world.shipped import card, locate, shipped, shipped_parts, shipped_worlds

if TYPE_CHECKING:
    from dekag.world.drawings import Cloud
    from dekag.world.file import load, load_world
    from dekag.world.new import NewWorld, describe_world, new_world
    from dekag.world.world import UPDATE_NAMES, DrawingMethod, Model, System, World

__all__ = [
    "UPDATE_NAMES",
    "Cloud",
    "DrawingMethod",
    "Model",
    "NewWorld",
    "System",
    "World",
    "card",
    "describe_world",
    "load",
    "load_world",
    "locate",
    "new_world",
    "shipped",
    "shipped_parts",
    "shipped_worlds",
]

__getattr__, __dir__ = lazy(__name__)
