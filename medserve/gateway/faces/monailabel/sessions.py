"""Images that clients of MONAI Label have sent ahead: on the disk, for a time, for their owner."""

from __future__ import annotations

import threading
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

__all__ = ["ImageSessions"]

_LIFE_S = 3600.0  # since the last use, as MONAI Label's own
_MOST, _MOST_EACH = 32, 4


@dataclass
class _Session:
    owner: str
    path: Path
    used: float


class ImageSessions:
    """One image each; nobody but its owner finds it.

    Where an owner has too many, the one that was used longest ago makes room; so it is with all.

    Attributes:
        folder: Closed to other users; set before the first image comes.
    """

    def __init__(self) -> None:
        self.folder = Path()
        self._sessions: dict[str, _Session] = {}
        self._guard = threading.Lock()  # images are written outside the event loop

    def add(self, owner: str, content: bytes) -> str:
        """Keep an image; returns the name of its session."""
        name = str(uuid.uuid4())
        path = self.folder / name
        path.write_bytes(content)
        with self._guard:
            own = [name for name, each in self._sessions.items() if each.owner == owner]
            if len(own) >= _MOST_EACH:
                self._remove_oldest(own)
            elif len(self._sessions) >= _MOST:
                self._remove_oldest(list(self._sessions))
            self._sessions[name] = _Session(owner, path, time.monotonic())
        return name

    def find(self, owner: str, name: str) -> Path | None:
        """Return the image of a session; None where it is over, or another's."""
        found = self._sessions.get(name)
        if found is None or found.owner != owner:
            return None
        found.used = time.monotonic()
        return found.path

    def remove(self, name: str) -> None:
        """Delete a session and its image."""
        with self._guard:
            self._remove(name)

    def _remove(self, name: str) -> None:
        if (found := self._sessions.pop(name, None)) is not None:
            found.path.unlink(missing_ok=True)

    def sweep(self) -> None:
        """Delete what nobody has used for long."""
        before = time.monotonic() - _LIFE_S
        with self._guard:
            for name in [name for name, each in self._sessions.items() if each.used < before]:
                self._remove(name)

    def _remove_oldest(self, names: list[str]) -> None:
        self._remove(min(names, key=lambda name: self._sessions[name].used))
