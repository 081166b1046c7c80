"""A room whose model draws: `tiny_sampler` streams pictures of a disc that comes out of noise.

Its handler keeps to the contract of models that generate: requests have parameters and no file;
where a stream is asked for, progress with previews comes before the images. The artifact is that
of `tiny` (see `tests/tiny_room.py`) and draws nothing.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import yaml

from tests.tiny_room import make_checkout

__all__ = ["CLASSES", "STEPS", "make_sampler_checkout"]

CLASSES = ("small", "large", "any-3", "any-4", "any-5", "any-6")  # as many as the artifact has
STEPS = 4

_HANDLER = '''"""A disc out of noise."""

import base64
import io
import json
import time

import numpy as np
from PIL import Image

from handlers import torchserve
from handlers.base import Handler

SIDE = 48
STEPS = 4


class TinySamplerHandler(Handler):
    """Draws by arithmetic."""

    def parse_params(self, params):
        return dict(params)

    def reproduce(self, payload):
        return self.engine.run(np.zeros((1, 1, 64, 64), dtype=np.float32))

    def handle(self, data, context):
        self.context = context
        return super().handle(data, context)

    def answer(self, items):
        for item in items:
            count, seed = item.params.get("n", 1), item.params.get("seed", 0)
            size = item.params.get("class")
            if item.request.wants_stream:
                self.show_progress(count, seed, size)
            images = [
                {"png": picture(size, seed + place, 1.0), "seed": seed + place}
                for place in range(count)
            ]
            item.outcome = json.dumps({"images": images}).encode()

    def show_progress(self, count, seed, size):
        for step in range(1, STEPS + 1):
            for place in range(count):
                preview = picture(size, seed + place, step / STEPS)
                chunk = {"event": "progress", "image": place, "step": step, "of": STEPS,
                         "preview_png": preview}
                torchserve.send_chunk(self.context, [json.dumps(chunk).encode()])
            time.sleep(0.05)


def picture(size, seed, done):
    random = np.random.default_rng(seed)
    down, across = np.indices((SIDE, SIDE)) - SIDE / 2
    radius = (0.2 if size == "small" else 0.38) * SIDE * random.uniform(0.8, 1.1)
    disc = np.clip(radius - np.hypot(down, across * random.uniform(0.8, 1.2)), 0, 6) / 6
    noise = random.uniform(0, 1, (SIDE, SIDE))
    mixed = disc * (0.55 + 0.3 * noise) * done + noise * (1 - done)
    stream = io.BytesIO()
    Image.fromarray((255 * np.clip(mixed, 0, 1)).astype(np.uint8)).save(stream, format="PNG")
    return base64.b64encode(stream.getvalue()).decode()
'''


def make_sampler_checkout(root: Path) -> Path:
    """Lay out `root` like the repository, with the room `tiny_sampler` alone in `models/`."""
    make_checkout(root, name="tiny_sampler")
    (root / "handlers" / "tiny_sampler.py").write_text(_HANDLER, encoding="utf-8")
    room = root / "models" / "tiny_sampler"
    config = yaml.safe_load((room / "model-config.yaml").read_text(encoding="utf-8"))
    config["batchSize"] = 1
    config["medserve"] |= {
        "title": "Discs out of noise",
        "task": "generation",
        "labels": list(CLASSES),
    }
    (room / "model-config.yaml").write_text(
        yaml.safe_dump(config, sort_keys=False), encoding="utf-8"
    )
    weights = room / "weights"
    (weights / "golden_input.png").unlink()
    (weights / "golden_input.json").write_text('{"n": 1, "seed": 0}', encoding="utf-8")
    np.savez(
        weights / "golden_output.npz",
        logits=np.zeros((1, 6), np.float32),
        novelty=np.zeros(1, np.float32),
        tolerance=np.float32(1e-3),
    )
    return root
