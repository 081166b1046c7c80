"""A room whose model streams: `ticker` sends three numbers before its answer.

It is `tiny` (see `tests/tiny_room.py`) with a handler that also obeys `top_k`, the only parameter
that it has: 5 ends its process, 6 takes two seconds. The parameters of a `Hold` keep it at work for
as long as a test wants.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from pathlib import Path

import yaml

from tests.tiny_room import make_checkout

__all__ = ["CRASH", "SLOW", "TICKS", "Hold", "make_streaming_checkout"]

TICKS = [b'{"event":"tick","step":%d}' % step for step in range(3)]
CRASH = b'{"top_k":5}'
SLOW = b'{"top_k":6}'
_HELD = "hold"  # the folder of a `Hold`


@dataclass(frozen=True)
class Hold:
    """Keeps calls in the model's hands until they may go on, by files in a folder of the test."""

    folder: Path

    @property
    def params(self) -> bytes:
        """The parameters of a call that is held."""
        return json.dumps({_HELD: str(self.folder)}).encode()

    async def begun(self) -> None:
        """Wait until the model works on such a call."""
        while not (self.folder / "begun").exists():
            await asyncio.sleep(0.01)

    def release(self) -> None:
        """Let this call go on, and those that follow."""
        (self.folder / "open").touch()

    @classmethod
    def of(cls, params: bytes) -> Hold | None:
        """Return the hold that a call's parameters name, for a stand-in of the model."""
        folder = json.loads(params or b"{}").get(_HELD)
        return None if folder is None else cls(Path(folder))

    async def obey(self) -> None:
        """Do as the model does."""
        (self.folder / "begun").touch()
        while not (self.folder / "open").exists():
            await asyncio.sleep(0.01)


_HANDLER = '''"""Counts before it answers."""

import json
import os
import time
from pathlib import Path

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
        if folder := json.loads(params or b"{}").get("hold"):
            Path(folder, "begun").touch()
            while not Path(folder, "open").exists():
                time.sleep(0.01)
            data = [{key: each[key] for key in each if key != "params"} for each in data]
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
