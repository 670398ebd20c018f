"""Knowledge alignment for generative semantic communication.

import dekag
system = dekag.load("emoji")
delivery = system.deliver(["a red apple on a blue background"], dekag.Condition(uses=256, snr_db=10))
delivery.image  # float [1, 3, 64, 64] in [0, 1]
"""

from importlib import import_module

from dekag.version import __version__

_HOMES = {
    "Condition": "dekag.types",
    "Delivery": "dekag.types",
    "InputError": "dekag.types",
    "Model": "dekag.world",
    "System": "dekag.world",
    "World": "dekag.world",
    "deliver": "dekag.link",
    "load": "dekag.world",
    "load_world": "dekag.world",
}

__all__ = [
    "Condition",
    "Delivery",
    "InputError",
    "Model",
    "System",
    "World",
    "__version__",
    "deliver",
    "load",
    "load_world",
]


def __getattr__(name: str) -> object:
    """Import a public name when it is first used; `import dekag` alone stays quick."""
    if name not in _HOMES:
        raise AttributeError(f"module 'dekag' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value
