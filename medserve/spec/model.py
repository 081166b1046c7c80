"""The description of one model, parsed from its room's `model-config.yaml`.

The file is TorchServe's own model configuration; everything that is medserve's stands under
the key `medserve`. Training, packaging, handler and client all read it through `ModelSpec`.
"""

from __future__ import annotations

import dataclasses
import enum
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medserve.errors import ConfigError
from medserve.spec.frames import FrameSpec
from medserve.spec.generation import GenerationSpec
from medserve.spec.volumes import VolumeSpec

__all__ = [
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
    "ServingSpec",
    "Task",
    "VolumeSpec",
]


class Task(enum.StrEnum):
    """What a model does; decides the result type."""

    CLASSIFICATION = "classification"
    SEGMENTATION = "segmentation"
    GENERATION = "generation"


class InputKind(enum.StrEnum):
    """A family of file formats that a model reads."""

    RASTER = "raster"  # PNG, JPEG, TIFF
    DICOM = "dicom"
    NIFTI = "nifti"
    NPY = "npy"


class Fit(enum.StrEnum):
    """How an image is brought to the network's plane: proportions kept, black beside it."""

    GREY = "grey"  # one channel, bilinear
    COLOUR = "colour"  # red, green and blue, bilinear
    LANCZOS = "lanczos"  # red, green and blue, by Lanczos, cut to [0, 1]


class EngineName(enum.StrEnum):
    """What executes the artifact."""

    OPENVINO = "openvino"
    ONNXRUNTIME = "onnxruntime"
    TORCHSCRIPT = "torchscript"


class Precision(enum.StrEnum):
    """Arithmetic of the engine; anything but f32 needs its own score in the model card."""

    F32 = "f32"
    BF16 = "bf16"


@dataclass(frozen=True)
class InputSpec:
    """What the model reads and how large it may be."""

    kinds: tuple[InputKind, ...]
    size: tuple[int, ...]  # pixels (H, W) or voxels (I, J, K) that the network sees
    channels: int = 1
    fit: Fit = Fit.GREY  # of a classifier; training and serving both read it
    max_payload_bytes: int = 32 * 2**20
    max_pixels: int = 40_000_000  # per plane; above it a file is a decompression bomb
    min_side: int = 8  # pixels; below it nothing can be recognised
    max_items: int = 512  # images packed into one call


@dataclass(frozen=True)
class OutputSpec:
    """How answers are shaped."""

    review_below: float = 0.0  # probability under which a person should look
    top_k: int = 3


@dataclass(frozen=True)
class EngineSpec:
    """Which engine runs the artifact, and how."""

    name: EngineName = EngineName.OPENVINO
    precision: Precision = Precision.F32
    threads: int = 0  # 0: cores / workers


@dataclass(frozen=True)
class ServingSpec:
    """TorchServe's own keys, under its own names in the file."""

    min_workers: int
    max_workers: int
    batch_size: int = 1
    max_batch_delay: int = 1  # ms; 0 makes TorchServe stop gathering after two requests
    response_timeout: int = 120  # s; TorchServe kills the worker after it
    startup_timeout: int = 120  # s
    job_queue_size: int = 100


