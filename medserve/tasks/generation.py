"""Generation: synthetic images."""

from __future__ import annotations

import enum
import math
import secrets
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Self

import msgspec
from msgspec import Meta

from medserve.errors import InvalidRequestError
from medserve.spec import GenerationSpec, ModelSpec
from medserve.spec.generation import SamplerKind
from medserve.tasks.options import Options
from medserve.tasks.result import Result, Value, read_answer

__all__ = [
    "GenerationOptions",
    "GenerationResult",
    "SampleFormat",
    "SampleImage",
    "SampleProgress",
    "read_part",
]

_MAX_SEED = 2**32 - 1  # a browser's numbers are exact far beyond it


class SampleFormat(enum.StrEnum):
    """The files that an answer holds beside one PNG an image."""

    PNG = "png"  # none
    NPZ = "npz"  # all images as one NumPy archive
    NIFTI = "nifti"  # all images as the slices of one stack
    DICOM = "dicom"  # one file an image


class GenerationOptions(Options, frozen=True, kw_only=True):
    """What a caller may ask of a model that makes images."""

    count: Annotated[int, Meta(ge=1, description="Number of images.")] = msgspec.field(
        default=1, name="n"
    )
    label: Annotated[
        str | None,
        Meta(description="Name of the class; each image draws its own from its seed if left out."),
    ] = msgspec.field(default=None, name="class")
    seed: Annotated[
        Annotated[int, Meta(ge=0, le=_MAX_SEED)] | None,
        Meta(
            description="Of the first image, the next ones count up; the same seed draws the same "
            "images. An arbitrary one, which is answered, if left out."
        ),
    ] = None
    steps: Annotated[
        Annotated[int, Meta(ge=1)] | None,
        Meta(description="Calls of the network an image; the model's own choice if left out."),
    ] = None
    sampler: Annotated[
        SamplerKind | None,
        Meta(description="The way from noise to an image; the model's own choice if left out."),
    ] = None
    size: Annotated[
        int | None,
        Meta(description="Side of the images in pixels; the model's own size if left out."),
    ] = None
    guidance: Annotated[
        float | None,
        Meta(
            description="Weight of the class: 1 is the class alone; above it there is more of the "
            "class and less variety. The model's own choice if left out."
        ),
    ] = None
    format: Annotated[
        SampleFormat, Meta(description="Files beside the PNGs: none, npz, nifti or dicom.")
    ] = SampleFormat.PNG

    @classmethod
    def bounds(cls, spec: ModelSpec) -> Mapping[str, Mapping[str, Any]]:
        """Take limits and classes from the model's description."""
        generation = spec.generation
        assert generation is not None  # every model of this task has the section
        narrower: dict[str, Mapping[str, Any]] = {
            "count": {"most": generation.max_images},
            "steps": {"most": generation.steps},
            "guidance": {"least": 0, "most": generation.max_guidance},
        }
        return narrower | ({"label": {"choices": spec.labels}} if spec.labels else {})

    def filled(self, spec: ModelSpec) -> Self:
        """Fill what the caller left out but the class, and refuse what the model cannot do."""
        generation = spec.generation
        assert generation is not None  # every model of this task has the section
        arbitrary = secrets.randbelow(_MAX_SEED - generation.max_images)
        filled = msgspec.structs.replace(
            self,
            seed=arbitrary if self.seed is None else self.seed,
            steps=generation.default_steps if self.steps is None else self.steps,
            sampler=self.sampler or generation.default_sampler,
            size=generation.sizes[0] if self.size is None else self.size,
            guidance=generation.default_guidance if self.guidance is None else self.guidance,
        )
        filled._check_size(generation)
        if not spec.labels:
            filled._refuse_classes()
        filled._check_work(generation)
        if self.format is SampleFormat.NIFTI and spec.input.channels != 1:
            raise InvalidRequestError(
                "params: format: expected one for colour images, got nifti; ask for png, npz or "
                "dicom"
            )
        return filled

    def _check_size(self, generation: GenerationSpec) -> None:
        if self.size not in generation.sizes:
            sizes = " or ".join(map(str, generation.sizes))
            raise InvalidRequestError(
                f"params: size: expected {sizes}, which the weights were trained for, got "
                "something else; enlarge the images afterwards"
            )

    def _refuse_classes(self) -> None:
        """Refuse what only a model that was trained with classes knows."""
        if self.label is not None:
            raise InvalidRequestError(
                "params: class: expected none, for this model was trained without classes; got one"
            )
        if self.guidance != 1:
            raise InvalidRequestError(
                "params: guidance: expected 1, for this model was trained without classes; got "
                "another"
            )

    def _check_work(self, generation: GenerationSpec) -> None:
        """Keep one call within what a worker does before its time is over."""
        assert self.steps is not None
        assert self.size is not None
        calls = self.steps if self.guidance in (0.0, 1.0) else 2 * self.steps
        work = math.ceil(self.count * calls * (self.size / generation.sizes[0]) ** 2)
        if work > generation.max_work:
            raise InvalidRequestError(
                f"params: expected at most {generation.max_work} calls of the network (n * steps, "
                f"more with guidance or a larger size), got {work}; ask for fewer images or steps "
                "in one call"
            )


