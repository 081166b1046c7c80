"""Segmentation: a volume or frames in, masks and measurements out.

One file goes to the model as it is; several are the slices of one DICOM series and travel as a
zip, which is made here and never unpacked here. Of a model that sees several images of one case
they are its channels, each under its place among them. The model's answer is one JSON object; its
parts are kept in the job's folder and given out as files.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import zipfile
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from medserve.errors import InvalidRequestError, PayloadTooLargeError
from medserve.gateway.core.admission import Reservation
from medserve.gateway.core.gateway import Gateway, ModelInfo
from medserve.gateway.core.requests import TaskRequest
from medserve.gateway.faces.page.context import TASKS, options_of_job, page_context, read_json
from medserve.gateway.faces.page.doubts import told
from medserve.gateway.faces.page.exports import plain_name
from medserve.gateway.faces.page.jobs import Item, Job, Kind, PageLimits, drop_file, whole_file
from medserve.gateway.faces.page.masks import CORRECTED, MASK, frames_of, volume_of
from medserve.gateway.faces.page.uploads import Allowance, receive
from medserve.imaging.codecs import dicom_series, sniff
from medserve.results.files.overlay import COLOURS
from medserve.results.frame_segmentation import masks_of
from medserve.spec import InputKind, Task
from medserve.tasks.frames import FrameResult, View
from medserve.tasks.volumes import VolumeResult

__all__ = ["routes"]

_NIFTI, _PNG, _DICOM = "application/gzip", "image/png", "application/dicom"
_SEG = "mask.dcm"
_PARTS = {  # member of an answer: name and media type of its file
    "mask_png": ("mask.png", _PNG),
    "mask_nifti": (MASK, _NIFTI),
    "overlay_png": ("overlay.png", _PNG),
    "probabilities_nifti": ("probabilities.nii.gz", _NIFTI),
    "entropy_nifti": ("entropy.nii.gz", _NIFTI),
    "dicom_seg": (_SEG, _DICOM),
}


async def add(request: Request) -> Response:
    """Store a volume: one file, the slices of a DICOM series, or the channels by their places."""
    context = page_context(request)
    job, _ = context.job(request, Kind.SEGMENT)
    async with context.slots.upload(job):
        allowance = Allowance(context.limits.series_files, context.limits.upload_bytes)
        items = await receive(request, job, context.jobs, context.limits, allowance)
    return JSONResponse({"files": len(items)})


async def run(request: Request) -> Response:
    """Segment what was stored."""
    context = page_context(request)
    job, visitor = context.job(request, Kind.SEGMENT)
    named = context.task_request(job.model, job.version, visitor.caller)
    model = await context.find(named, *TASKS[job.kind])
    params = options_of_job(model, {"overlay": True} | await read_json(request))
    context.jobs.reserve(job, 0)  # what earlier runs made may have passed a bound
    async with context.slots.call(job):
        task_request = context.task_request(job.model, job.version, visitor.caller, params)
        sources = await _sources(job, model, context.limits)
        answer = await _segment(context.gateway, job, sources, task_request, model.task)
    return JSONResponse(answer)


async def volume(request: Request) -> Response:
    """The source as NIfTI, for the viewer."""
    context = page_context(request)
    job, visitor = context.job(request, Kind.SEGMENT)
    task_request = context.task_request(job.model, job.version, visitor.caller)
    model = await context.find(task_request, *TASKS[job.kind])
    async with context.slots.call(job):
        sources = job.sources or await _sources(job, model, context.limits)
        first = next(iter(sources.values()))
        async with _memory(context.gateway, {"data": first}, task_request):
            path = await asyncio.to_thread(_volume, job, first, model)
    return FileResponse(path, media_type="application/octet-stream")


async def layers(request: Request) -> Response:
    """The source as a picture and the label ids of its pixels, as two PNGs in base64."""
    context = page_context(request)
    job, visitor = context.job(request, Kind.SEGMENT)
    task_request = context.task_request(job.model, job.version, visitor.caller)
    model = await context.find(task_request, *TASKS[job.kind])
    async with context.slots.call(job):
        if not (job.folder / MASK).exists():
            raise InvalidRequestError("expected a segmented file, got one that is not; run it")
        async with _memory(context.gateway, job.sources, task_request):
            found = await asyncio.to_thread(_layers, job, model)
    named = zip(("picture_png", "labels_png"), found, strict=True)
    return JSONResponse({name: base64.b64encode(each).decode() for name, each in named})


async def part(request: Request) -> Response:
    """A file of the answer."""
    context = page_context(request)
    job, visitor = context.job(request, Kind.SEGMENT)
    name = request.path_params["part"]
    if name == "mask.dcm":
        alone = {"output": "mask", "format": "dicom-seg", "overlay": None, "uncertainty": None}
        params = {key: each for key, each in (job.options | alone).items() if each is not None}
        async with context.slots.call(job):
            task_request = context.task_request(job.model, job.version, visitor.caller, params)
            model = await context.find(task_request, *TASKS[job.kind])
            sources = job.sources or await _sources(job, model, context.limits)
            path = await _dicom_seg(context.gateway, job, sources, task_request)
        return FileResponse(path, media_type=_DICOM, filename=_saved(job, name))
    media_types = dict(_PARTS.values()) | {CORRECTED: _NIFTI}
    if name not in media_types:
        raise InvalidRequestError(f"expected one of {', '.join(media_types)}")
    saved = _saved(job, name) if "download" in request.query_params else None
    return FileResponse(_part(job, name), media_type=media_types[name], filename=saved)


async def _segment(
    gateway: Gateway, job: Job, sources: dict[str, Path], task_request: TaskRequest, task: Task
) -> dict[str, Any]:
    """Ask the model; what the page shows of its answer.

    Raises:
        MedserveError: what the model or the gateway says against it.
    """
    async with _memory(gateway, sources, task_request):
        files = await asyncio.to_thread(_read, sources)
        answer = await gateway.predict(task_request.call(files))
        data = next(iter(files.values()))  # on whose grid the answer lies
        is_dicom = dicom_series.recognises(data)
        is_stack = sniff.kind(data).input_kind is InputKind.NIFTI
    shown = await asyncio.to_thread(_kept, job, answer, task)
    # Frames other than those of a NIfTI stack are shown as the picture that the model drew.
    flat = "frames" in shown and not is_stack
    job.answers = shown | {"dicom": is_dicom, "flat": flat}
    job.sources, job.options = sources, dict(task_request.params)
    return job.answers


async def _dicom_seg(
    gateway: Gateway, job: Job, sources: Mapping[str, Path], task_request: TaskRequest
) -> Path:
    """The mask as DICOM Segmentation; asked for when it is wanted, and kept for the next time."""
    answered = job.folder / _SEG
    if answered.exists():
        return answered
    names = [path.name for path in sources.values()]
    made_from = json.dumps([names, task_request.params], sort_keys=True).encode()
    path = job.folder / f"mask-{hashlib.sha256(made_from).hexdigest()}.dcm"
    if not path.exists():
        async with _memory(gateway, sources, task_request):
            files = await asyncio.to_thread(_read, sources)
            answer = await gateway.predict(task_request.call(files))
        await asyncio.to_thread(_write, job, path.name, answer)
    return path


def _memory(
    gateway: Gateway, sources: Mapping[str, Path], task_request: TaskRequest
) -> AbstractAsyncContextManager[Reservation]:
    """Return the reservation of the memory that stored files take once they are read."""
    size = sum(path.stat().st_size for path in sources.values())
    return gateway.budget.reserve(size, task_request.caller.owner, task_request.deadline)


def _read(sources: Mapping[str, Path]) -> dict[str, bytes]:
    return {key: path.read_bytes() for key, path in sources.items()}


def _saved(job: Job, name: str) -> str:
    """Return the name of a download: it starts with the case, so that two never look alike."""
    case = plain_name(job.case)
    suffixes = (".gz", ".nii", ".zip", ".npy", ".dcm", ".dicom", ".nrrd", ".mha", ".mgz", ".mgh")
    for suffix in (*suffixes, ".png", ".jpg", ".jpeg"):
        case = case.removesuffix(suffix)
    return f"{case}-{name}" if case else name


async def _sources(job: Job, model: ModelInfo, limits: PageLimits) -> dict[str, Path]:
    """The files that the model gets, by their keys in a call and the first channel first.

    Several files become a zip, unless the model sees several images.

    A job only ever gets more files, so their number tells which of them a zip holds.
    """
    items = [job.items[number] for number in sorted(job.items)]
    if not items:
        raise InvalidRequestError("expected an uploaded file, there is none; send it again")
    if sum(item.size_bytes for item in items) > limits.upload_bytes:
        raise PayloadTooLargeError(
            f"expected at most {limits.upload_bytes} bytes in one run, got more; begin a job with "
            "fewer files"
        )
    if len(items) == 1:
        return {"data": job.path(items[0])}
    if model.channels:
        if items[-1].number >= len(model.channels):
            raise InvalidRequestError(
                f"expected a file for each of {', '.join(model.channels)}, got one more; leave it "
                "out"
            )
        return {f"data.{model.channels[each.number]}": job.path(each) for each in items}
    path = job.folder / f"source-{len(items)}"
    if not path.exists():
        await asyncio.to_thread(_zip, job, items, path.name)
    return {"data": path}


def _zip(job: Job, slices: Sequence[Item], name: str) -> None:
    with whole_file(job, name) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for place, each in enumerate(slices):
            archive.write(job.path(each), f"{place:06d}.dcm")


def _volume(job: Job, given: Path, model: ModelInfo) -> Path:
    """The source as a NIfTI file that the viewer reads, on the same grid as the mask.

    A NIfTI is given back as it came. Anything else is decoded by the codec of the models, with
    its guards, and only after the model has taken the same bytes.
    """
    from medserve.imaging.codecs import nifti  # nibabel takes a while to import

    chosen = hashlib.sha256(str(job.options.get("select", "")).encode()).hexdigest()
    path = job.folder / f"volume-{given.name}-{chosen}.nii.gz"
    if not path.exists():
        if nifti.recognises(given.read_bytes()):
            return given
        if not (job.folder / MASK).exists():
            raise InvalidRequestError("expected a segmented volume, got one that is not; run it")
        _write(job, path.name, nifti.encode(volume_of(job, given, model)))
    return path


def _layers(job: Job, model: ModelInfo) -> tuple[bytes, bytes]:
    """A frame pixel by pixel, or a sheet of slices or frames; and its label ids."""
    from medserve.imaging.codecs import nifti
    from medserve.results.files import frame_overlay, overlay

    corrected = job.folder / CORRECTED
    mask = nifti.decode((corrected if corrected.exists() else job.folder / MASK).read_bytes())
    if model.task is Task.FRAMES:
        masks = masks_of(mask, View(job.answers["view"]), len(model.labels))
        in_colour = model.spec.input.channels > 1
        return frame_overlay.layers(frames_of(job, model), masks, in_colour=in_colour)
    first = next(iter(job.sources.values()))
    return overlay.layers(volume_of(job, first, model), mask.array.astype("uint8"))


def _write(job: Job, name: str, content: bytes) -> None:
    with whole_file(job, name) as file:
        file.write(content)


def _part(job: Job, name: str) -> Path:
    """A file of the answer; InvalidRequestError where it has no such part."""
    path = job.folder / name
    if not path.exists():
        raise InvalidRequestError("the answer has no such part")
    return path


def _kept(job: Job, answer: bytes, task: Task) -> dict[str, Any]:
    """Keep the files of an answer, and return what the page shows of it."""
    for name in (CORRECTED, *(name for name, _ in _PARTS.values())):  # of an earlier run
        drop_file(job, name)
    kind = FrameResult if task is Task.FRAMES else VolumeResult
    found: FrameResult | VolumeResult = kind.decode(answer)
    parts = []
    for member, (name, _) in _PARTS.items():
        if (content := getattr(found, member, None)) is not None:
            _write(job, name, content)
            parts.append(name)
    colours = ["#000000", *(_hex(place) for place in range(len(found.labels) - 1))]
    shown = found.without_files() | found.provenance.to_json()
    doubts = [told(each) for each in found.doubts]
    return shown | {"task": task, "parts": parts, "colours": colours, "doubts": doubts}


def _hex(place: int) -> str:
    return "#{:02x}{:02x}{:02x}".format(*COLOURS[place % len(COLOURS)])


routes = [
    Route("/jobs/{job}/volume", add, methods=["POST"]),
    Route("/jobs/{job}/segmentation", run, methods=["POST"]),
    Route("/jobs/{job}/volume", volume),
    Route("/jobs/{job}/layers", layers),
    Route("/jobs/{job}/{part}", part),
]
