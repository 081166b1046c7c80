"""Masks that a person corrected: taken back against a job, handed out as pairs for training.

A mask comes as NIfTI on the grid of the one that the model gave, that of a single frame also as a
PNG. Pairs lie under a part of their input's digest: of volumes in `imagesTr` and `labelsTr`, with a
`dataset.json` that nnU-Net and `training.volumes` read; of frames in `images` and `masks`, with a
`patients.csv` that `training.frames` reads. No file name of a visitor is in them.
"""

from __future__ import annotations

import asyncio
import csv
import hashlib
import io
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from medserve.errors import InvalidImageError, InvalidRequestError
from medserve.gateway.core.gateway import ModelInfo
from medserve.gateway.faces.page.context import TASKS, page_context, small_body
from medserve.gateway.faces.page.exports import time_said, zipped
from medserve.gateway.faces.page.jobs import Job, Kind, whole_file
from medserve.results.sorted_folders import CORRECTIONS, csv_cell
from medserve.spec import InputKind, InputSpec, Task
from medserve.tasks.frames import FrameOptions, View
from medserve.tasks.volumes import VolumeOptions

if TYPE_CHECKING:
    import numpy.typing as npt

    from medserve.imaging.frames import FrameStack
    from medserve.imaging.volume import Volume

__all__ = ["CORRECTED", "MASK", "frames_of", "routes", "volume_of"]

MASK, CORRECTED = "mask.nii.gz", "corrected.nii.gz"  # the model's, and a person's in its place
_TOP = "medserve-pairs"
_TOLERANCE_MM = 0.01  # other programs write the affine in single precision
_NAME_DIGITS = 16  # of a digest
_PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class _Provenance:
    """Where a corrected mask comes from; one row of `corrections.csv`."""

    name: str
    sha256: str  # of the input; of several files over their digests
    voxels_changed: int
    corrected_by: str
    corrected_at: str
    model: str
    version: str
    archive_digest: str


async def correct(request: Request) -> Response:
    """Take a corrected mask of a volume or of frames, and say how much it changes."""
    context = page_context(request)
    job, visitor = context.job(request, Kind.SEGMENT)
    most = context.limits.upload_bytes
    async with context.slots.upload(job):
        task_request = context.task_request(job.model, job.version, visitor.caller)
        size = min(int(request.headers.get("content-length", most)), most)
        async with context.gateway.budget.reserve(
            size, task_request.caller.owner, task_request.deadline
        ):
            body = await small_body(request, most)
            model = await context.find(task_request, *TASKS[job.kind])
            async with context.slots.decoding:
                changed = await asyncio.to_thread(_keep, job, body, model)
    answers = job.answers
    provenance = _Provenance(
        name=_digest(job)[:_NAME_DIGITS],
        sha256=_digest(job),
        voxels_changed=changed,
        corrected_by=visitor.caller.name,
        corrected_at=time_said(),
        model=job.model,
        version=answers["version"],
        archive_digest=answers["archive_digest"],
    )
    job.answers = answers | {"correction": asdict(provenance)}
    return JSONResponse(job.answers["correction"])


async def pairs(request: Request) -> Response:
    """Every input of this visitor that has a corrected mask, with it: a data set for each model."""
    context = page_context(request)
    visitor = context.visitor(request)
    found: defaultdict[str, dict[str, Job]] = defaultdict(dict)
    for job in context.jobs.owned(visitor.owner):
        if correction := job.answers.get("correction"):
            found[job.model].setdefault(correction["name"], job)  # of one input the newest
    if not found:
        raise InvalidRequestError("expected corrected masks, there are none; send one first")
    headers = {"content-disposition": f'attachment; filename="{_TOP}.zip"'}
    content = zipped(_members(found))
    return StreamingResponse(content, media_type="application/zip", headers=headers)


def volume_of(job: Job, source: Path, model: ModelInfo) -> Volume:
    """Decode a source of a job as its model does."""
    from medserve.imaging.codecs import volume_file

    asked = volume_file.ReadOptions.asked(VolumeOptions.from_params(job.options))
    read = (*model.input_kinds, InputKind.NIFTI)  # which the viewer may have been given as it came
    return volume_file.decode(source.read_bytes(), read, options=asked)


