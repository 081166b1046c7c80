"""Ask an archive in this process, without a server and without the code that it carries."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from medserve.archive.read import verify_archive
from medserve.archive.unpack import unpack_archive
from medserve.cores import available_cores
from medserve.errors import ConfigError
from medserve.imaging import Image
from medserve.imaging.codecs import frame_file, sniff
from medserve.imaging.codecs.channels import decode_channels
from medserve.imaging.codecs.nifti import NiftiVolume
from medserve.imaging.codecs.volume_file import ReadOptions
from medserve.imaging.frames import FrameLimits
from medserve.imaging.volume import Volume
from medserve.inference import volume_memory
from medserve.inference.engines import Engine, Outputs, load_engine
from medserve.inference.engines.engine import ONNX_FILE, TORCHSCRIPT_FILE
from medserve.inference.fit import fit_image
from medserve.inference.frame_pipeline import FoundFrame, FramePipeline
from medserve.inference.scores import as_logits, classified
from medserve.inference.volume_pipeline import VolumePipeline
from medserve.results.segmentation import Segmentation
from medserve.spec import ModelSpec, Task
from medserve.tasks.classification import Classification
from medserve.tasks.regression import Regression, estimates

__all__ = ["Tried", "ask_archive", "classify_files", "estimate_files", "segment_frames"]


@dataclass(frozen=True, eq=False)
class Tried:
    """One case and its answer.

    Attributes:
        volume: The image, the first one of several channels.
        segmentation: Its mask.
    """

    volume: Volume = field(repr=False)
    segmentation: Segmentation

    def mask_nifti(self) -> bytes:
        """Return the mask as .nii.gz, with the header of the file where it has one."""
        space = self.volume.space if isinstance(self.volume, NiftiVolume) else None
        return self.segmentation.to_nifti(space)


def ask_archive(archive: Path, files: Sequence[Path]) -> Tried:
    """Answer one case.

    Args:
        archive: A `.mar` file of a model of volumes; it is verified first.
        files: A volume, or a file for each channel of the network in their order.

    Raises:
        ArchiveError: the archive is damaged or altered, or is not signed as MEDSERVE_TRUST asks.
        ConfigError: it does not segment volumes, or a file cannot be read.
        InvalidImageError: the files are not what the model reads.
    """
    with _opened(archive, Task.VOLUMES, files) as (spec, engine, payloads):
        assert spec.volume is not None
        pipeline = VolumePipeline(spec)
        volumes = decode_channels(
            payloads, list(spec.volume.channels), spec.input.kinds, volume_memory.limits(spec),
            ReadOptions(modalities=spec.volume.modalities),
        )  # fmt: skip
        found = pipeline.segment(
            pipeline.prepare(volumes), lambda windows: engine.run(windows)["logits"]
        )
    return Tried(volumes[0], found.segmentation)


def classify_files(archive: Path, files: Sequence[Path]) -> list[Classification]:
    """Classify pictures; archive, files and errors as for `ask_archive`."""
    spec, outputs = _of_pictures(archive, Task.CLASSIFICATION, files)
    outputs = {**outputs, "logits": as_logits(outputs["logits"], spec.classifier)}
    return [
        classified({name: array[place] for name, array in outputs.items()}, spec)
        for place in range(len(files))
    ]


def estimate_files(archive: Path, files: Sequence[Path]) -> list[Regression]:
    """Tell the numbers of pictures; archive, files and errors as for `ask_archive`."""
    spec, outputs = _of_pictures(archive, Task.REGRESSION, files)
    return [estimates(row.tolist(), spec.values) for row in outputs["logits"]]


def _of_pictures(archive: Path, task: Task, files: Sequence[Path]) -> tuple[ModelSpec, Outputs]:
    with _opened(archive, task, files) as (spec, engine, payloads):
        images = [sniff.decode(each, spec.input) for each in payloads]
        return spec, engine.run(np.stack([fit_image(each, spec.input) for each in images]))


def segment_frames(
    archive: Path, files: Sequence[Path]
) -> tuple[tuple[str, ...], list[tuple[Image, FoundFrame]]]:
    """Segment single frames; archive, files and errors as for `ask_archive`.

    Returns:
        The model's labels, and each frame with what was found in it.
    """
    with _opened(archive, Task.FRAMES, files) as (spec, engine, payloads):
        pipeline = FramePipeline(spec)
        limits = FrameLimits(spec.input, 1, pipeline.frame.modalities)
        answers = []
        for payload in payloads:
            stack = frame_file.decode(payload, limits)
            image = stack.read(0)
            settings = replace(pipeline.defaults, aspect=stack.grid.aspect)
            [found] = pipeline.segment([image], lambda row: engine.run(row)["logits"], settings)
            answers.append((image, found))
    return spec.labels, answers


@contextmanager
def _opened(
    archive: Path, task: Task, files: Sequence[Path]
) -> Iterator[tuple[ModelSpec, Engine, list[bytes]]]:
    """Verify an archive, load its network and read the files."""
    info = verify_archive(archive)
    spec = info.spec
    if spec.task is not task:
        raise ConfigError(f"expected a model for {task}, got {spec.name} ({spec.task})")
    try:
        payloads = [path.read_bytes() for path in files]
    except OSError as error:
        raise ConfigError(f"expected a readable file, got {error.filename}") from error
    with tempfile.TemporaryDirectory(prefix="medserve-try-") as folder:
        unpack_archive(info, Path(folder), (ONNX_FILE, TORCHSCRIPT_FILE))
        yield spec, load_engine(spec.engine.name, Path(folder), threads=available_cores()), payloads
