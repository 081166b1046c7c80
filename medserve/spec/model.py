"""The description of one model, parsed from its room's `model-config.yaml`.

The file is TorchServe's own model configuration; everything that is medserve's stands under
the key `medserve`. Training, packaging, handler and client all read it through `ModelSpec`.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from medserve.errors import ConfigError
from medserve.spec.frames import FrameSpec
from medserve.spec.generation import GenerationSpec
from medserve.spec.section import Section, read_section
from medserve.spec.values import ValueSpec, check_values
from medserve.spec.volumes import ResamplingKind, ScoreKind, VolumeSpec

__all__ = [
    "Classes",
    "EngineName",
    "EngineSpec",
    "Fit",
    "InputKind",
    "InputSpec",
    "ModelSpec",
    "OutputSpec",
    "Precision",
    "Proportions",
    "ServingSpec",
    "Task",
    "schema",
]


class Task(enum.StrEnum):
    """A kind of work; each has one module of options and results in `medserve.tasks`."""

    CLASSIFICATION = "classification"  # one class for each image, or its independent labels
    REGRESSION = "regression"  # numbers with units for each image
    VOLUMES = "volumes"  # a mask for each volume
    FRAMES = "frames"  # a mask for each frame of a picture, a cine loop or a stack
    GENERATION = "generation"  # synthetic images

    @property
    def segments(self) -> bool:
        """Whether the answer is a mask."""
        return self in (Task.VOLUMES, Task.FRAMES)

    @property
    def packs(self) -> bool:
        """Whether a call holds many images, each with an answer of its own."""
        return self in (Task.CLASSIFICATION, Task.REGRESSION)


class InputKind(enum.StrEnum):
    """A family of file formats that a model reads."""

    RASTER = "raster"  # PNG, JPEG, TIFF
    DICOM = "dicom"
    NIFTI = "nifti"
    NPY = "npy"


class Fit(enum.StrEnum):
    """Of which channels the network's plane is made, and how pixels are resampled."""

    GREY = "grey"  # one channel, bilinear
    COLOUR = "colour"  # red, green and blue, bilinear
    LANCZOS = "lanczos"  # red, green and blue, by Lanczos, cut to [0, 1]


class Proportions(enum.StrEnum):
    """What becomes of the sides of an image on the network's plane."""

    KEPT = "kept"  # the whole image, black beside it
    STRETCHED = "stretched"  # the whole image to the sides of the plane
    CROPPED = "cropped"  # the middle of the image, true to scale, fills the plane


class Classes(enum.StrEnum):
    """How the labels of a classifier relate to each other."""

    EXCLUSIVE = "exclusive"  # one for each image: softmax
    INDEPENDENT = "independent"  # none, one or several: a sigmoid for each


class EngineName(enum.StrEnum):
    """The library that executes the artifact."""

    OPENVINO = "openvino"
    ONNXRUNTIME = "onnxruntime"
    TORCHSCRIPT = "torchscript"


class Precision(enum.StrEnum):
    """Arithmetic of the engine; anything but f32 needs its own score in the model card."""

    F32 = "f32"
    BF16 = "bf16"


_Count = Annotated[int, Meta(ge=1)]
_Share = Annotated[float, Meta(gt=0, lt=1)]


class InputSpec(Section, frozen=True):
    """What the model reads and how large it may be."""

    kinds: Annotated[
        tuple[InputKind, ...], Meta(description="Families of file formats that the model reads.")
    ]
    size: Annotated[
        tuple[_Count, ...],
        Meta(
            min_length=2,
            max_length=3,
            description="Pixels (H, W) or voxels (I, J, K) that the network sees.",
        ),
    ]
    channels: Annotated[_Count, Meta(description="Channels of the network's input.")] = 1
    fit: Annotated[
        Fit,
        Meta(
            description="How an image is brought to the network's plane, in training and serving; "
            "of `classification` and `regression`."
        ),
    ] = Fit.GREY
    proportions: Annotated[
        Proportions,
        Meta(
            description="What becomes of the sides of an image on the network's plane; of "
            "`classification`, `regression` and `frames`."
        ),
    ] = Proportions.KEPT
    middle: Annotated[
        float,
        Meta(
            gt=0,
            le=1,
            description="How much of the image's shorter side the plane holds, where `proportions` "
            "is `cropped`: 0.875 for 224 of 256 pixels.",
        ),
    ] = 1.0
    mean: Annotated[
        tuple[float, ...],
        Meta(
            description="Is taken from each channel, whose values lie in [0, 1]; of "
            "`classification`, `regression` and `frames`."
        ),
    ] = ()
    deviation: Annotated[
        tuple[Annotated[float, Meta(gt=0)], ...],
        Meta(
            description="Divides each channel after that; of `classification`, `regression` and "
            "`frames`."
        ),
    ] = ()
    max_payload_bytes: Annotated[
        _Count, Meta(description="Bytes of one file; a larger one is refused.")
    ] = 32 * 2**20
    max_pixels: Annotated[
        _Count, Meta(description="Pixels of one plane; above it a file is a decompression bomb.")
    ] = 40_000_000
    min_side: Annotated[
        _Count,
        Meta(description="Pixels of the shorter side; below it nothing can be recognised."),
    ] = 8
    max_items: Annotated[_Count, Meta(description="Files packed into one call.")] = 512


