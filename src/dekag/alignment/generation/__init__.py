"""G-KA: MAKD and its rivals."""

from typing import TYPE_CHECKING

from dekag.lazy import lazy

if TYPE_CHECKING:
    from dekag.alignment.generation.adapter_kinds import KINDS, AdapterKind
    from dekag.alignment.generation.few_steps import distil_few_steps
    from dekag.alignment.generation.method import DistillationData, GenerationMethod, TrainingRun
    from dekag.alignment.generation.methods import METHODS, MakdMethod, find_method, method_config
    from dekag.alignment.generation.noise_map import fit_noise_map
    from dekag.alignment.generation.update import GenerationUpdate, apply_update, remove_update

__all__ = [
    "KINDS",
    "METHODS",
    "AdapterKind",
    "DistillationData",
    "GenerationMethod",
    "GenerationUpdate",
    "MakdMethod",
    "TrainingRun",
    "apply_update",
    "distil_few_steps",
    "find_method",
    "fit_noise_map",
    "method_config",
    "remove_update",
]

__getattr__, __dir__ = lazy(__name__)
