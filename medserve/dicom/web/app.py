"""Requests of DICOMweb and their answers.

    POST /studies, /studies/{study}          STOW-RS (PS3.18 10.5)
    GET  /studies, …/series, …/instances     QIDO-RS (10.6), JSON
    GET  /studies/{study}[/series/{series}[/instances/{instance}]][/metadata]   WADO-RS (10.4)

An object that is answered with 200 or 202 and is no failure is on the disk, as after C-STORE.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from pydicom import Dataset
from python_multipart.multipart import parse_options_header
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Mount, Route

from medserve.dicom.classes import STORED_CLASSES, readable_syntaxes
from medserve.dicom.headers import Facts, is_uid, read_header
from medserve.dicom.intake import COERCED, NO_ROOM, SUCCESS, IncomingFile, Intake, Taken
from medserve.dicom.spool import Spool
from medserve.dicom.web.holdings import Level, Query, header_json, search
from medserve.dicom.web.parts import DICOM, Parts, UnsupportedMediaError, as_parts, syntax_of
from medserve.errors import (
    AuthenticationError,
    ForbiddenError,
    InvalidRequestError,
    MedserveError,
    PayloadTooLargeError,
    ServerBusyError,
    ServerFailedError,
    UnknownModelError,
)
from medserve.gateway.core.tokens import TokenFile
from medserve.gateway.faces.rest.body import RestLimits, announced_bytes, pieces

__all__ = ["SCOPE", "WebLimits", "create_app"]

SCOPE = "dicom"  # what a token has to be for
_JSON = "application/dicom+json"
_MISMATCHED_STUDY, _CLASS, _SYNTAX = 0x0110, 0x0122, 0xC122  # PS3.18 annex I, table I.2-2
_RETRY_AFTER_S = 30
_LEVELS = (Level.STUDY, Level.SERIES, Level.INSTANCE)
_NAMES = {Level.STUDY: "studies", Level.SERIES: "series", Level.INSTANCE: "instances"}
_PREFIX = "/dicom-web"


@dataclass(frozen=True)
class WebLimits:
    """What one request may take.

    Attributes:
        body_bytes: Of one STOW-RS request.
        hosts: Names under which the server may be addressed; "*" for any. They keep a page of
            another site from reaching a server on loopback under a name of its own.
    """

    body_bytes: int
    hosts: tuple[str, ...] = ("*",)


class NotAcceptableError(MedserveError):
    """The answer is wanted in a form that there is not."""

    code = "NOT_ACCEPTABLE"
    grpc_status = "INVALID_ARGUMENT"
    http_status = 406


class NotHeldError(UnknownModelError):
    """No object of that name is held."""

    code = "NOT_FOUND"


def create_app(
    spool: Spool, intake: Intake, tokens: TokenFile | None, limits: WebLimits
) -> Starlette:
    """Return the application over one spool; without tokens everybody may ask."""
    web = _Web(spool, intake, tokens, limits)
    one = "/studies/{study}"
    series = f"{one}/series/{{series}}"
    instance = f"{series}/instances/{{sop_uid}}"
    routes = [Route(path, web.guarded(web.store), methods=["POST"]) for path in ("/studies", one)]
    for prefix, levels in (("", _LEVELS), (one, _LEVELS[1:]), (series, _LEVELS[2:])):
        for level in levels:
            find = web.guarded(partial(web.search, level))
            routes.append(Route(f"{prefix}/{_NAMES[level]}", find, methods=["GET"]))
    for path in (one, series, instance):
        routes.append(Route(path, web.guarded(web.retrieve), methods=["GET"]))
        routes.append(Route(f"{path}/metadata", web.guarded(web.metadata), methods=["GET"]))
    return Starlette(
        routes=[Mount(_PREFIX, routes=routes)],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=list(limits.hosts))],
    )


_Handler = Callable[[Request], Awaitable[Response]]
logger = logging.getLogger(__name__)


class _Web:
    def __init__(
        self, spool: Spool, intake: Intake, tokens: TokenFile | None, limits: WebLimits
    ) -> None:
        self._spool, self._intake = spool, intake
        self._tokens, self._limits = tokens, limits
        self._times = RestLimits(upload_s=24 * 3600.0)  # a study over a slow line

    def guarded(self, handler: _Handler) -> _Handler:
        """Let known callers in, and answer errors."""

        async def answer(request: Request) -> Response:
            try:
                self._identify(request)
                return await handler(request)
            except MedserveError as error:
                return _failure(error)
            except Exception as error:  # its text may quote a header
                logger.error("a request of DICOMweb failed: %s", type(error).__name__)
                return _failure(ServerFailedError("the request failed here; send it again later"))

        return answer

    # STOW-RS

    async def store(self, request: Request) -> Response:
        """Store the objects of a body."""
        study = _uids(request).get(Level.STUDY, "")
        _refuse_other_answers(request, _JSON)
        boundary = _boundary(request.headers.get("content-type", ""))
        if (announced_bytes(request) or 0) > self._limits.body_bytes:
            raise _too_large(self._limits.body_bytes)
        if not self._intake.has_room():
            self._intake.refuse()
            raise ServerBusyError("there is no room for now; send again later")
        outcome = _Outcome()
        async for file in self._files(request, boundary):
            taken = await asyncio.to_thread(self._take, file, study)
            outcome.add(taken)
        return outcome.response()

    async def _files(self, request: Request, boundary: bytes) -> AsyncIterator[IncomingFile]:
        """Yield each object once it is whole; it is deleted when the next one is asked for."""
        parts = Parts(boundary, self._intake.folder)
        arrived = 0
        try:
            async for piece in pieces(request, self._times):
                arrived += len(piece)
                if arrived > self._limits.body_bytes:
                    raise _too_large(self._limits.body_bytes)
                if not await asyncio.to_thread(self._intake.has_room):
                    parts.refuse(OSError(28, "the limit of the operator or of the disk is reached"))
                await asyncio.to_thread(parts.feed, piece)
                while parts.complete:
                    file = parts.complete.popleft()
                    try:
                        yield file
                    finally:
                        file.close()
            parts.finish()
        finally:
            parts.close()

    def _take(self, file: IncomingFile, study: str) -> Taken:
        if file.error is not None:
            return Taken(self._intake.refuse(file.error))
        path = Path(file.name)

        def check(facts: Facts) -> int:
            if study and facts.study_uid != study:
                return _MISMATCHED_STUDY
            if facts.sop_class not in STORED_CLASSES:
                return _CLASS
            return SUCCESS if syntax_of(path) in readable_syntaxes() else _SYNTAX

        return self._intake.take(path, "STOW-RS", check)

    # QIDO-RS and WADO-RS

    async def search(self, level: Level, request: Request) -> Response:
        """Find studies, series or instances."""
        _refuse_other_answers(request, _JSON, "application/json")
        query = Query.read(request.query_params.multi_items())
        found = await asyncio.to_thread(search, self._spool, level, _uids(request), query)
        return JSONResponse(found, media_type=_JSON)

    async def metadata(self, request: Request) -> Response:
        """Give the headers of objects."""
        _refuse_other_answers(request, _JSON, "application/json")
        paths = await self._paths(request)
        found = await asyncio.to_thread(lambda: [header_json(read_header(each)) for each in paths])
        return JSONResponse(found, media_type=_JSON)

    async def retrieve(self, request: Request) -> Response:
        """Give objects as they are stored."""
        accepted = _refuse_other_answers(request, "multipart/related")
        paths = await self._paths(request)
        syntaxes = await asyncio.to_thread(lambda: {syntax_of(each) for each in paths})
        if accepted and "*" not in accepted and syntaxes - accepted:
            raise NotAcceptableError(
                "expected a transfer syntax in which the objects are stored, got another; ask for "
                "transfer-syntax=*"
            )
        boundary = secrets.token_hex(16)
        kind = f'multipart/related; type="{DICOM}"; boundary={boundary}'
        return StreamingResponse(as_parts(paths, boundary), media_type=kind)

    async def _paths(self, request: Request) -> list[Path]:
        stored = await asyncio.to_thread(self._spool.stored, Level.INSTANCE, _uids(request))
        if not stored:
            raise NotHeldError("no object of that identifier is held here")
        return [each.path for each in stored]

    def _identify(self, request: Request) -> None:
        if self._tokens is None:
            return
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        caller = self._tokens.caller(token.strip()) if scheme.lower() == "bearer" else None
        if caller is None:
            raise AuthenticationError("expected a valid bearer token, got none or another")
        if not caller.may(SCOPE):
            raise ForbiddenError(f"expected a token for {SCOPE!r}, got one for models alone")


@dataclass
class _Outcome:
    """What became of the objects of one STOW-RS request (PS3.18 10.5.3)."""

    stored: list[Dataset] = field(default_factory=list)
    failed: list[Dataset] = field(default_factory=list)
    is_warned: bool = False

    def add(self, taken: Taken) -> None:
        """Note one object."""
        item = Dataset()
        if taken.facts is not None:
            item.ReferencedSOPClassUID = taken.facts.sop_class
            item.ReferencedSOPInstanceUID = taken.facts.sop_uid
        if taken.status in (SUCCESS, COERCED):
            self.stored.append(item)
        else:
            item.FailureReason = taken.status
            self.failed.append(item)
        if taken.status == COERCED:
            item.WarningReason = COERCED
            self.is_warned = True

    def response(self) -> Response:
        """Return 200, 202 or 409 with what was stored and what was not; 503 for want of room."""
        if not self.stored and not self.failed:
            raise InvalidRequestError("expected at least one object in the body, got none")
        content = Dataset()
        if self.stored:
            content.ReferencedSOPSequence = self.stored
        if self.failed:
            content.FailedSOPSequence = self.failed
        status, headers = 200, {}
        if self.stored and (self.failed or self.is_warned):
            status = 202
        elif not self.stored:
            status = 409
            if all(each.FailureReason == NO_ROOM for each in self.failed):
                status, headers = 503, {"Retry-After": str(_RETRY_AFTER_S)}
        return JSONResponse(content.to_json_dict(), status, headers, media_type=_JSON)


def _uids(request: Request) -> dict[str, str]:
    """Return the identifiers of the path by level."""
    found = {level: str(request.path_params[level]) for level in _LEVELS
             if level in request.path_params}  # fmt: skip
    if not all(map(is_uid, found.values())):
        raise InvalidRequestError("expected unique identifiers in the path, got something else")
    return {str(level): uid for level, uid in found.items()}


def _boundary(content_type: str) -> bytes:
    kind, options = parse_options_header(content_type)
    if kind != b"multipart/related" or options.get(b"type", DICOM.encode()) != DICOM.encode():
        raise UnsupportedMediaError(
            f'expected multipart/related; type="{DICOM}", got another content type'
        )
    if not (boundary := options.get(b"boundary", b"")):
        raise InvalidRequestError("expected a boundary in the content type, got none")
    return boundary


def _refuse_other_answers(request: Request, *kinds: str) -> set[str]:
    """Return the transfer syntaxes that the caller takes; refuse where no kind of answer is."""
    accepted = request.headers.get("accept", "*/*")
    syntaxes: set[str] = set()
    is_taken = False
    for each in accepted.split(","):
        kind, options = parse_options_header(each.strip())
        name = kind.decode("latin-1").lower()
        of = options.get(b"type", DICOM.encode()).decode("latin-1").lower()
        if name in ("*/*", "application/*") or (name in kinds and of in (DICOM, "*/*")):
            is_taken = True
            if b"transfer-syntax" in options:
                syntaxes.add(options[b"transfer-syntax"].decode("latin-1"))
    if not is_taken:
        raise NotAcceptableError(f"expected a caller who accepts {' or '.join(kinds)}")
    return syntaxes


def _failure(error: MedserveError) -> Response:
    headers = {}
    if isinstance(error, ServerBusyError):
        headers["Retry-After"] = str(_RETRY_AFTER_S)
    if isinstance(error, AuthenticationError):
        headers["WWW-Authenticate"] = "Bearer"
    content = {"error": {"code": error.code, "message": error.message}}
    return JSONResponse(content, error.http_status, headers)


def _too_large(limit: int) -> PayloadTooLargeError:
    return PayloadTooLargeError(f"expected at most {limit} bytes in one request, got more")
