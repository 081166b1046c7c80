"""One module a task: what a caller may ask (options) and what comes back (result)."""

from medserve.spec import Task
from medserve.tasks.classification import ClassificationOptions
from medserve.tasks.frames import FrameOptions
from medserve.tasks.generation import GenerationOptions
from medserve.tasks.options import Option, Options, declared
from medserve.tasks.regression import RegressionOptions
from medserve.tasks.volumes import VolumeOptions

__all__ = [
    "OPTIONS",
    "ClassificationOptions",
    "FrameOptions",
    "GenerationOptions",
    "Option",
    "Options",
    "RegressionOptions",
    "VolumeOptions",
    "declared",
]

OPTIONS: dict[Task, type[Options]] = {
    Task.CLASSIFICATION: ClassificationOptions,
    Task.REGRESSION: RegressionOptions,
    Task.VOLUMES: VolumeOptions,
    Task.FRAMES: FrameOptions,
    Task.GENERATION: GenerationOptions,
}
