"""Masks that a person corrected: taken back against a job, handed out as pairs for training.

A mask comes as NIfTI on the grid of the one that the model gave. Pairs lie in `imagesTr` and
`labelsTr` under a part of their input's digest, with a `dataset.json` that nnU-Net and
`training.volumes` read; no file name of a visitor is in them.
"""

from __future__ import annotations

import asyncio
import csv
import hashlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from medserve.errors import InvalidImageError, InvalidRequestError
from medserve.gateway.faces.page.context import TASKS, page_context, small_body
from medserve.gateway.faces.page.exports import time_said, zipped
from medserve.gateway.faces.page.jobs import Job, Kind, whole_file
from medserve.results.sorted_folders import CORRECTIONS, csv_cell
from medserve.spec import InputKind, Task
from medserve.tasks.volumes import VolumeOptions

if TYPE_CHECKING:
    from medserve.imaging.volume import Volume

__all__ = ["CORRECTED", "routes"]

CORRECTED = "corrected.nii.gz"
_MASK = "mask.nii.gz"
_TOP = "medserve-pairs"
_TOLERANCE_MM = 0.01  # other programs write the affine in single precision
_NAME_DIGITS = 16  # of a digest


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
    """Take a corrected mask (NIfTI) for a segmented volume, and say how much it changes."""
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
            kinds = (await context.find(task_request, *TASKS[job.kind])).input_kinds
            async with context.slots.decoding:
                changed = await asyncio.to_thread(_keep, job, body, kinds)
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
    """Every volume of this visitor that has a corrected mask, with it, as a data set."""
    context = page_context(request)
    visitor = context.visitor(request)
    found: dict[str, Job] = {}
    for job in context.jobs.owned(visitor.owner):
        if correction := job.answers.get("correction"):
            found.setdefault(correction["name"], job)  # of one input the newest
    if not found:
        raise InvalidRequestError("expected corrected masks, there are none; send one first")
    headers = {"content-disposition": f'attachment; filename="{_TOP}.zip"'}
    content = zipped(_members(found))
    return StreamingResponse(content, media_type="application/zip", headers=headers)


def _keep(job: Job, content: bytes, kinds: Sequence[InputKind]) -> int:
    """Store a mask that fits the job's, and its volume; how many voxels differ from the model's."""
    import numpy as np

    from medserve.imaging.codecs import nifti, volume_file  # nibabel takes a while to import

    path = job.folder / _MASK
    if job.answers.get("task") != Task.VOLUMES or not path.exists():
        raise InvalidRequestError(
            "Only the mask of a segmented volume can be corrected; segment a volume first."
        )
    given, own = nifti.decode(content), nifti.decode(path.read_bytes())
    _check_grid(given, own)
    labels = job.answers["labels"]
    ids = np.unique(given.array)
    if not np.isin(ids, np.arange(len(labels))).all():
        raise InvalidImageError(
            f"The voxels of a mask are 0 to {len(labels) - 1} ({', '.join(labels)}); this one has "
            f"{', '.join(f'{each:g}' for each in ids[:8])}. Save label ids, not intensities."
        )
    asked = volume_file.ReadOptions.asked(VolumeOptions.from_params(job.options))
    for place, source in enumerate(job.sources.values()):
        read = (*kinds, InputKind.NIFTI)  # which the viewer may have been given as it came
        _write(job, _image(place), volume_file.decode(source.read_bytes(), read, options=asked))
    mask = given.array.astype(np.uint8)
    _write(job, CORRECTED, nifti.NiftiVolume(mask, own.geometry, own.space))
    return int(np.count_nonzero(mask != own.array))


def _check_grid(given: Volume, own: Volume) -> None:
    """Refuse a mask on another grid than the volume's.

    Raises:
        InvalidImageError: another shape, or voxels that lie elsewhere.
    """
    import numpy as np

    if given.geometry.shape != own.geometry.shape:
        raise InvalidImageError(
            f"This mask has the shape {given.geometry.shape}, its volume "
            f"{own.geometry.shape}. Correct the mask that was downloaded, and save it on its grid."
        )
    if not given.geometry.matches(own.geometry, _TOLERANCE_MM):
        apart = given.geometry.corners_mm() - own.geometry.corners_mm()
        raise InvalidImageError(
            "This mask has the shape of its volume and lies elsewhere: corners are up to "
            f"{np.linalg.norm(apart, axis=1).max():.2f} mm apart. Save it with the affine of the "
            "mask that was downloaded."
        )


def _digest(job: Job) -> str:
    digests = [item.sha256 or "" for item in job.files]
    if len(digests) == 1:
        return digests[0]
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def _write(job: Job, name: str, volume: Volume) -> None:
    from medserve.imaging.codecs import nifti

    with whole_file(job, name) as file:
        file.write(nifti.encode(volume))


def _image(place: int) -> str:
    """Return the name of the volume of a channel, once a mask of it was corrected."""
    return f"corrected-image-{place:04d}.nii.gz"


def _members(jobs: Mapping[str, Job]) -> Iterator[tuple[str, bytes]]:
    """Yield name and content of each file of the data set, one volume in memory at a time."""
    for name, job in jobs.items():
        for place in range(len(job.sources)):
            content = (job.folder / _image(place)).read_bytes()
            yield f"{_TOP}/imagesTr/{name}_{place:04d}.nii.gz", content
        yield f"{_TOP}/labelsTr/{name}.nii.gz", (job.folder / CORRECTED).read_bytes()
    rows = [job.answers["correction"] for job in jobs.values()]
    yield f"{_TOP}/{CORRECTIONS}", _table(rows)
    first = next(iter(jobs.values()))
    channels = [key.partition(".")[2] or "image" for key in first.sources]
    described = {
        "channel_names": {str(place): name for place, name in enumerate(channels)},
        "labels": {label: place for place, label in enumerate(first.answers["labels"])},
        "numTraining": len(jobs),
        "file_ending": ".nii.gz",
    }
    yield f"{_TOP}/dataset.json", json.dumps(described, indent=1).encode()


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
