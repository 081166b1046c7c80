"""Segmenting what a visitor dropped, and the files that come of it.

One file goes to the model as it is; several are the slices of one DICOM series and travel as a
zip, which is made here and never unpacked here. The model's answer is one JSON object; its parts
are kept in the job's folder and given out as files.
"""

from __future__ import annotations

import asyncio
import zipfile
from pathlib import Path
from typing import Any

from medserve.errors import InvalidRequestError
from medserve.gateway.core.gateway import Gateway
from medserve.gateway.core.masks import member_bytes, read_object
from medserve.gateway.core.requests import TaskRequest
from medserve.gateway.faces.page.jobs import Job
from medserve.imaging.codecs import dicom_series, sniff
from medserve.results.files.overlay import COLOURS
from medserve.spec import InputKind, ModelSpec

__all__ = ["dicom_seg", "part", "segment", "source", "volume"]

_MASK, _OVERLAY, _ENTROPY = "mask.nii.gz", "overlay.png", "entropy.nii.gz"
_SEG, _VOLUME, _SOURCE = "mask.dcm", "volume.nii.gz", "source"
_PARTS = {"mask_nifti": _MASK, "overlay_png": _OVERLAY, "entropy_nifti": _ENTROPY}


async def segment(gateway: Gateway, job: Job, order: TaskRequest) -> dict[str, Any]:
    """Ask the model; what the page shows of its answer.

    Raises:
        MedserveError: what the model or the gateway says against it.
    """
    data = await asyncio.to_thread(source(job).read_bytes)
    answer = await gateway.predict(order.call({"data": data}))
    job.answers = await asyncio.to_thread(_kept, job, answer)
    job.answers["dicom"] = dicom_series.recognises(data)
    # Frames other than those of a NIfTI stack are shown as the picture that the model drew.
    is_stack = sniff.kind(data).input_kind is InputKind.NIFTI
    job.answers["flat"] = "frames" in job.answers and not is_stack
    return job.answers


async def dicom_seg(gateway: Gateway, job: Job, order: TaskRequest) -> Path:
    """The mask as DICOM Segmentation, asked for when it is wanted and kept."""
    path = job.folder / _SEG
    if not path.exists():
        data = await asyncio.to_thread(source(job).read_bytes)
        path.write_bytes(await gateway.predict(order.call({"data": data})))
    return path


def source(job: Job) -> Path:
    """The one file that the model gets; several files become a zip."""
    items = [job.items[number] for number in sorted(job.items)]
    if not items:
        raise InvalidRequestError("expected an uploaded file, there is none; send it again")
    if len(items) == 1:
        return job.path(items[0])
    path = job.folder / _SOURCE
    if not path.exists():
        part = path.with_suffix(".part")
        with zipfile.ZipFile(part, "w", zipfile.ZIP_STORED) as archive:
            for place, item in enumerate(items):
                archive.write(job.path(item), f"{place:06d}.dcm")
        part.rename(path)
    return path


def volume(job: Job, spec: ModelSpec) -> Path:
    """The source as a NIfTI file that the viewer reads, on the same grid as the mask.

    A NIfTI is given back as it came. Anything else is decoded by the codec of the models, with
    its guards, and only after the model has taken the same bytes.
    """
    from medserve.imaging.codecs import nifti, volume_file  # nibabel takes a while to import

    given = source(job)
    path = job.folder / _VOLUME
    if not path.exists():
        payload = given.read_bytes()
        if nifti.recognises(payload):
            return given
        if not (job.folder / _MASK).exists():
            raise InvalidRequestError("expected a segmented volume, got one that is not; run it")
        found = volume_file.decode(payload, spec.input.kinds)
        path.write_bytes(nifti.encode(found))
    return path


def part(job: Job, name: str) -> Path:
    """A file of the answer; InvalidRequestError where it has no such part."""
    path = job.folder / name
    if not path.exists():
        raise InvalidRequestError("the answer has no such part")
    return path


def _kept(job: Job, answer: bytes) -> dict[str, Any]:
    content = read_object(answer)
    shown: dict[str, Any] = {"parts": []}
    for key, value in content.items():
        if key not in _PARTS:
            shown[key] = value
        elif (file := member_bytes(content, key)) is not None:
            (job.folder / _PARTS[key]).write_bytes(file)
            shown["parts"].append(_PARTS[key])
    (job.folder / _SEG).unlink(missing_ok=True)  # of an earlier run
    names = shown.get("labels") or []
    shown["colours"] = ["#000000", *(_hex(place) for place in range(len(names) - 1))]
    return shown


def _hex(place: int) -> str:
    return "#{:02x}{:02x}{:02x}".format(*COLOURS[place % len(COLOURS)])
