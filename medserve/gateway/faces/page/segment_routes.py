"""Segmentation: a volume in, its mask and measures out."""

from __future__ import annotations

import asyncio

from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from medserve.errors import InvalidRequestError
from medserve.gateway.faces.options import read_options
from medserve.gateway.faces.page import segmenting
from medserve.gateway.faces.page.context import TASKS, page_context, read_json
from medserve.gateway.faces.page.jobs import Kind
from medserve.gateway.faces.page.uploads import Allowance, receive

__all__ = ["routes"]

_NIFTI, _PNG, _DICOM = "application/gzip", "image/png", "application/dicom"
_PARTS = {"mask.nii.gz": _NIFTI, "entropy.nii.gz": _NIFTI, "overlay.png": _PNG}


async def add(request: Request) -> Response:
    """Store a volume: one file, or the slices of a DICOM series."""
    site = page_context(request)
    job, _ = site.job(request, Kind.SEGMENT)
    async with site.turns.upload(job):
        allowance = Allowance(site.limits.series_files, site.limits.upload_bytes)
        items = await receive(request, job, site.jobs, site.limits, allowance)
    return JSONResponse({"files": len(items)})


async def run(request: Request) -> Response:
    """Segment what was stored."""
    site = page_context(request)
    job, visitor = site.job(request, Kind.SEGMENT)
    content = await read_json(request)
    model = await site.find(site.order(job.model, job.version, visitor.caller), *TASKS[job.kind])
    params = read_options(model, {**content, "output": "json", "overlay": True})
    async with site.turns.call(job):
        order = site.order(job.model, job.version, visitor.caller, params)
        answer = await segmenting.segment(site.gateway, job, order)
    job.options = params
    return JSONResponse(answer)


async def volume(request: Request) -> Response:
    """The source as NIfTI, for the viewer."""
    site = page_context(request)
    job, visitor = site.job(request, Kind.SEGMENT)
    order = site.order(job.model, job.version, visitor.caller)
    model = await site.find(order, *TASKS[job.kind])
    async with site.turns.call(job):
        path = await asyncio.to_thread(segmenting.volume, job, model.spec)
    return FileResponse(path, media_type="application/octet-stream")


async def part(request: Request) -> Response:
    """A file of the answer."""
    site = page_context(request)
    job, visitor = site.job(request, Kind.SEGMENT)
    name = request.path_params["part"]
    if name == "mask.dcm":
        params = {**job.options, "output": "mask", "format": "dicom-seg"}
        for extra in ("overlay", "uncertainty"):  # of a JSON answer
            params.pop(extra, None)
        async with site.turns.call(job):
            order = site.order(job.model, job.version, visitor.caller, params)
            path = await segmenting.dicom_seg(site.gateway, job, order)
        return FileResponse(path, media_type=_DICOM, filename=name)
    if name not in _PARTS:
        raise InvalidRequestError(f"expected one of {', '.join(_PARTS)} or mask.dcm")
    saved = name if "download" in request.query_params else None
    return FileResponse(segmenting.part(job, name), media_type=_PARTS[name], filename=saved)


routes = [
    Route("/jobs/{job}/volume", add, methods=["POST"]),
    Route("/jobs/{job}/segmentation", run, methods=["POST"]),
    Route("/jobs/{job}/volume", volume),
    Route("/jobs/{job}/{part}", part),
]