class SampleImage(Value, frozen=True, kw_only=True, omit_defaults=True):
    """A synthetic image and how it came about; it shows nobody.

    Attributes:
        png: The image as a file that says SYNTHETIC.
        seed: Draws it again, with the same archive and the same settings.
        label: The class it was drawn for; "" for a model without classes.
        steps: Calls of the network.
        sampler: The way from noise to the image.
        guidance: Weight of the class; 1 is the class alone.
        size: Height and width in pixels.
        synthetic: True.
        dicom: The same as DICOM, where it was asked for.
    """

    spoken: ClassVar[str] = "a synthetic image"

    png: bytes
    seed: int
    label: str = msgspec.field(name="class")
    steps: int
    sampler: str
    guidance: float
    size: int
    synthetic: bool
    dicom: bytes | None = None


class GenerationResult(Result, frozen=True, kw_only=True):
    """Synthetic images, as the end of a stream or as the whole answer.

    Attributes:
        images: In the order of their places.
        withheld: How many were drawn besides, came too near to a training image and were replaced.
        npz: All images as NumPy arrays, where it was asked for.
        nifti: All images as the slices of a stack (.nii.gz), where it was asked for.
    """

    spoken: ClassVar[str] = "synthetic images"

    images: tuple[SampleImage, ...]
    withheld: int
    npz: bytes | None = None
    nifti: bytes | None = None

    def table(self) -> Iterator[Sequence[str]]:
        """Yield a line for each image, in the order of the pictures."""
        yield "synthetic image", "seed", "steps"
        for each in self.images:
            yield each.label, str(each.seed), str(each.steps)

    def pictures(self) -> Iterator[bytes]:
        """Yield every image."""
        return (each.png for each in self.images)


class SampleProgress(Value, frozen=True, tag_field="event", tag="progress", omit_defaults=True):
    """How far one image is.

    Attributes:
        image: Its place among those asked for, from 0.
        step: Steps that are done; falls back to the first where an image was withheld because it
            came too near to a training image, and another one takes its place.
        steps: All steps.
        preview_png: What the network now takes the finished image for, where there is one to show.
    """

    spoken: ClassVar[str] = "the progress of an image"

    image: int
    step: int
    steps: int = msgspec.field(name="of")
    preview_png: bytes | None = None


def read_part(part: bytes) -> SampleProgress | GenerationResult:
    """Read one part of a streamed answer.

    Raises:
        MedserveError: the error that the part holds.
        ServerFailedError: the part is something else.
    """
    content = read_answer(part, dict[str, Any])
    if content.get("event") == "progress":
        return SampleProgress.from_json(content)
    return GenerationResult.decode(part)
