"""Who a visitor is: a secret in a cookie, and behind it the token that they logged in with.

The secret owns the visitor's jobs. It says nothing by itself and is no key for any other face;
where the gateway asks for tokens, the token stays in this process and is checked again with every
request, so that taking it from the tokens file ends the visit.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response

from medserve.gateway.core.gateway import Caller, Gateway
from medserve.gateway.faces.rest.route import connection_names

__all__ = ["Sessions", "Visitor"]

_COOKIE = "medserve_session"
_SECRET = re.compile(r"[A-Za-z0-9_-]{43}")
_MOST, _MOST_EACH = 10_000, 100  # sessions of all, of one holder
_LIFE_S = 12 * 3600.0  # a working day


@dataclass(frozen=True)
class Visitor:
    """Who sent a request.

    Attributes:
        caller: With the scopes of their token.
        owner: Stands for their session in jobs; None before the first job.
    """

    caller: Caller
    owner: str | None


@dataclass(frozen=True)
class _Session:
    """One session: when it ends, who holds it, and the token that they logged in with."""

    end: float
    holder: str
    token: str | None = None


class Sessions:
    """The sessions of this process; a secret that it did not issue is none.

    One holder (the name behind a token, else an address) has so many at a time and the oldest of
    theirs makes room, so that nobody ends the sessions of others.
    """

    def __init__(self, gateway: Gateway, clock: Callable[[], float] = time.monotonic) -> None:
        self._gateway = gateway
        self._clock = clock
        self._sessions: OrderedDict[str, _Session] = OrderedDict()  # by owner

    def visitor(self, request: Request) -> Visitor:
        """The visitor; AuthenticationError where the gateway wants a token and there is none."""
        owner = _owner(request)
        session = None if owner is None else self._session(owner)
        token = session.token if session else None
        caller = self._gateway.authenticate(token, *connection_names(request))
        return Visitor(caller, owner if session else None)

    def begin(self, request: Request, response: Response) -> str:
        """Start a session; the owner that it stands for."""
        return self._begin(request, response, network_holder(request), None)

    def log_in(self, token: str, request: Request, response: Response) -> None:
        """Start a session for a token; AuthenticationError where it is no good one."""
        caller = self._gateway.authenticate(token, *connection_names(request))
        self._begin(request, response, caller.owner, token)

    def log_out(self, request: Request, response: Response) -> str | None:
        """Forget the session; the owner that it stood for."""
        owner = _owner(request)
        if owner is not None and self._sessions.pop(owner, None) is None:
            owner = None
        response.delete_cookie(_COOKIE, httponly=True, samesite="lax")
        return owner

    def _begin(self, request: Request, response: Response, holder: str, token: str | None) -> str:
        secret = secrets.token_urlsafe(32)
        response.set_cookie(
            _COOKIE,
            secret,
            httponly=True,
            samesite="lax",
            secure=request.url.scheme == "https",
            max_age=int(_LIFE_S),
        )
        owner = _hash(secret)
        own = [each for each, session in self._sessions.items() if session.holder == holder]
        if len(own) >= _MOST_EACH:
            del self._sessions[own[0]]
        elif len(self._sessions) >= _MOST:
            self._sessions.popitem(last=False)
        self._sessions[owner] = _Session(self._clock() + _LIFE_S, holder, token)
        return owner

    def _session(self, owner: str) -> _Session | None:
        session = self._sessions.get(owner)
        if session is not None and session.end > self._clock():
            return session
        self._sessions.pop(owner, None)
        return None


def network_holder(request: Request) -> str:
    """Return by what visitors without a token are counted."""
    name, address, _ = connection_names(request)
    return name or address


def _owner(request: Request) -> str | None:
    secret = request.cookies.get(_COOKIE, "")
    return _hash(secret) if _SECRET.fullmatch(secret) else None


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
