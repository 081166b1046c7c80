"""A visitor of the page without browser and engine: an HTTP client on the application itself.

@visit(gateway())
async def test_…(client): ...

`gateway()` serves three models that answer by what a file says of itself: `ok…`, `review…` and
`odd…` are classified by their second word, anything else is no image.
"""

from __future__ import annotations

import asyncio
import functools
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import httpx

from medserve.gateway.core.gateway import Gateway, Guards, ModelInfo
from medserve.gateway.faces.page import PageLimits, create_app
from medserve.gateway.faces.page.context import PageContext
from medserve.gateway.faces.page.protection import Protection
from medserve.gateway.faces.page.uploads import CONTENT_TYPE
from medserve.gateway.settings import GatewaySettings
from medserve.spec import Classes, OutputSpec, Task
from medserve.tasks.classification import Classification
from medserve.tasks.regression import estimates
from tests.gateway.faces import DIGEST, drawn, paired, segmented
from tests.gateway.fake_engine import VALUES, FakeEngine, Request, fake_gateway, model

__all__ = [
    "EXPLANATION",
    "FINDINGS",
    "LABELS",
    "PACK",
    "Visitor",
    "answers",
    "begin",
    "gateway",
    "pack",
    "radiographs",
    "send",
    "visit",
    "visiting",
]

LABELS = ("dark", "bright")
FINDINGS = ("Effusion", "Mass", "Nodule")  # of a model whose labels are independent
PACK = {"content-type": CONTENT_TYPE}
HOST = "http://127.0.0.1:8000"
Visitor = httpx.AsyncClient
_HEAD = {"version": "1.0", "archive_digest": DIGEST}
EXPLANATION = {
    "method": "occlusion",
    "label": "dark",
    "without_warmest": 0.25,
    "without_coolest": 0.75,
    "full_colour": 1.5,
    "heatmap_png": "bWFw",
}
_PROBABILITY = {"ok": 0.99, "review": 0.6, "odd": 0.9}


def answers(request: Request) -> bytes | Sequence[bytes]:
    """As each of the three models answers."""
    match request.model:
        case "organs" | "bones":
            bare = json.loads(request.inputs.get("params", b"{}")).get("output") == "mask"
            return b"the mask as dicom-seg" if bare else segmented(request)
        case "tumour":
            return paired(request)
        case "sampler":
            return drawn(request)
    count = sum(key.startswith("data.") for key in request.inputs)
    item = {"xrays": _findings, "maturity": _numbers}.get(request.model, _item)
    items = [{"index": n, **item(request.inputs[f"data.{n}"])} for n in range(count)]
    if json.loads(request.inputs.get("params", b"{}")).get("explain"):
        items = [each | {"explanation": EXPLANATION} for each in items]
    return json.dumps({"model": request.model, **_HEAD, "items": items}).encode()


def radiographs() -> ModelInfo:
    """A model of independent labels: the text of a file names those that it shows."""
    output = OutputSpec(classes=Classes.INDEPENDENT)
    return model("xrays", labels=FINDINGS, output=output)


def _numbers(content: bytes) -> dict[str, Any]:
    """Two numbers, where the text of a file begins with them."""
    try:
        numbers = [float(each) for each in content.split()[:2]]
        return {"status": "ok", **estimates(numbers, VALUES).to_json()}
    except ValueError:
        return _item(b"no image")


def _findings(content: bytes) -> dict[str, Any]:
    text = content.decode("latin-1")
    present = tuple(label for label in FINDINGS if label in text)
    shares = tuple(0.9 if label in present else 0.1 for label in FINDINGS)
    found = Classification(FINDINGS, shares, "?" in text, None, present=present)
    return {"status": "ok", **found.to_json()}


def _item(content: bytes) -> dict[str, Any]:
    kind, _, rest = content.decode("latin-1").partition(" ")
    label = rest.partition(" ")[0]
    if kind not in _PROBABILITY or label not in LABELS:
        error = {"code": "INVALID_IMAGE", "message": "expected PNG, got text"}
        return {"status": "error", "error": error}
    highest = _PROBABILITY[kind]
    return {
        "status": "ok",
        "probabilities": {each: highest if each == label else 1 - highest for each in LABELS},
        "review": kind == "review",
        "novelty": 2.0 if kind == "odd" else 0.5,
    }


def gateway(
    engine: FakeEngine | None = None, models: Sequence[ModelInfo] | None = None, **guards: Any
) -> Gateway:
    """A gateway to the three models."""
    served = models or (
        model("kinds", labels=LABELS),
        model("organs", Task.VOLUMES, labels=LABELS),
        model("sampler", Task.GENERATION, labels=("t1", "t2")),
    )
    return fake_gateway(engine or FakeEngine(answers), *served, guards=Guards(**guards))


@asynccontextmanager
async def visiting(
    to: Gateway,
    settings: GatewaySettings | None = None,
    limits: PageLimits | None = None,
    visitors: int = 1,
) -> AsyncIterator[tuple[PageContext, list[Visitor]]]:
    """The running page and its visitors, each with cookies of their own."""
    app = create_app(to, settings or GatewaySettings(), limits)
    assert isinstance(app, Protection)
    inner: Any = app.app
    async with inner.router.lifespan_context(inner):
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        clients = [Visitor(transport=transport, base_url=HOST) for _ in range(visitors)]
        try:
            yield inner.state.context, clients
        finally:
            for client in clients:
                await client.aclose()


def visit(
    to: Callable[[], Gateway] = gateway, **options: Any
) -> Callable[[Callable[[Visitor], Awaitable[None]]], Callable[[], None]]:
    """A test of one visitor."""

    def decorate(test: Callable[[Visitor], Awaitable[None]]) -> Callable[[], None]:
        async def run() -> None:
            async with visiting(to(), **options) as (_, [visitor]):
                await test(visitor)

        @functools.wraps(test)
        def wrapped() -> None:
            asyncio.run(run())

        del wrapped.__dict__["__wrapped__"]  # pytest would look for a fixture `client`
        return wrapped

    return decorate


def pack(files: Mapping[str, bytes], first: int = 0) -> bytes:
    """An upload of these files, numbered from `first`."""
    listed = [
        {"number": first + place, "name": name, "size": len(content)}
        for place, (name, content) in enumerate(files.items())
    ]
    return json.dumps(listed).encode() + b"\n" + b"".join(files.values())


async def begin(
    client: Visitor,
    kind: str = "classify",
    name: str = "kinds",
    options: Mapping[str, Any] | None = None,
) -> str:
    """A new job; its path."""
    asked = {"kind": kind, "model": name, "options": dict(options or {})}
    response = await client.post("/jobs", json=asked)
    assert response.status_code == 201, response.text
    return f"/jobs/{response.json()['id']}"


async def send(client: Visitor, job: str, files: Mapping[str, bytes], first: int = 0) -> Any:
    """Upload files for classification; what the page is told of each."""
    response = await client.post(f"{job}/files", content=pack(files, first), headers=PACK)
    assert response.status_code == 200, response.text
    return response.json()["files"]