def frames_of(job: Job, model: ModelInfo) -> FrameStack:
    """Decode the source of a job as its model does."""
    from medserve.imaging.codecs import frame_file
    from medserve.imaging.frames import FrameLimits, GivenSpacing

    spec = model.spec.frame
    assert spec is not None  # every model of this task has the section
    asked = FrameOptions.from_params(job.options)
    stated = GivenSpacing(asked.spacing_mm, asked.step_mm)
    [source] = job.sources.values()
    return frame_file.decode(
        source.read_bytes(),
        FrameLimits(model.spec.input, spec.max_frames, spec.modalities),
        frame_file.FrameReading(stated, asked.view),
    )


def _keep(job: Job, content: bytes, model: ModelInfo) -> int:
    """Store a mask that fits the job's, and its images; how many voxels differ from the model's."""
    import numpy as np

    from medserve.imaging.codecs import nifti  # nibabel takes a while to import

    path = job.folder / MASK
    if not path.exists():
        kind = "volume" if model.task is Task.VOLUMES else "frame"
        raise InvalidRequestError(
            f"Only the mask of a segmented {kind} can be corrected; segment a {kind} first."
        )
    own = nifti.decode(path.read_bytes())
    labels = job.answers["labels"]
    if content.startswith(_PNG) and model.task is Task.FRAMES:
        ids = _of_picture(content, own, View(job.answers["view"]), model.spec.input)
    else:
        given = nifti.decode(content)
        _check_grid(given, own)
        ids = given.array
    found = np.unique(ids)
    if not np.isin(found, np.arange(len(labels))).all():
        raise InvalidImageError(
            f"The values of a mask are 0 to {len(labels) - 1} ({', '.join(labels)}); this one has "
            f"{', '.join(f'{each:g}' for each in found[:8])}. Save label ids, not intensities."
        )
    mask = ids.astype(np.uint8)
    _keep_images(job, model)
    _write(job, CORRECTED, nifti.encode(nifti.NiftiVolume(mask, own.geometry, own.space)))
    return int(np.count_nonzero(mask != own.array))


def _of_picture(content: bytes, own: Volume, view: View, limits: InputSpec) -> npt.NDArray[Any]:
    """Return the label ids of a PNG, black and white or of ids, on the grid of the model's mask.

    Raises:
        InvalidImageError: no PNG that can be read, or one of other sides than its frame.
        InvalidRequestError: the model's mask has several frames.
    """
    import numpy as np

    from medserve.imaging.codecs import raster
    from medserve.imaging.codecs.nifti_frames import frame_order

    order = frame_order(own, view)
    rows, columns, count = order.apply(own.array).shape
    if count > 1:
        raise InvalidRequestError(
            f"A PNG is the mask of one frame, this file has {count}. Correct the NIfTI that was "
            "downloaded."
        )
    image = raster.decode(content, limits)
    if (image.height, image.width) != (rows, columns):
        raise InvalidImageError(
            f"This mask has {image.width} x {image.height} pixels, its frame {columns} x {rows}. "
            "Correct the mask that was downloaded, and save it at its size."
        )
    values = np.rint(255 * image.grey()).astype(np.uint8)
    ids = values // 255 if np.isin(values, (0, 255)).all() else values
    return order.undo(ids[..., np.newaxis])


def _keep_images(job: Job, model: ModelInfo) -> None:
    """Store what the masks of a job are of, as its pairs hold it."""
    from medserve.imaging.codecs import nifti
    from medserve.results.files.frame_overlay import picture_png

    if model.task is Task.FRAMES:
        stack = frames_of(job, model)
        for index in _measured(job):
            picture = picture_png(stack.read(index), in_colour=model.spec.input.channels > 1)
            _write(job, _image(index, ".png"), picture)
        return
    for place, source in enumerate(job.sources.values()):
        _write(job, _image(place), nifti.encode(volume_of(job, source, model)))


def _measured(job: Job) -> list[int]:
    """Return the indices of the frames that have a mask; one that cannot be read has none."""
    return [each["index"] for each in job.answers["frames"] if each["status"] == "ok"]


