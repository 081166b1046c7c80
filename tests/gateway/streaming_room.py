"""A room whose model streams: `ticker` sends three numbers before its answer.

It is `tiny` (see `tests/tiny_room.py`) with a handler that also obeys `top_k`, the only parameter
that it has: 5 ends its process, 6 takes two seconds.
"""

from __future__ import annotations

from pathlib import Path

import yaml

from tests.tiny_room import make_checkout

__all__ = ["CRASH", "SLOW", "TICKS", "make_streaming_checkout"]

TICKS = [b'{"event":"tick","step":%d}' % step for step in range(3)]
CRASH = b'{"top_k":5}'
SLOW = b'{"top_k":6}'

_HANDLER = '''"""Counts before it answers."""

import os
import time

from handlers import torchserve
from handlers.classification import ClassificationHandler
from medserve.inference.fit import fit_grey


class TickerHandler(ClassificationHandler):
    """Streams where it is asked to."""

    def to_network(self, source):
        return fit_grey(source, (64, 64))

    def handle(self, data, context):
        params = bytes(data[0].get("params", b""))
        if params == b'{"top_k":5}':
            os._exit(1)
        if params == b'{"top_k":6}':
            time.sleep(2)
        if bytes(data[0].get("stream", b"")) == b"1":
            for step in range(3):
                chunk = b'{"event":"tick","step":%d}' % step
                torchserve.send_chunk(context, [chunk] * len(data))
        return super().handle(data, context)
'''


def make_streaming_checkout(root: Path) -> Path:
    """Lay out `root` like the repository, with the room `ticker` alone in `models/`."""
    make_checkout(root, name="ticker")
    (root / "handlers" / "ticker.py").write_text(_HANDLER, encoding="utf-8")
    path = root / "models" / "ticker" / "model-config.yaml"
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    config |= {"batchSize": 1, "responseTimeout": 8}
    path.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    return root
