"""The part of MONAI Label's API (0.8) that inference needs, as 3D Slicer's extension speaks it.

    GET    /info/                                 the models of volumes
    PUT    /session/                              an image, for several calls
    GET    /session/{id}, DELETE /session/{id}
    POST   /infer/{model}?image=&session_id=      the mask on the image's own grid
    GET    /auth/, POST /auth/token, GET /auth/token/valid

Training, active learning and the data store answer 501: models are trained elsewhere, and images
are kept for nobody. Its clients send one file: images of a model that sees several come along the
fourth axis of a NIfTI file. A caller's parameters that are no options of the model are passed over,
for clients send those of MONAI Label's own models.
"""

# No `from __future__ import annotations`: FastAPI could not look up the local names in them.

import asyncio
import json
import secrets
import time
from collections.abc import Mapping
from contextlib import aclosing
from typing import Annotated, Any
from urllib.parse import parse_qs

from fastapi import APIRouter, Depends
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from medserve.errors import AuthenticationError, InvalidRequestError, MedserveError
from medserve.gateway.core.call_context import CallContext
from medserve.gateway.core.calls import ModelInfo
from medserve.gateway.core.gateway import Gateway
from medserve.gateway.core.requests import TaskRequest, find_served
from medserve.gateway.faces.monailabel.sessions import ImageSessions
from medserve.gateway.faces.options import read_options
from medserve.gateway.faces.rest.body import RestLimits, arriving_bytes, files, is_form, whole
from medserve.gateway.faces.rest.models import VersionQuery
from medserve.gateway.faces.rest.route import Caller, RestRoute, connection_names, task_request
from medserve.spec import Task
from medserve.tasks import declared
from medserve.tasks.volumes import VolumeOptions, VolumeResult

__all__ = ["PREFIX", "router"]

PREFIX = "/monailabel"
_OUTPUTS = ("", "all", "image", "json", "dicom_seg")
_OWN = frozenset(
    ("output", "format", "overlay", "uncertainty")
)  # which `output` of the URL decides
_OPTIONS = frozenset(each.key for each in declared(VolumeOptions)) - _OWN
_NOT_OFFERED = (
    *("train", "activelearning", "scoring", "batch", "datastore", "model", "logs", "proxy"),
    "infer/wsi",
)
_GZIP, _DICOM = "application/gzip", "application/dicom"
_MAX_LOGIN_BYTES = 4096


class NotOfferedError(MedserveError):
    """A part of MONAI Label's API that this server does not have."""

    code = "NOT_OFFERED"
    grpc_status = "UNIMPLEMENTED"
    http_status = 501


class NoSessionError(InvalidRequestError):
    """The session is over, or never was."""

    code = "NO_SESSION"
    http_status = 404


def router(gateway: Gateway, sessions: ImageSessions, limits: RestLimits) -> APIRouter:
    """Return all routes, below `PREFIX`."""
    face = _Face(gateway, sessions, limits)
    routes = APIRouter(route_class=RestRoute, prefix=PREFIX, include_in_schema=False)
    known = Annotated[CallContext, Depends(Caller(gateway))]

    @routes.get("/info/")
    async def info(incoming: known) -> Any:
        return JSONResponse(await face.info(incoming))

    @routes.put("/session/")
    async def create(request: Request, incoming: known) -> Any:
        name = await face.keep(request, incoming)
        return JSONResponse({"session_id": name, "session_info": _session_info(name)})

    @routes.get("/session/{name}")
    async def look(name: str, incoming: known) -> Any:
        if sessions.find(incoming.caller.owner, name) is None:
            raise _no_session()
        return JSONResponse(_session_info(name))

    @routes.delete("/session/{name}")
    async def delete(name: str, incoming: known) -> Any:
        if sessions.find(incoming.caller.owner, name) is None:
            raise _no_session()
        sessions.remove(name)
        return JSONResponse({})

    for start in _NOT_OFFERED:  # before /infer/{model}
        for path in (f"/{start}", f"/{start}/{{rest:path}}"):
            routes.add_api_route(path, _refuse, methods=["GET", "POST", "PUT", "DELETE"])

    @routes.post("/infer/{model}")
    async def infer(
        model: str, request: Request, incoming: known, session_id: str = "", output: str = ""
    ) -> Any:
        return await face.infer(
            request, task_request(incoming, model, VersionQuery(version="")), session_id, output
        )

    @routes.get("/auth/")
    async def asks() -> Any:
        return JSONResponse({"enabled": gateway.asks_for_tokens})

    @routes.post("/auth/token")
    async def log_in(request: Request) -> Any:
        return JSONResponse(await face.log_in(request))

    @routes.get("/auth/token/valid")
    async def valid(incoming: known) -> Any:
        return JSONResponse({})

    return routes


async def _refuse(rest: str = "") -> Any:
    """Answer for what is not offered."""
    raise NotOfferedError(
        "this server answers inference alone; train, rank and store images elsewhere"
    )