@dataclass(frozen=True)
class ModelSpec:
    """One model: its name, its task, its labels in order, and how it is fed and served."""

    name: str
    version: str
    title: str
    task: Task
    labels: tuple[str, ...]
    input: InputSpec
    serving: ServingSpec
    output: OutputSpec = field(default_factory=OutputSpec)
    engine: EngineSpec = field(default_factory=EngineSpec)
    volume: VolumeSpec | None = None  # only for models of whole volumes
    generation: GenerationSpec | None = None  # only for diffusion models
    frame: FrameSpec | None = None  # only for models of frames and stacks of them

    def __post_init__(self) -> None:
        self._check_volume()
        self._check_generation()
        self._check_frame()
        if len(set(self.labels)) != len(self.labels):
            raise ConfigError(f"{self.name}: labels must differ, got {list(self.labels)}")
        if not 1 <= self.serving.min_workers <= self.serving.max_workers:
            raise ConfigError(
                f"{self.name}: expected 1 <= minWorkers <= maxWorkers (TorchServe otherwise starts "
                f"one worker per core), got {self.serving.min_workers} and "
                f"{self.serving.max_workers}"
            )

    def _check_volume(self) -> None:
        if self.volume is None:
            return
        if len(self.input.size) != 3 or self.input.channels != 1 or len(self.labels) < 2:
            raise ConfigError(
                f"{self.name}: expected a window (I, J, K) of one channel and at least two labels, "
                f"got {self.input.size}, {self.input.channels} and {len(self.labels)}"
            )
        if unknown := sorted(set(self.volume.snomed) - set(self.labels[1:])):
            raise ConfigError(f"{self.name}: snomed: {unknown[0]!r} is no label of a structure")

    def _check_frame(self) -> None:
        if self.frame is None:
            return
        if len(self.input.size) != 2 or self.input.channels != 1 or len(self.labels) != 2:
            raise ConfigError(
                f"{self.name}: expected a frame (H, W) of one channel and two labels, background "
                f"and one structure (another target is another model), got {self.input.size}, "
                f"{self.input.channels} and {len(self.labels)}"
            )
        if unknown := sorted(set(self.frame.snomed) - set(self.labels[1:])):
            raise ConfigError(f"{self.name}: snomed: {unknown[0]!r} is no label of a structure")

    def _check_generation(self) -> None:
        if self.generation is None:
            return
        side = self.generation.sizes[0]
        if self.task is not Task.GENERATION or self.input.size != (side, side):
            raise ConfigError(
                f"{self.name}: generation: expected the task generation and an input of size "
                f"[{side}, {side}], its first size, got {self.task} and {list(self.input.size)}"
            )

    @classmethod
    def from_file(cls, path: Path) -> ModelSpec:
        """Read `model-config.yaml`; ConfigError names the file and the key that is wrong."""
        import yaml  # the client reads no file, and starts sooner without

        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, yaml.YAMLError) as error:
            raise ConfigError(f"{path}: cannot be read as YAML ({error})") from error
        return cls.from_mapping(content, source=str(path))

    @classmethod
    def from_mapping(cls, content: object, source: str = "model-config.yaml") -> ModelSpec:
        """Build the spec from the parsed file (TorchServe hands the handler this mapping)."""
        if not isinstance(content, Mapping) or not isinstance(content.get("medserve"), Mapping):
            raise ConfigError(f"{source}: expected a mapping with the key 'medserve'")
        own = dict(content["medserve"])
        own["serving"] = {
            field.name: content[_camel(field.name)]
            for field in dataclasses.fields(ServingSpec)
            if _camel(field.name) in content
        }
        spec = _build(cls, own, f"{source}: medserve")
        assert isinstance(spec, cls)
        return spec


def _camel(name: str) -> str:
    head, *tail = name.split("_")
    return head + "".join(part.capitalize() for part in tail)


def _build(kind: Any, value: Any, where: str) -> Any:
    """Convert parsed YAML into `kind`, refusing unknown keys, missing keys and wrong types."""
    origin = typing.get_origin(kind)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return _build_dataclass(kind, value, where)
    if origin is tuple:
        if not isinstance(value, list):
            raise ConfigError(f"{where}: expected a list, got {value!r}")
        item = typing.get_args(kind)[0]
        return tuple(_build(item, each, f"{where}[{i}]") for i, each in enumerate(value))
    if origin in (typing.Union, types.UnionType):  # of a kind and None
        return None if value is None else _build(typing.get_args(kind)[0], value, where)
    if origin is Mapping:
        if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
            raise ConfigError(f"{where}: expected a mapping with names as keys, got {value!r}")
        item = typing.get_args(kind)[1]
        return {key: _build(item, each, f"{where}.{key}") for key, each in value.items()}
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        if value not in [member.value for member in kind]:
            allowed = ", ".join(str(member.value) for member in kind)
            raise ConfigError(f"{where}: expected one of {allowed}, got {value!r}")
        return kind(value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ConfigError(f"{where}: expected {kind.__name__}, got {value!r}")
    return value


def _build_dataclass(kind: type, value: Any, where: str) -> Any:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where}: expected a mapping, got {value!r}")
    hints = typing.get_type_hints(kind)
    if unknown := sorted(set(value) - set(hints)):
        known = ", ".join(sorted(hints))
        raise ConfigError(f"{where}: unknown key {unknown[0]!r}; known keys: {known}")
    parts = {key: _build(hints[key], each, f"{where}.{key}") for key, each in value.items()}
    required = [
        field.name
        for field in dataclasses.fields(kind)
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]
    if missing := [name for name in required if name not in parts]:
        raise ConfigError(f"{where}: missing key {missing[0]!r}")
    return kind(**parts)