class OutputSpec(Section, frozen=True):
    """How a classifier answers."""

    classes: Annotated[
        Classes,
        Meta(description="Whether the labels exclude each other, or each is there or not."),
    ] = Classes.EXCLUSIVE
    threshold: Annotated[
        _Share | tuple[_Share, ...] | None,
        Meta(
            description="Probability from which a label is present: one for all labels, or one for "
            "each in their order; 0.5 if left out. Of `independent` classes only."
        ),
    ] = None
    review_below: Annotated[
        float,
        Meta(
            ge=0,
            le=1,
            description="Probability below which a person should look: of the class, or of "
            "`independent` classes of any label that is present.",
        ),
    ] = 0.0
    top_k: Annotated[_Count, Meta(description="Classes in `top`, most probable first.")] = 3
    scores: Annotated[ScoreKind, Meta(description="The network's first output, `logits`.")] = (
        ScoreKind.LOGITS
    )
    novelty: Annotated[
        bool,
        Meta(
            description="Whether a second output, `novelty`, tells how far an image is from the "
            "training data."
        ),
    ] = True

    @property
    def independent(self) -> bool:
        """Whether an image has none, one or several of the labels."""
        return self.classes is Classes.INDEPENDENT

    def thresholds(self, labels: int) -> tuple[float, ...]:
        """Return the probability from which each of so many labels is present."""
        if isinstance(self.threshold, tuple):
            return self.threshold
        return (0.5 if self.threshold is None else self.threshold,) * labels


class EngineSpec(Section, frozen=True):
    """The engine that runs the artifact, and how."""

    name: Annotated[EngineName, Meta(description="The library.")] = EngineName.OPENVINO
    precision: Annotated[Precision, Meta(description="Arithmetic.")] = Precision.F32
    threads: Annotated[
        int, Meta(ge=0, description="Threads of a worker; 0 divides the cores by the workers.")
    ] = 0


class ServingSpec(msgspec.Struct, frozen=True, rename="camel"):
    """TorchServe's own keys, under its own names; further ones are TorchServe's business."""

    min_workers: Annotated[_Count, Meta(description="Workers that TorchServe starts.")]
    max_workers: Annotated[_Count, Meta(description="Workers that may be asked for.")]
    batch_size: Annotated[_Count, Meta(description="Calls gathered into one batch.")] = 1
    max_batch_delay: Annotated[
        int,
        Meta(
            ge=0,
            description="Milliseconds that a call waits for others; 0 makes TorchServe stop "
            "gathering after two.",
        ),
    ] = 1
    response_timeout: Annotated[
        int, Meta(ge=0, description="Seconds after which TorchServe kills a worker that is silent.")
    ] = 120
    startup_timeout: Annotated[_Count, Meta(description="Seconds that a worker may load.")] = 120
    job_queue_size: Annotated[_Count, Meta(description="Calls that may wait.")] = 100


