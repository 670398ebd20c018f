"""What dekag does, a file for each verb; the same from Python, the command line and a job.

The verbs themselves are names of `dekag`; here is what they are told and what they tell.
"""

from typing import TYPE_CHECKING

from dekag.lazy import lazy

if TYPE_CHECKING:
    from dekag.tasks.align_generation import GenerationTask
    from dekag.tasks.align_transmission import (
        TransmissionTask,
        conditions_of,
        edge_latents,
        transmission_training,
    )
    from dekag.tasks.compare import Drawing, GenerationEvaluation, Report
    from dekag.tasks.config import CodecConfig
    from dekag.tasks.deliver import DeliverTask, Transmission, TransmissionSettings
    from dekag.tasks.demo import Demo, DemoConfig
    from dekag.tasks.evaluate_accuracy import AccuracyTask
    from dekag.tasks.generate import GenerateTask
    from dekag.tasks.import_bundle import Imported, ImportTask
    from dekag.tasks.material import ImageSource, Material
    from dekag.tasks.train_codec import TrainedCodec
    from dekag.tasks.validate import Extras

__all__ = [
    "AccuracyTask",
    "CodecConfig",
    "DeliverTask",
    "Demo",
    "DemoConfig",
    "Drawing",
    "Extras",
    "GenerateTask",
    "GenerationEvaluation",
    "GenerationTask",
    "ImageSource",
    "ImportTask",
    "Imported",
    "Material",
    "Report",
    "TrainedCodec",
    "Transmission",
    "TransmissionSettings",
    "TransmissionTask",
    "conditions_of",
    "edge_latents",
    "transmission_training",
]

__getattr__, __dir__ = lazy(__name__)
