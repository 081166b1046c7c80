"""The pages themselves: HTML for people, each in the visitor's language."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import wraps
from typing import Any
from urllib.parse import parse_qs, quote

from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from medserve.errors import AuthenticationError, InvalidRequestError, UnknownModelError
from medserve.gateway.core.gateway import ModelInfo
from medserve.gateway.faces.options import describe_option, options_of
from medserve.gateway.faces.page import cards
from medserve.gateway.faces.page.context import TASKS, PageContext, page_context, small_body
from medserve.gateway.faces.page.job_routes import summary
from medserve.gateway.faces.page.jobs import Job, Kind, UnknownJobError
from medserve.gateway.faces.page.rendering import Texts, chosen_language, texts_in
from medserve.spec import InputKind, Task
from medserve.tasks import Option

__all__ = ["routes"]

_REFUSAL_S = 0.5  # what a wrong token costs: guessing is slow
_MAX_FORM_BYTES = 8192
_MAX_FIELDS = 8
_FOR_SCRIPTS = ("common.", "classify.", "segment.", "generate.", "options.", "unit.", "error.")
_OF_THE_PAGE = ("output", "format", "overlay")  # it always asks for mask, measurements, picture
_PAGE_OF = {
    **{task.value: kind.value for kind, tasks in TASKS.items() for task in tasks},
    Task.GENERATION.value: "generate",
}
_SUFFIXES = {
    InputKind.RASTER: "PNG, JPEG, TIFF",
    InputKind.DICOM: "DICOM",
    InputKind.NIFTI: "NIfTI",
    InputKind.NPY: "NPY",
}

Page = Callable[[Request], Awaitable[Response]]


def _for_visitors(page: Page) -> Page:
    """Send who has to log in to the page where that is done, and back."""

    @wraps(page)
    async def guarded(request: Request) -> Response:
        try:
            return await page(request)
        except AuthenticationError:
            return RedirectResponse(f"/login?next={quote(request.url.path)}", 303)
        except (UnknownJobError, UnknownModelError):
            return page_context(request).templates.render(request, "missing.html", status=404)

    return guarded


@_for_visitors
async def start(request: Request) -> Response:
    """What this is, what it offers, and what happens to the visitor's files."""
    context = page_context(request)
    visitor = context.visitor(request)
    models = await context.models(visitor.caller)
    values = {
        "models": models,
        "jobs": [summary(context, job) for job in context.jobs.owned(visitor.owner)],
        "minutes": round(context.limits.retention_s / 60),
    }
    return context.templates.render(request, "start.html", values)


def _work_page(template: str, *tasks: Task, kind: Kind | None = None) -> Page:
    """A page where something is done: with the models for it, and a job where one is named."""

    @_for_visitors
    async def page(request: Request) -> Response:
        context = page_context(request)
        visitor = context.visitor(request)
        models = await context.models(visitor.caller, *tasks)
        job: Job | None = None
        if "job" in request.path_params:
            job = context.jobs.get(request.path_params["job"], visitor.owner, kind)
        values = {
            "models": models,
            "task": _task_shown(models, job),
            "formats": {each.name: formats(each) for each in models},
            "page": _for_script(context, request, models, job),
            "minutes": round(context.limits.retention_s / 60),
        }
        return context.templates.render(request, template, values)

    return page


@_for_visitors
async def models(request: Request) -> Response:
    """All models with their state."""
    context = page_context(request)
    found = await context.models(context.visitor(request).caller)
    values = {
        "models": found,
        "page_of": _PAGE_OF,
        "formats": {each.name: formats(each) for each in found},
        "page": {"texts": _texts(request, "models.", "state.", "error.")},
    }
    return context.templates.render(request, "models.html", values)


@_for_visitors
async def model(request: Request) -> Response:
    """One model: its card, its figures, its versions."""
    context = page_context(request)
    found = await context.models(context.visitor(request).caller)
    versions = [each for each in found if each.name == request.path_params["name"]]
    if not versions:
        raise UnknownModelError("no such model")
    wanted = request.query_params.get("version", versions[0].version)
    shown = next((each for each in versions if each.version == wanted), None)
    if shown is None:
        raise UnknownModelError("no such version")
    values = {
        "model": shown,
        "versions": versions,
        "formats": formats(shown),
        "card": cards.render_card(shown.card),
        "page_of": _PAGE_OF,
        "figures": cards.figures(shown.metrics),
        "watched": context.gateway.watching.of(shown),
        "page": {"texts": _texts(request, "models.", "state.", "error.")},
    }
    return context.templates.render(request, "model.html", values)


async def api(request: Request) -> Response:
    """The API description for people; as it is where Swagger UI was not installed."""
    reader = page_context(request).templates.api_reader
    if reader is None:
        return RedirectResponse("/openapi.json", 303)
    script, style = reader
    values = {"script": script, "style": style}
    return page_context(request).templates.render(request, "api.html", values)