class _Own(Section, frozen=True, kw_only=True):
    """The key `medserve` of a model configuration; each task has one section of its own."""

    name: Annotated[str, Meta(description="Name of the model: letters, digits and underscores.")]
    version: Annotated[str, Meta(description='Version of the archive, quoted: "1.0".')]
    title: Annotated[str, Meta(description="What the model finds, in a few words.")]
    task: Annotated[Task, Meta(description="The kind of work.")]
    labels: Annotated[
        tuple[str, ...],
        Meta(
            description="Names in the order of the network's outputs; the background's first where "
            "the answer is a mask. None of `regression`, which has `values`."
        ),
    ] = ()
    input: Annotated[InputSpec, Meta(description="What the model reads.")]
    engine: Annotated[EngineSpec, Meta(description="What executes the artifact.")] = EngineSpec()
    output: Annotated[
        OutputSpec | None, Meta(description="How answers are shaped; of `classification` only.")
    ] = None
    values: Annotated[
        tuple[ValueSpec, ...],
        Meta(
            description="The numbers that the network tells, in the order of its outputs; of "
            "`regression` only."
        ),
    ] = ()
    volume: Annotated[
        VolumeSpec | None, Meta(description="The way of a volume; of `volumes` only.")
    ] = None
    frame: Annotated[
        FrameSpec | None, Meta(description="The way of a frame; of `frames` only.")
    ] = None
    generation: Annotated[
        GenerationSpec | None, Meta(description="The diffusion process; of `generation` only.")
    ] = None


_OF_PICTURES = (Task.CLASSIFICATION, Task.REGRESSION, Task.FRAMES)
_LABELLED = (Task.CLASSIFICATION, Task.VOLUMES, Task.FRAMES)
_MOST_LABELS = 255  # a mask of ids with 255 in it would be taken for one of black and white
_SECTIONS = {
    Task.CLASSIFICATION: "output",
    Task.REGRESSION: "values",
    Task.VOLUMES: "volume",
    Task.FRAMES: "frame",
    Task.GENERATION: "generation",
}


