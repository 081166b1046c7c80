"""What the client asks of a model that makes images, and what it gets."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, Literal

from medserve.client._requests import Job, Target
from medserve.results.sample import Sample
from medserve.tasks import generation
from medserve.tasks.result import Provenance

__all__ = [
    "SampleOptions",
    "SampleProgress",
    "SampleSet",
    "SampledImage",
    "read_part",
    "read_set",
    "sample_job",
]


@dataclass(frozen=True)
class SampleOptions:
    """What to draw; None leaves it to the model.

    Attributes:
        count: Images.
        label: Name of a class; by default each image draws one from its seed.
        seed: Of the first image, the next ones count up; by default an arbitrary one.
        steps: Calls of the network an image.
        sampler: "ddpm", "ddim" or "dpm-solver++".
        size: Side of the images in pixels.
        guidance: Weight of the class; above 1 there is more of it and less variety.
        file: What to send beside the PNGs.
    """

    count: int = 1
    label: str | None = None
    seed: int | None = None
    steps: int | None = None
    sampler: str | None = None
    size: int | None = None
    guidance: float | None = None
    file: Literal["npz", "nifti", "dicom"] | None = None

    def to_params(self) -> dict[str, Any]:
        """The input `params` of a call."""
        wishes = {
            "class": self.label,
            "seed": self.seed,
            "steps": self.steps,
            "sampler": self.sampler,
            "size": self.size,
            "guidance": self.guidance,
            "format": self.file,
        }
        return {"n": self.count} | {key: each for key, each in wishes.items() if each is not None}


@dataclass(frozen=True)
class SampleProgress:
    """How far one image is.

    Attributes:
        image: Its place among those asked for, from 0.
        step: Steps that are done; falls back to the first where an image was withheld because it
            came too near to a training image, and another one takes its place.
        steps: All steps.
        preview_png: What the network now takes the finished image for, where there is one to show.
    """

    image: int
    step: int
    steps: int
    preview_png: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True, eq=False)
class SampledImage:
    """One finished image and its files.

    Attributes:
        sample: The pixels, and how they came about.
        png: The image as a file that says SYNTHETIC.
        dicom: The same as DICOM, where it was asked for.
    """

    sample: Sample
    png: bytes = field(repr=False)
    dicom: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True, eq=False)
class SampleSet:
    """All images of one call.

    Attributes:
        images: In the order of their places.
        withheld: How many were drawn besides, came too near to a training image and were replaced.
        provenance: Which archive drew them.
        npz: All images as NumPy arrays, where it was asked for.
        nifti: All images as the slices of a stack (.nii.gz), where it was asked for.
    """

    images: tuple[SampledImage, ...]
    withheld: int
    provenance: Provenance
    npz: bytes | None = field(default=None, repr=False)
    nifti: bytes | None = field(default=None, repr=False)


def sample_job(target: Target, options: SampleOptions | None, *, stream: bool) -> Job:
    """The call that asks for these images."""
    params = json.dumps((options or SampleOptions()).to_params()).encode()
    return Job(target, {"params": params, "stream": b"1" if stream else b"0"})


def read_part(part: bytes) -> SampleProgress | SampleSet:
    """One part of a streamed answer; raises where it is an error in JSON or something else."""
    read = generation.read_part(part)
    if isinstance(read, generation.SampleProgress):
        return SampleProgress(read.image, read.step, read.steps, read.preview_png)
    return _set(read)


def read_set(prediction: bytes) -> SampleSet:
    """A whole answer; raises where it is an error in JSON or something else."""
    return _set(generation.GenerationResult.decode(prediction))


def _set(result: generation.GenerationResult) -> SampleSet:
    return SampleSet(
        images=tuple(
            SampledImage(Sample.from_image(each, result.provenance), each.png, each.dicom)
            for each in result.images
        ),
        withheld=result.withheld,
        provenance=result.provenance,
        npz=result.npz,
        nifti=result.nifti,
    )