def _check_grid(given: Volume, own: Volume) -> None:
    """Refuse a mask on another grid than the model's.

    Raises:
        InvalidImageError: another shape, or voxels that lie elsewhere.
    """
    import numpy as np

    if given.geometry.shape != own.geometry.shape:
        raise InvalidImageError(
            f"This mask has the shape {given.geometry.shape}, the model's "
            f"{own.geometry.shape}. Correct the mask that was downloaded, and save it on its grid."
        )
    if not given.geometry.matches(own.geometry, _TOLERANCE_MM):
        apart = given.geometry.corners_mm() - own.geometry.corners_mm()
        raise InvalidImageError(
            "This mask has the shape of the model's and lies elsewhere: corners are up to "
            f"{np.linalg.norm(apart, axis=1).max():.2f} mm apart. Save it with the affine of the "
            "mask that was downloaded."
        )


def _digest(job: Job) -> str:
    digests = [item.sha256 or "" for item in job.files]
    if len(digests) == 1:
        return digests[0]
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def _write(job: Job, name: str, content: bytes) -> None:
    with whole_file(job, name) as file:
        file.write(content)


def _image(place: int, suffix: str = ".nii.gz") -> str:
    """Return the name of a channel's volume, or of a frame, once a mask of it was corrected."""
    return f"corrected-image-{place:04d}{suffix}"


def _members(found: Mapping[str, Mapping[str, Job]]) -> Iterator[tuple[str, bytes]]:
    """Yield name and content of each file of the data sets, one input in memory at a time."""
    for model, jobs in found.items():
        first = next(iter(jobs.values()))
        of_frames = first.answers["task"] == Task.FRAMES
        for name, content in (_frames if of_frames else _volumes)(jobs):
            yield f"{_TOP}/{model}/{name}", content
        table = _table([job.answers["correction"] for job in jobs.values()])
        yield f"{_TOP}/{model}/{CORRECTIONS}", table


def _volumes(jobs: Mapping[str, Job]) -> Iterator[tuple[str, bytes]]:
    for name, job in jobs.items():
        for place in range(len(job.sources)):
            content = (job.folder / _image(place)).read_bytes()
            yield f"imagesTr/{name}_{place:04d}.nii.gz", content
        yield f"labelsTr/{name}.nii.gz", (job.folder / CORRECTED).read_bytes()
    first = next(iter(jobs.values()))
    channels = [key.partition(".")[2] or "image" for key in first.sources]
    described = {
        "channel_names": {str(place): name for place, name in enumerate(channels)},
        "labels": {label: place for place, label in enumerate(first.answers["labels"])},
        "numTraining": len(jobs),
        "file_ending": ".nii.gz",
    }
    yield "dataset.json", json.dumps(described, indent=1).encode()


def _frames(jobs: Mapping[str, Job]) -> Iterator[tuple[str, bytes]]:
    """Yield the pairs of frames; all that came in one file count as one patient's."""
    from medserve.imaging.codecs import nifti
    from medserve.results.frame_segmentation import mask_png, masks_of

    patients = []
    for name, job in jobs.items():
        corrected = nifti.decode((job.folder / CORRECTED).read_bytes())
        labels = len(job.answers["labels"])
        masks = masks_of(corrected, View(job.answers["view"]), labels)
        for index in _measured(job):
            frame = f"{name}_{index:04d}"
            yield f"images/{frame}.png", (job.folder / _image(index, ".png")).read_bytes()
            yield f"masks/{frame}.png", mask_png(masks[index], labels)
            patients.append({"name": frame, "patient": name})
    if patients:
        yield "patients.csv", _table(patients)


def _table(rows: Sequence[Mapping[str, Any]]) -> bytes:
    stream = io.StringIO(newline="")
    writer = csv.DictWriter(stream, list(rows[0]))
    writer.writeheader()
    writer.writerows({key: csv_cell(value) for key, value in row.items()} for row in rows)
    return stream.getvalue().encode()


routes = [
    Route("/jobs/{job}/corrected-mask", correct, methods=["POST"]),
    Route("/training-pairs.zip", pairs),
]