class ModelSpec(_Own, frozen=True, kw_only=True):
    """One model: its name, its task, its labels in order, and how it is fed and served.

    Exactly one of `output`, `values`, `volume`, `frame` and `generation` is there: the section of
    the task.
    """

    serving: ServingSpec

    def __post_init__(self) -> None:
        if self.task is Task.CLASSIFICATION and self.output is None:  # all of it has defaults
            msgspec.structs.force_setattr(self, "output", OutputSpec())
        for task, section in _SECTIONS.items():
            there = getattr(self, section) not in (None, ())
            if there is not (task is self.task):
                raise ConfigError(
                    f"{self.name}: expected the section {_SECTIONS[self.task]!r} and none of "
                    f"another task for the task {self.task}, got "
                    + (f"a section {section!r}" if there else "none")
                )
        if self.values:
            check_values(self.values, self.name)
        if self.labels and self.values:
            raise ConfigError(
                f"{self.name}: expected no labels beside the section 'values', whose numbers have "
                f"names of their own, got {list(self.labels)}"
            )
        if self.task in _LABELLED and not self.labels:
            raise ConfigError(f"{self.name}: expected labels for the task {self.task}, got none")
        if len(set(self.labels)) != len(self.labels):
            raise ConfigError(f"{self.name}: labels must differ, got {list(self.labels)}")
        if self.serving.min_workers > self.serving.max_workers:
            raise ConfigError(
                f"{self.name}: expected minWorkers <= maxWorkers, got {self.serving.min_workers} "
                f"and {self.serving.max_workers}"
            )
        self._check_input()
        if self.output is not None:
            self._check_classes(self.output)

    @property
    def classifier(self) -> OutputSpec:
        """The section of a model that classifies."""
        assert self.output is not None  # `__post_init__` saw to it
        return self.output

    @property
    def has_independent_labels(self) -> bool:
        """Whether the model answers with none, one or several of its labels."""
        return self.output is not None and self.output.independent

    def _check_classes(self, output: OutputSpec) -> None:
        """Refuse thresholds and labels that do not fit how classes relate."""
        if not output.independent:
            if output.threshold is not None:
                raise ConfigError(
                    f"{self.name}: output.threshold: expected none for exclusive classes, of which "
                    "the most probable one is answered; leave it out, or set output.classes to "
                    "independent"
                )
            return
        if isinstance(output.threshold, tuple) and len(output.threshold) != len(self.labels):
            raise ConfigError(
                f"{self.name}: output.threshold: expected one number, or one for each of "
                f"{len(self.labels)} labels, got {len(output.threshold)}"
            )
        reserved = [each for each in self.labels if ";" in each or each in ("", "none")]
        if reserved or not self.labels:
            raise ConfigError(
                f"{self.name}: labels: expected names without a semicolon, and none of them empty "
                "or 'none', which tables say where no label is present, got "
                f"{reserved[0] if reserved else 'no label'!r}"
            )

    def _check_shown(self) -> None:
        """Refuse a way of pictures to the network's plane that the task does not have."""
        channels = self.input.channels
        shown = (self.input.proportions, self.input.mean, self.input.deviation)
        is_cropped = self.input.proportions is Proportions.CROPPED
        if is_cropped and not self.task.packs:
            raise ConfigError(
                f"{self.name}: expected input.proportions kept or stretched for {self.task}, whose "
                "answers cover the whole frame, got cropped; state frame.crop"
            )
        if self.input.middle != 1.0 and not is_cropped:
            raise ConfigError(
                f"{self.name}: expected input.middle with input.proportions cropped, got it with "
                f"{self.input.proportions}"
            )
        if self.task not in _OF_PICTURES and shown != (Proportions.KEPT, (), ()):
            raise ConfigError(
                f"{self.name}: expected input.proportions, mean and deviation for the tasks "
                f"classification, regression and frames only, got one for {self.task}"
            )
        if {len(self.input.mean), len(self.input.deviation)} not in ({0}, {channels}):
            raise ConfigError(
                f"{self.name}: expected input.mean and input.deviation for each of {channels} "
                f"channels, or neither, got {len(self.input.mean)} and {len(self.input.deviation)}"
            )

    def _check_input(self) -> None:
        """Refuse an input that does not fit the task's section."""
        size, channels, labels = self.input.size, self.input.channels, len(self.labels)
        self._check_shown()
        if self.volume is not None:
            named = len(self.volume.channels) or 1
            if labels < 2 or channels != named:
                raise ConfigError(
                    f"{self.name}: expected at least two labels and {named} channels, as many as "
                    f"volume.channels names, got {labels} and {channels}"
                )
            if unknown := sorted(set(self.volume.regions) - set(self.labels[1:])):
                raise ConfigError(
                    f"{self.name}: regions: {unknown[0]!r} is no label of a structure"
                )
            grouped = {label for group in self.volume.largest_of for label in group}
            if unknown := sorted(grouped - set(self.labels[1:])):
                raise ConfigError(
                    f"{self.name}: largest_of: {unknown[0]!r} is no label of a structure"
                )
            if len(size) != 3 and self.volume.resampling.kind is ResamplingKind.FIXED:
                raise ConfigError(f"{self.name}: expected an input of 3 sides, got {size}")
        if self.frame is not None:
            if len(size) != 2 or channels not in (1, 3) or not 2 <= labels <= _MOST_LABELS:
                raise ConfigError(
                    f"{self.name}: expected a frame (H, W) of 1 channel (grey) or 3 (colour) and 2 "
                    f"to {_MOST_LABELS} labels, the background first, got {size}, {channels} and "
                    f"{labels}"
                )
            if (self.frame.seen or self.frame.quality) and (channels, labels) != (1, 2):
                raise ConfigError(
                    f"{self.name}: expected seen and quality for one structure in grey frames, got "
                    f"{channels} channels and {labels} labels"
                )
        if self.generation is not None and size != 2 * self.generation.sizes[:1]:
            side = self.generation.sizes[0]
            raise ConfigError(
                f"{self.name}: generation: expected an input of size [{side}, {side}], its first "
                f"size, got {list(size)}"
            )
        masked = self.volume or self.frame
        if masked and (unknown := sorted(set(masked.snomed) - set(self.labels[1:]))):
            raise ConfigError(f"{self.name}: snomed: {unknown[0]!r} is no label of a structure")

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
        if own.get("task") == "segmentation":  # as archives of before the two tasks say
            own["task"] = "frames" if "frame" in own else "volumes"
        own["serving"] = {key: each for key, each in content.items() if key != "medserve"}
        return read_section(cls, own, f"{source}: medserve")


def schema() -> dict[str, Any]:
    """Return the JSON schema of a whole `model-config.yaml`, for editors and the reference page."""

    class ModelConfig(ServingSpec, frozen=True, rename="camel", kw_only=True):
        """A model configuration as TorchServe reads it, with medserve's own key."""

        medserve: Annotated[_Own, Meta(description="Everything that is medserve's.")]

    return msgspec.json.schema(ModelConfig)