async def health(request: Request) -> Response:
    """The state of each model, for pages that stay open."""
    context = page_context(request)
    found = await context.models(context.visitor(request).caller)
    states = [
        {
            "name": each.name,
            "version": each.version,
            "ready": each.ready,
            "reason": each.health.reason,
        }
        for each in found
    ]
    return JSONResponse({"models": states})


async def alive(request: Request) -> Response:
    """Nothing but an answer, for pages that watch their connection."""
    return Response(status_code=204)


async def login_form(request: Request) -> Response:
    """Where the token is asked for."""
    context = page_context(request)
    return context.templates.render(
        request,
        "login.html",
        {"next": _inner(request.query_params.get("next", "")), "wrong": False},
    )


async def log_in(request: Request) -> Response:
    """Take the token, keep it on this side, give a session for it."""
    context = page_context(request)
    fields = await _fields(request)
    target = _inner(fields.get("next", ""))
    response = RedirectResponse(target, 303)
    try:
        context.sessions.log_in(fields.get("token", "").strip(), request, response)
    except AuthenticationError:
        await asyncio.sleep(_REFUSAL_S)
        return context.templates.render(request, "login.html", {"next": target, "wrong": True}, 401)
    return response


async def log_out(request: Request) -> Response:
    """Forget the session and delete what was sent in it."""
    context = page_context(request)
    response = RedirectResponse("/login", 303)
    owner = context.sessions.log_out(request, response)
    for job in context.jobs.owned(owner):
        context.jobs.delete(job)
    return response


def _task_shown(models: Sequence[ModelInfo], job: Job | None) -> str:
    """Return the task whose words a page starts with: of the job's model, else of the first."""
    own = [each for each in models if job and (each.name, each.version) == (job.model, job.version)]
    return next((each.task for each in (*own, *models)), "")


def formats(model: ModelInfo) -> str:
    """The file formats that a model reads, for people."""
    return ", ".join(_SUFFIXES[kind] for kind in model.input_kinds)


def _for_script(
    context: PageContext, request: Request, models: Sequence[ModelInfo], job: Job | None
) -> dict[str, Any]:
    """Return what the script of a page starts from."""
    texts = texts_in(chosen_language(request))
    return {
        "texts": texts.under(*_FOR_SCRIPTS),
        "language": chosen_language(request),
        "viewer": context.templates.viewer,
        "models": [
            {
                "name": each.name,
                "version": each.version,
                "default": each.default,
                "labels": list(each.labels),
                "channels": list(each.channels),
                "ready": each.ready,
                "task": each.task,
                "options": _form(each, texts),
            }
            for each in models
        ],
        "job": summary(context, job) if job else None,
        "limits": {"files": context.limits.pack_files, "bytes": context.limits.upload_bytes},
    }


def _form(model: ModelInfo, texts: Texts) -> list[dict[str, Any]]:
    """Return the options of a model that a visitor chooses, in the visitor's language."""
    own = _OF_THE_PAGE if model.task.segments else ()
    return [
        describe_option(option)
        | {
            "default": _start(option, model),
            "label": texts.by_key.get(f"option.{option.key}", option.key.replace("_", " ")),
            "help": texts.by_key.get(f"help.{model.task}.{option.key}", option.help),
        }
        for option in options_of(model)
        if option.key not in own
    ]


def _start(option: Option, model: ModelInfo) -> Any:
    """Return what a control starts with: where the model decides, its own choice."""
    if option.kind is bool and option.default is None:
        return getattr(model.spec.volume or model.spec.frame, option.key, None)
    return describe_option(option)["default"]


def _texts(request: Request, *prefixes: str) -> dict[str, str]:
    return texts_in(chosen_language(request)).under(*prefixes)


async def _fields(request: Request) -> dict[str, str]:
    body = await small_body(request, _MAX_FORM_BYTES)
    try:
        fields = parse_qs(body.decode("ascii", "replace"), max_num_fields=_MAX_FIELDS)
    except ValueError:
        raise InvalidRequestError(f"expected a form of at most {_MAX_FIELDS} fields") from None
    return {name: values[0] for name, values in fields.items()}


def _inner(target: str) -> str:
    """A path of this site; anything that leads elsewhere becomes the start page."""
    inside = target.startswith("/") and not target.startswith(("//", "/\\"))
    return target if inside and target.isprintable() else "/"


_classify = _work_page("classify.html", *TASKS[Kind.CLASSIFY], kind=Kind.CLASSIFY)
_segment = _work_page("segment.html", *TASKS[Kind.SEGMENT], kind=Kind.SEGMENT)

routes = [
    Route("/", start),
    Route("/classify", _classify),
    Route("/classify/{job}", _classify),
    Route("/segment", _segment),
    Route("/segment/{job}", _segment),
    Route("/generate", _work_page("generate.html", Task.GENERATION)),
    Route("/models", models),
    Route("/models/{name}", model),
    Route("/api", api),
    Route("/health/models", health),
    Route("/alive", alive),
    Route("/login", login_form),
    Route("/login", log_in, methods=["POST"]),
    Route("/logout", log_out, methods=["POST"]),
]
