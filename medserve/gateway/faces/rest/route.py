"""What every REST call shares: who asks, under which id, and how it ends when it fails."""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import replace
from typing import Annotated, Any

from fastapi import Depends, Header, Query
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from medserve.errors import (
    AuthenticationError,
    ForbiddenError,
    InvalidRequestError,
    MedserveError,
    ServerBusyError,
)
from medserve.gateway.core.call_context import CASE, REQUEST_ID, CallContext
from medserve.gateway.core.calls import Face, network_address
from medserve.gateway.core.gateway import Gateway, new_request_id
from medserve.gateway.core.requests import TaskRequest
from medserve.gateway.core.status import bug, retry_after_s
from medserve.gateway.faces.rest.models import Error, VersionQuery
from medserve.tracing import TRACEPARENT

__all__ = [
    "Caller",
    "RestRoute",
    "Version",
    "connection_names",
    "error_body",
    "error_response",
    "failures",
    "task_request",
]

_SAFE = {  # an answer is data, whatever a browser thinks that it has found in it
    "x-content-type-options": "nosniff",
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'",
}
_bearer = HTTPBearer(auto_error=False, description="Needed where the server keeps tokens.")
_DESCRIPTIONS = {
    400: "The request or the file cannot be used.",
    401: "The token is missing, wrong or expired.",
    403: "The token is not for this model.",
    404: "There is no such model or version.",
    413: "The file is larger than the model takes.",
    500: "A bug on the server; the message carries a reference into its log.",
    502: "The engine behind the gateway does not answer.",
    503: "The queue is full or the model is not ready; `Retry-After` says when to try again.",
    504: "No answer within the time that the request allows, or the body came too slowly.",
}


def failures(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """How a call may fail, for OpenAPI; all ways where none is given."""
    return {
        status: {"model": Error, "description": _DESCRIPTIONS[status]}
        for status in statuses or _DESCRIPTIONS
    } | {"default": {"model": Error, "description": "Any other failure."}}


Version = Annotated[VersionQuery, Query()]
_Credentials = Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]
_DeadlineMs = Annotated[
    int | None,
    Header(alias="x-deadline-ms", ge=1, le=3_600_000, description="time for the whole answer"),
]
_Case = Annotated[
    str,
    Header(
        alias=CASE, max_length=256, description="of one case, so that a share of cases stays itself"
    ),
]


class Caller:
    """Who sent a request; a dependency, so that OpenAPI knows that a token may be needed."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def __call__(
        self,
        request: Request,
        credentials: _Credentials,
        deadline_ms: _DeadlineMs = None,
        case: _Case = "",
    ) -> CallContext:
        """The authenticated caller; AuthenticationError where the token is none."""
        token = credentials.credentials if credentials else None
        caller = self._gateway.authenticate(token, *connection_names(request))
        deadline = None if deadline_ms is None else time.monotonic() + deadline_ms / 1000
        return CallContext(replace(caller, case=case), request_id(request), deadline)


class RestRoute(APIRoute):
    """A route whose failures are JSON with medserve's own codes, on whatever app it is mounted."""

    def failure(self, error: MedserveError) -> Response:
        """Return an error as the callers of this route read it."""
        return error_response(error)

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler, and what becomes of its errors."""
        handle = super().get_route_handler()

        async def guarded(request: Request) -> Response:
            request.state.request_id = new_request_id(request.headers.get(REQUEST_ID))
            try:
                response = await handle(request)
            except MedserveError as error:
                response = self.failure(error)
            except RequestValidationError as error:
                response = self.failure(InvalidRequestError(_sentence(error)))
            except HTTPException:
                raise
            except Exception as error:
                response = self.failure(bug(error, request_id(request)))
            for name, value in (_SAFE | {REQUEST_ID: request_id(request)}).items():
                response.headers.setdefault(name, value)
            return response

        return guarded


def connection_names(request: Request) -> tuple[str, str, str]:
    """Return whom the client's certificate names, the network address, and the caller's span.

    What there is not is "".
    """
    name = getattr(request.state, "certificate_name", "")
    address = network_address(request.client.host if request.client else "")
    return name, address, request.headers.get(TRACEPARENT, "")


def request_id(request: Request) -> str:
    """The id under which the request is logged."""
    return str(request.state.request_id)


def task_request(
    incoming: CallContext, model: str, query: VersionQuery, params: Mapping[str, Any] | None = None
) -> TaskRequest:
    """What a request asks of a model."""
    return incoming.task_request(model, query.version, Face.HTTP, params)


def error_body(error: MedserveError) -> dict[str, Any]:
    """The JSON that stands for an error."""
    return {"error": {"code": error.code, "message": error.message}}


def error_response(error: MedserveError, body: Mapping[str, Any] | None = None) -> Response:
    """An error as HTTP carries it; `body` where the callers know another form of it."""
    headers = {}
    if isinstance(error, ServerBusyError):
        headers["retry-after"] = str(retry_after_s(error))
    if isinstance(error, AuthenticationError) and not isinstance(error, ForbiddenError):
        headers["www-authenticate"] = "Bearer"
    return JSONResponse(body or error_body(error), error.http_status, headers)


def _sentence(error: RequestValidationError) -> str:
    """What is wrong, without what the caller wrote, which may be anything."""
    first = error.errors()[0]
    if first["type"] == "extra_forbidden":
        return "expected only known parameters, got another one; /openapi.json lists them"
    return f"{'.'.join(map(str, first['loc'][1:]))}: {first['msg']}"