class _Face:
    def __init__(self, gateway: Gateway, sessions: ImageSessions, limits: RestLimits) -> None:
        self._gateway, self._sessions, self._limits = gateway, sessions, limits

    async def info(self, incoming: CallContext) -> dict[str, Any]:
        """Describe the models of volumes that the caller may use."""
        found = await self._gateway.models(incoming.caller)
        models = [each for each in found if each.task is Task.VOLUMES and each.default]
        labels = {label: None for each in models for label in each.labels[1:]}
        return {
            "name": "medserve",
            "description": "Research use, not a medical device.",
            "version": "1",
            "labels": list(labels),
            "models": {each.name: _description(each) for each in models},
            **{name: {} for name in ("trainers", "strategies", "scoring", "train_stats",
                                     "datastore", "config")},
        }  # fmt: skip

    async def keep(self, request: Request, incoming: CallContext) -> str:
        """Keep the one image of a form."""
        limit = self._gateway.limits.message_bytes
        most = arriving_bytes(request, limit)
        owner = incoming.caller.owner
        async with self._gateway.budget.reserve(most, owner, incoming.deadline):
            content, _ = await self._form(request, limit)
            if not content:
                raise InvalidRequestError("expected the file of an image in the form, got none")
            return await asyncio.to_thread(self._sessions.add, owner, content)

    async def infer(
        self, request: Request, asked: TaskRequest, session: str, output: str
    ) -> Response:
        """Answer about the image of a session, or of the form."""
        if output not in _OUTPUTS:
            raise NotOfferedError(f"output: expected one of {', '.join(_OUTPUTS[1:])}")
        model = await find_served(self._gateway, asked, Task.VOLUMES)
        limit = min(model.spec.input.max_payload_bytes, self._gateway.limits.message_bytes)
        owner = asked.caller.owner
        async with self._gateway.budget.reserve(limit, owner, asked.deadline) as held:
            content, params = await self._form(request, limit)
            if session:
                content = await asyncio.to_thread(self._image, owner, session)
            if not content:
                raise InvalidRequestError(
                    "expected an image, as a session or as a file in the form, got none; this "
                    "server fetches no images by their identifiers"
                )
            held.resize(len(content))
            form = "dicom-seg" if output == "dicom_seg" else None
            wanted = _options(params) | {"output": "json"} | ({"format": form} if form else {})
            asked = asked.with_params(read_options(model, wanted))
            began = time.monotonic()
            asked = asked.sooner(began + self._limits.answer_s)
            answer = await self._gateway.predict(asked.call({"data": content}))
        result = await asyncio.to_thread(VolumeResult.decode, answer)
        return _answer(result, output, time.monotonic() - began)

    async def log_in(self, request: Request) -> dict[str, str]:
        """Take a token as the password, and give it back as one."""
        body = await whole(request, _MAX_LOGIN_BYTES, self._limits)
        token = parse_qs(body.decode("latin-1")).get("password", [""])[0]
        self._gateway.authenticate(token, *connection_names(request))
        if not token:
            raise AuthenticationError("expected a token as the password, got none")
        return {"access_token": token, "token_type": "bearer"}

    async def _form(self, request: Request, limit: int) -> tuple[bytes, Mapping[str, Any]]:
        """Return the one file of a form, b"" without one, and the JSON object `params`."""
        if not is_form(request):
            raise InvalidRequestError("expected multipart/form-data, got another content type")
        texts: dict[str, str] = {"params": "", "client_id": ""}
        content = b""
        async with aclosing(files(request, limit, self._limits, most=3, texts=texts)) as found:
            async for file in found:
                if content:
                    raise InvalidRequestError(
                        "expected one image in the form, got several; a model that sees several "
                        "images takes one NIfTI file with them along its fourth axis"
                    )
                content = file.content
        try:
            params = json.loads(texts["params"] or "{}")
        except (ValueError, RecursionError):
            params = None
        if not isinstance(params, dict):
            raise InvalidRequestError("params: expected a JSON object, got something else")
        return content, params

    def _image(self, owner: str, session: str) -> bytes:
        path = self._sessions.find(owner, session)
        if path is None or not path.exists():
            raise _no_session()
        return path.read_bytes()


def _description(model: ModelInfo) -> dict[str, Any]:
    images = f" (one NIfTI file with {', '.join(model.channels)} along its fourth axis)"
    return {
        "type": "segmentation",
        "labels": {label: number for number, label in enumerate(model.labels) if number},
        "dimension": 3,
        "description": model.title + (images if model.channels else ""),
        "config": {},
    }


def _options(params: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in params.items() if name in _OPTIONS}


def _answer(result: VolumeResult, output: str, took_s: float) -> Response:
    """Return the mask, what is known of it, or both in a form, as the client reads it."""
    if output == "dicom_seg":
        return Response(result.dicom_seg, media_type=_DICOM)
    if output == "image":
        return Response(result.mask_nifti, media_type=_GZIP)
    params = {
        "label_names": {each.label: each.label_id for each in result.measures},
        "latencies": {"total": round(took_s, 3)},
        "volumes_ml": {each.label: each.volume_ml for each in result.measures},
        "review": result.review,
    }
    if output == "json":
        return JSONResponse({"params": params})
    boundary = secrets.token_hex(16)
    head = f"--{boundary}\r\nContent-Disposition: form-data; name="
    body = (
        f'{head}"params"\r\nContent-Type: application/json\r\n\r\n{json.dumps(params)}\r\n'
        f'{head}"image"; filename="mask.nii.gz"\r\nContent-Type: {_GZIP}\r\n\r\n'
    ).encode()
    end = f"\r\n--{boundary}--\r\n".encode()
    return Response(
        body + result.mask_nifti + end,
        media_type=f"multipart/form-data; boundary={boundary}",
    )


def _session_info(name: str) -> dict[str, Any]:
    return {"name": name}


def _no_session() -> NoSessionError:
    return NoSessionError("there is no such session, or it is over; send the image again")
