"""What every answer carries and every request must pass: headers, host names, other sites.

A browser attaches a visitor's cookie to whatever page makes it send a request. So a request that
changes something is taken only from a page of this very host: the browser says where it comes
from (`Sec-Fetch-Site`, `Origin`). Programs that are no browsers send neither and carry no cookie.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from medserve.errors import MedserveError
from medserve.gateway.core.calls import new_request_id
from medserve.gateway.core.status import bug

__all__ = ["ANSWERED", "LOOPBACK_HOSTS", "Protection", "error_content"]

# RFC 9110, section 7.2: a name or an address, and a port; no user before it.
_HOST = re.compile(r"(\[(?P<address>[0-9A-Fa-f:.]+)\]|(?P<name>[A-Za-z0-9._-]+))(:[0-9]*)?")

ANSWERED = "medserve.answered"  # key of the scope: the exception that is logged and answered

LOOPBACK_HOSTS = frozenset({"localhost", "127.0.0.1", "::1"})
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})

_PAGE_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob: data:",  # blob: a visitor's own files; data: the viewer's font
        "connect-src 'self' blob: data:",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
    )
)
_FIXED = {
    "content-security-policy": _PAGE_POLICY,
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    # Nothing to other sites; `no-referrer` would also take the origin from our own forms.
    "referrer-policy": "same-origin",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "cache-control": "no-store",  # what a visitor sees is not kept on a shared machine
}


class ForeignSiteError(MedserveError):
    """The request came from another site, or to a host name that is not ours."""

    code = "FOREIGN_SITE"
    grpc_status = "PERMISSION_DENIED"
    http_status = 403


def error_content(error: MedserveError) -> dict[str, dict[str, str]]:
    """The body in which every error travels."""
    return {"error": {"code": error.code, "message": error.message}}


class Protection:
    """Wraps the whole application, REST included.

    Args:
        app: What is protected.
        hosts: Names under which this server may be addressed; empty: any. It keeps a foreign
            page from reaching a server on loopback under a name of its own.
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str] = ()) -> None:
        self.app = app
        self._hosts = frozenset(hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check the request, pass it on, and add the headers to its answer."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        started = False

        async def send_with_headers(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                headers = MutableHeaders(scope=message)
                for name, value in _FIXED.items():
                    headers.setdefault(name, value)
                if scope["scheme"] == "https":
                    headers.setdefault("strict-transport-security", "max-age=31536000")
            await send(message)

        try:
            self._check(scope["method"], Headers(scope=scope))
        except ForeignSiteError as error:
            refusal = JSONResponse(error_content(error), error.http_status)
            await refusal(scope, receive, send_with_headers)
            return
        # Going on to the server an exception would be logged with its text, which may quote what a
        # visitor sent. The application hands on what it has logged and answered itself, too.
        try:
            await self.app(scope, receive, send_with_headers)
        except Exception as error:
            if scope.get(ANSWERED) is not error:
                failure = bug(error, new_request_id())
                if not started:
                    answer = JSONResponse(error_content(failure), failure.http_status)
                    await answer(scope, receive, send_with_headers)

    def _check(self, method: str, headers: Headers) -> None:
        host = headers.get("host", "")
        if self._hosts and _name(host) not in self._hosts:
            raise ForeignSiteError("expected a host name of this server, got another")
        if method in _SAFE_METHODS:
            return
        site, origin = headers.get("sec-fetch-site"), headers.get("origin")
        ours = site in (None, "same-origin", "none") and (origin is None or _netloc(origin) == host)
        if not ours:
            raise ForeignSiteError("expected a request from this site's own pages, got another's")


def _name(host: str) -> str | None:
    """Return a Host header without its port and brackets, None where it is no host."""
    found = _HOST.fullmatch(host)
    return found and (found["address"] or found["name"]).lower()


def _netloc(origin: str) -> str | None:
    """Return host and port of an Origin header, None where it is no address."""
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return None
