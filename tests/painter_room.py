"""`painter` (see `tests/tiny_diffusion_room.py`) with a guidance at which a step takes a second."""

from __future__ import annotations

from pathlib import Path

from tests.tiny_diffusion_room import make_diffusion_checkout

__all__ = ["SLOW", "make_painter_checkout"]

SLOW = 7.5
_HANDLER = f'''"""Paints bars, and slowly where the guidance is {SLOW}."""

import time

from handlers.generation import GenerationHandler


class PainterHandler(GenerationHandler):
    """A second a step."""

    def _sample(self, params, seed, place, watch):
        run = self.pipeline._run
        if params.settings.guidance == {SLOW}:
            self.pipeline._run = lambda inputs: (compute(), run(inputs))[1]
        try:
            return super()._sample(params, seed, place, watch)
        finally:
            self.pipeline._run = run


def compute():
    """Take a second, and some processor time: who only slept would be ended as standing still."""
    end = time.monotonic() + 1
    while time.monotonic() < end:
        sum(range(100_000))
        time.sleep(0.02)
'''


def make_painter_checkout(root: Path) -> Path:
    """Lay out `root` like the repository, with the room `painter` alone in `models/`."""
    make_diffusion_checkout(root)
    (root / "handlers" / "painter.py").write_text(_HANDLER, encoding="utf-8")
    config = root / "models" / "painter" / "model-config.yaml"
    text = config.read_text(encoding="utf-8")
    config.write_text(text.replace("responseTimeout: 60", "responseTimeout: 600"), "utf-8")
    return root
