"""The Open Inference Protocol over HTTP: health and metadata. Inference has its own twins."""

# No `from __future__ import annotations`: FastAPI could not look up the local names in them.

from typing import Annotated

from fastapi import APIRouter, Depends

from medserve.gateway.core import Gateway
from medserve.gateway.incoming import Incoming
from medserve.gateway.rest_route import Caller, failures

__all__ = ["add"]


def add(routes: APIRouter, gateway: Gateway, caller: Caller) -> None:
    """Add the routes."""
    known = Annotated[Incoming, Depends(caller)]
    errors = failures(401, 403, 404)
