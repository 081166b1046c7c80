"""A room that draws: `sketcher` fills squares with the grey of a step, and streams while it does.

It is `tiny` (see `tests/tiny_room.py`) with a handler for the task generation: image n of a call
with the seed s is a square of the grey `(s + n) % 256`, so what comes is known beforehand.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

from tests.tiny_room import make_checkout

__all__ = ["STEPS", "make_sketcher_checkout", "square"]

STEPS = 3
_SIDE = 16
_PROCESS = {"schedule": "cosine", "prediction": "noise", "sizes": [64]}  # asked of any sampler
_HANDLER = '''"""Fills squares."""

import base64
import io
import json

import numpy as np
from PIL import Image

from handlers import torchserve
from handlers.base import Handler
from medserve.errors import InvalidRequestError

STEPS = 3


def square(grey):
    buffer = io.BytesIO()
    Image.fromarray(np.full((16, 16), grey % 256, np.uint8)).save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()


class SketcherHandler(Handler):
    """Draws, and shows each step where it is asked to."""

    raises_errors = True
    max_items = 1

    def parse_params(self, params):
        if set(params) - {"n", "seed"} or not 1 <= params.get("n", 1) <= 8:
            raise InvalidRequestError("params: expected only known keys: n (1 to 8), seed")
        return params

    def answer(self, items):
        for item in items:
            seeds = [item.params.get("seed", 0) + n for n in range(item.params.get("n", 1))]
            images = [
                {
                    "png": square(seed), "seed": seed, "class": "", "steps": STEPS,
                    "sampler": "ddim", "guidance": 1.0, "size": 16, "synthetic": True,
                }
                for seed in seeds
            ]
            content = {"images": images, "withheld": 0}
            item.outcome = self.envelope.single(json.dumps(content).encode())

    def reproduce(self, payload):
        return self.engine.run(np.full((1, 1, 64, 64), 0.5, np.float32))

    def handle(self, data, context):
        if bytes(data[0].get("stream", b"")) == b"1":
            for step in range(1, STEPS + 1):
                shown = {"event": "progress", "step": step, "of": STEPS, "image": 0}
                shown["preview_png"] = square(step)
                torchserve.send_chunk(context, [json.dumps(shown).encode()])
        return super().handle(data, context)
'''


def square(seed: int) -> bytes:
    """The image of one seed."""
    buffer = io.BytesIO()
    image = np.full((_SIDE, _SIDE), seed % 256, dtype=np.uint8)
    Image.fromarray(image).save(buffer, format="PNG")
    return buffer.getvalue()


def make_sketcher_checkout(root: Path) -> Path:
    """Lay out `root` like the repository, with the room `sketcher` alone in `models/`."""
    make_checkout(root, name="sketcher")
    (root / "handlers" / "sketcher.py").write_text(_HANDLER, encoding="utf-8")
    path = root / "models" / "sketcher" / "model-config.yaml"
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    config |= {"batchSize": 1}
    config["medserve"] |= {"task": "generation", "title": "Grey squares", "generation": _PROCESS}
    del config["medserve"]["output"]
    path.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    weights = path.parent / "weights"
    (weights / "golden_input.png").unlink()
    (weights / "golden_input.json").write_bytes(b'{"n": 1, "seed": 7}')
    # a grey plane: every tile has the mean 0.5, and the gain of the network is 8
    logits = np.full((1, 6), 4, dtype=np.float32)
    novelty = np.full(1, 0.5, dtype=np.float32)
    np.savez(
        weights / "golden_output.npz", logits=logits, novelty=novelty, tolerance=np.float32(1e-3)
    )
    return root
