"""The description of one model: what it reads, what it answers, how it is fed and served."""

from medserve.spec.frames import FrameSpec
from medserve.spec.generation import GenerationSpec
from medserve.spec.model import (
    Classes,
    EngineName,
    EngineSpec,
    Fit,
    InputKind,
    InputSpec,
    ModelSpec,
    OutputSpec,
    Precision,
    Proportions,
    ServingSpec,
    Task,
    schema,
)
from medserve.spec.volumes import VolumeSpec

__all__ = [
    "Classes",
    "EngineName",
    "EngineSpec",
    "Fit",
    "FrameSpec",
    "GenerationSpec",
    "InputKind",
    "InputSpec",
    "ModelSpec",
    "OutputSpec",
    "Precision",
    "Proportions",
    "ServingSpec",
    "Task",
    "VolumeSpec",
    "schema",
]
