"""Knowledge alignment for generative semantic communication.

import dekag
system = dekag.load()  # the world that ships
delivery = system.deliver(["a red apple on a blue background"], dekag.Condition(uses=256, snr_db=10))
delivery.image  # float [1, 3, 64, 64] in [0, 1]
"""

from typing import TYPE_CHECKING

from dekag.lazy import lazy
from dekag.version import __version__

if TYPE_CHECKING:
    from dekag.link import deliver
    from dekag.tasks.align_generation import align_generation
    from dekag.tasks.align_transmission import align_transmission
    from dekag.tasks.demo import run_demo
    from dekag.tasks.evaluate import evaluate_generation, evaluate_transmission
    from dekag.tasks.import_bundle import import_bundle
    from dekag.tasks.material import material
    from dekag.tasks.preview_bundle import preview_bundle
    from dekag.tasks.train_codec import train_codec
    from dekag.types import Condition, Delivery, InputError
    from dekag.world import Model, System, World, load, load_world

__all__ = [
    "Condition",
    "Delivery",
    "InputError",
    "Model",
    "System",
    "World",
    "__version__",
    "align_generation",
    "align_transmission",
    "deliver",
    "evaluate_generation",
    "evaluate_transmission",
    "import_bundle",
    "load",
    "load_world",
    "material",
    "preview_bundle",
    "run_demo",
    "train_codec",
]

__getattr__, __dir__ = lazy(__name__)
