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

__all__ = ["Sessions", "Visitor"]

_COOKIE = "medserve_session"
_SECRET = re.compile(r"[A-Za-z0-9_-]{43}")
_MOST = 10_000
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


class Sessions:
    """The sessions of this process."""

    def __init__(self, gateway: Gateway, clock: Callable[[], float] = time.monotonic) -> None:
        self._gateway = gateway
        self._clock = clock
        self._tokens: OrderedDict[str, tuple[float, str]] = OrderedDict()  # by owner

    def visitor(self, request: Request) -> Visitor:
        """The visitor; AuthenticationError where the gateway wants a token and there is none."""
        owner = _owner(request)
        token = None if owner is None else self._token(owner)
        return Visitor(self._gateway.authenticate(token), owner)

    def begin(self, response: Response, *, secure: bool) -> str:
        """Start a session; the owner that it stands for."""
        secret = secrets.token_urlsafe(32)
        response.set_cookie(
            _COOKIE, secret, httponly=True, samesite="lax", secure=secure, max_age=int(_LIFE_S)
        )
        return _hash(secret)

    def log_in(self, token: str, response: Response, *, secure: bool) -> None:
        """Start a session for a token; AuthenticationError where it is no good one."""
        self._gateway.authenticate(token)
        owner = self.begin(response, secure=secure)
        self._tokens[owner] = (self._clock() + _LIFE_S, token)
        while len(self._tokens) > _MOST:
            self._tokens.popitem(last=False)

    def log_out(self, request: Request, response: Response) -> str | None:
        """Forget the session; the owner that it stood for."""
        owner = _owner(request)
        if owner is not None:
            self._tokens.pop(owner, None)
        response.delete_cookie(_COOKIE, httponly=True, samesite="lax")
        return owner

    def _token(self, owner: str) -> str | None:
        end, token = self._tokens.get(owner, (0.0, ""))
        if end > self._clock():
            return token
        self._tokens.pop(owner, None)
        return None


def _owner(request: Request) -> str | None:
    secret = request.cookies.get(_COOKIE, "")
    return _hash(secret) if _SECRET.fullmatch(secret) else None


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
