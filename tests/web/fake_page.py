"""The page on a free port of loopback, before models that need no engine.

with FakePage() as page: tab.goto(page.url)

Files are PNG images with an answer behind their last byte, as `image` makes them; see `visiting`.
"""

from __future__ import annotations

import io
import socket
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Self

import numpy as np
import uvicorn
from PIL import Image

from medserve.gateway.faces.page import create_app
from medserve.gateway.settings import GatewaySettings
from medserve.spec import Task
from tests.gateway.faces import two_images
from tests.gateway.fake_engine import FakeEngine, Request, model
from tests.web.test_frames import frame_answer, frame_model
from tests.web.visiting import LABELS, answers, gateway, radiographs

if TYPE_CHECKING:
    from playwright.sync_api import FilePayload

__all__ = ["FakePage", "image"]

_END_OF_PNG = b"IEND\xaeB`\x82"
_WAIT_S = 30.0
Answers = Callable[[Request], bytes | Sequence[bytes]]


def image(name: str, answer: str, seed: int = 0) -> FilePayload:
    """Return a small picture to which the models of this page give that answer."""
    pixels = np.random.default_rng(seed).integers(0, 255, (24, 24), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).resize((96, 96)).save(stream, "png")
    content = stream.getvalue() + answer.encode()
    return {"name": name, "mimeType": "image/png", "buffer": content}


def _bare(request: Request) -> bytes | Sequence[bytes]:
    """Answer by what stands behind the picture; of any frame the first 40 pixels are marked."""
    if request.model == "gland":
        return frame_answer(request)
    inputs = {
        key: content.rpartition(_END_OF_PNG)[2] if key.startswith("data") else content
        for key, content in request.inputs.items()
    }
    return answers(replace(request, inputs=inputs))


class FakePage:
    """Serves the page in a thread of its own."""

    def __init__(self, answer: Answers = _bare) -> None:
        self.engine = FakeEngine(answer)
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        models = (
            model("bones", Task.VOLUMES, labels=LABELS),
            frame_model(),
            model("maturity", Task.REGRESSION),
            model("kinds", labels=LABELS),
            model("organs", Task.VOLUMES, labels=LABELS),
            model("sampler", Task.GENERATION, labels=("t1", "t2")),
            model("shades", labels=LABELS),
            two_images(),
            radiographs(),
        )
        app = create_app(gateway(self.engine, models), GatewaySettings())
        config = uvicorn.Config(app, log_level="error", lifespan="on")
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [self._socket]}, daemon=True
        )

    def __enter__(self) -> Self:
        self._thread.start()  # the socket listens already: a browser waits until it is answered
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.should_exit = True
        self._thread.join(_WAIT_S)
