"""Classification: files in, answers out, corrections, thumbnails, heat maps, downloads."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from medserve.errors import InvalidRequestError
from medserve.gateway.faces.page import exports
from medserve.gateway.faces.page.classifying import classify, correct, described, explanation
from medserve.gateway.faces.page.context import TASKS, page_context, read_json
from medserve.gateway.faces.page.jobs import Kind
from medserve.gateway.faces.page.thumbnails import SIDES
from medserve.gateway.faces.page.uploads import Allowance, receive

__all__ = ["routes"]


async def add(request: Request) -> Response:
    """Store a pack of files and classify them; sent again, it asks only for what is missing."""
    site = page_context(request)
    job, visitor = site.job(request, Kind.CLASSIFY)
    async with site.turns.upload(job):
        allowance = Allowance(site.limits.pack_files, site.limits.upload_bytes)
        items = await receive(request, job, site.jobs, site.limits, allowance)
    async with site.turns.call(job):
        order = site.order(job.model, job.version, visitor.caller)
        await classify(site.gateway, job, items, order)
    return JSONResponse({"files": [described(item) for item in items]})


async def change(request: Request) -> Response:
    """Set classes by hand: {"classes": {"17": "Hand", "18": null}}."""
    job, _ = page_context(request).job(request, Kind.CLASSIFY)
    classes = (await read_json(request)).get("classes")
    if not isinstance(classes, dict) or not all(
        key.isascii() and key.isdigit() and (value is None or isinstance(value, str))
        for key, value in classes.items()
    ):
        raise InvalidRequestError('expected {"classes": {number: class or null}}')
    items = correct(job, {int(key): value for key, value in classes.items()})
    return JSONResponse({"files": [described(item) for item in items]})


async def thumbnail(request: Request) -> Response:
    """A small picture of a file."""
    site = page_context(request)
    job, visitor = site.job(request, Kind.CLASSIFY)
    item = job.item(request.path_params["number"])
    side = SIDES[1] if request.query_params.get("side") == "large" else SIDES[0]
    model = await site.find(site.order(job.model, job.version, visitor.caller), *TASKS[job.kind])
    content = await site.thumbnails.png(job, item, model.spec.input, side)
    headers = {"cache-control": "private, max-age=3600", "content-security-policy": "sandbox"}
    return Response(content, media_type="image/png", headers=headers)


async def explain(request: Request) -> Response:
    """What the class of a file rests on, with its heat map."""
    site = page_context(request)
    job, visitor = site.job(request, Kind.CLASSIFY)
    item = job.item(request.path_params["number"])
    async with site.turns.call(job):
        order = site.order(job.model, job.version, visitor.caller)
        return JSONResponse(await explanation(site.gateway, job, item, order))


async def download(request: Request) -> Response:
    """The results as results.csv, results.json or results.zip."""
    job, _ = page_context(request).job(request, Kind.CLASSIFY)
    match request.path_params["format"]:
        case "csv":
            content, kind = exports.to_csv(job), "text/csv; charset=utf-8"
        case "json":
            content, kind = exports.to_json(job), "application/json"
        case "zip":
            return StreamingResponse(
                exports.bundle(job), media_type="application/zip", headers=_saved("zip")
            )
        case _:
            raise InvalidRequestError("expected results.csv, results.json or results.zip")
    return Response(content, media_type=kind, headers=_saved(request.path_params["format"]))


def _saved(suffix: str) -> dict[str, str]:
    return {"content-disposition": f'attachment; filename="medserve-results.{suffix}"'}


routes = [
    Route("/jobs/{job}/files", add, methods=["POST"]),
    Route("/jobs/{job}/classes", change, methods=["POST"]),
    Route("/jobs/{job}/files/{number:int}/thumbnail", thumbnail),
    Route("/jobs/{job}/files/{number:int}/explanation", explain, methods=["POST"]),
    Route("/jobs/{job}/results.{format}", download),
]
