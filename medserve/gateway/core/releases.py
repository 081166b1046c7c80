"""From one version to the next on evidence: route some callers, compare, promote."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

from medserve.errors import ForbiddenError, InvalidRequestError
from medserve.gateway.core.gateway import Gateway
from medserve.gateway.core.routes import Route, Routes
from medserve.gateway.core.shadow import Shadow
from medserve.gateway.core.versions import Changer

__all__ = ["ALLOWED", "evidence_for", "promote", "set_route"]

ALLOWED = 0.02  # share of differing classes, or what a mean Dice of 1 may lose


async def set_route(gateway: Gateway, by: Changer, model: str, route: Route) -> None:
    """Replace the route of a model; an empty one ends it.

    Raises:
        MedserveError: the caller may not, or the route leads to a version that is not served.
    """
    routes, _ = _parts(gateway)
    told = route.model_dump(mode="json", exclude_none=True)
    await gateway.versions.note(by, "route", model, told, lambda: routes.set(model, route))


def evidence_for(
    gateway: Gateway, by: Changer, model: str, allowed: float = 0.0
) -> Mapping[str, Any]:
    """Return how the shadowed version of a model compares; 0 allows what is allowed by default.

    Raises:
        MedserveError: the caller may not, or nothing has been compared.
    """
    if not 0 <= allowed < 1:
        raise InvalidRequestError(f"allowed: expected a share from 0 to below 1, got {allowed}")
    gateway.versions.permit(by, model)
    _, shadow = _parts(gateway)
    return shadow.evidence(model, allowed or ALLOWED)


async def promote(
    gateway: Gateway, by: Changer, model: str, version: str, allowed: float = 0.0
) -> Mapping[str, Any]:
    """Make a compared version the default, end its route, and return the evidence.

    Raises:
        InvalidRequestError: the interval does not exclude that it is worse than allowed.
    """
    routes, shadow = _parts(gateway)
    found = evidence_for(gateway, by, model, allowed)
    await gateway.versions.promote(by, model, version, found)
    shadow.forget(model)
    if routes.lead_to(model, version):
        with contextlib.suppress(InvalidRequestError):  # the operator's own file stays as it is
            routes.set(model, Route())
    return found


def _parts(gateway: Gateway) -> tuple[Routes, Shadow]:
    if gateway.routes is None or gateway.shadow is None:
        raise ForbiddenError("this gateway leads no callers to versions")
    return gateway.routes, gateway.shadow
