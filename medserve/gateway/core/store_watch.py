"""A store that is watched: an archive that is copied into it is served, the default included.

    a new file, unchanged for a moment   verified, proven beside; the default where it is newer
    the default version of before        unloaded when its calls have ended
    a file that disappears               its version is removed, unless it is the default
    a file that cannot be used           nothing changes; one line in the log says why

A file is looked at once: one that was refused is tried again when it, or its signature, changes.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from medserve.archive.read import ArchiveInfo
from medserve.archive.trust import signature_path
from medserve.errors import MedserveError, ServerBusyError, UnknownModelError
from medserve.gateway.core.calls import Caller
from medserve.gateway.core.served_models import ServedModels
from medserve.gateway.core.versions import Addition, Changer, Versions

__all__ = ["StoreWatch"]

_LOOK_S = 2.0  # a file that is being copied grows between two looks
_WATCHER = Changer(Caller("the watched store", manages=True))

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Seen:
    """One file at one look."""

    size: int
    changed_ns: int
    number: int
    signed_ns: int  # 0: not signed

    @classmethod
    def of(cls, path: Path) -> _Seen | None:
        try:
            found = path.stat()
        except OSError:
            return None
        signed_ns = 0
        with contextlib.suppress(OSError):
            signed_ns = signature_path(path).stat().st_mtime_ns
        return cls(found.st_size, found.st_mtime_ns, found.st_ino, signed_ns)


class StoreWatch:
    """Follows the files of one store for as long as `run` runs.

    Args:
        versions: Who adds and removes.
        served: What is served.
        folder: The store.
        known: The archives with which the server started.
        look_s: Between two looks.
    """

    def __init__(
        self,
        versions: Versions,
        served: ServedModels,
        folder: Path,
        known: Iterable[ArchiveInfo],
        look_s: float = _LOOK_S,
    ) -> None:
        self._versions, self._served, self._folder = versions, served, folder
        self._look_s = look_s
        self._loaded = {each.path.name: (each.name, each.version) for each in known}
        self._judged = {
            path.name: seen for path, seen in self._files() if path.name in self._loaded
        }
        self._before: dict[str, _Seen] = {}

    async def run(self) -> None:
        """Look, act, wait; until cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(self._look_s)

    async def look(self) -> None:
        """Act on what has changed since the last look."""
        now = {path.name: seen for path, seen in self._files()}
        settled = [name for name, seen in now.items() if self._before.get(name) == seen]
        self._before = now
        for name in sorted(settled):
            if self._judged.get(name) != now[name]:
                await self._take(name, now[name])
        for name in sorted(self._loaded.keys() - now.keys()):
            await self._let_go(name)

    def _files(self) -> list[tuple[Path, _Seen]]:
        found = ((path, _Seen.of(path)) for path in self._folder.glob("[!.]*.mar"))
        return [(path, seen) for path, seen in found if seen]

    async def _take(self, name: str, seen: _Seen) -> None:
        """Serve a new archive; let it be the default where it is newer than the default."""
        by_hand = {f"{each.name}-{each.version}.mar": each for each in self._served}.get(name)
        if by_hand is not None and name not in self._judged:  # somebody added it meanwhile
            self._judged[name] = seen
            self._loaded[name] = (by_hand.name, by_hand.version)
            return
        try:
            defaults = {each.name: each.version for each in self._served if each.default}
            added = await self._versions.add(_WATCHER, Addition(name, default=True, if_newer=True))
            self._judged[name] = seen
            self._loaded[name] = (added.name, added.version)
            before = defaults.get(added.name)
            if added.default and before:
                await self._versions.remove(_WATCHER, added.name, before)
        except ServerBusyError:
            return  # somebody changes the models: at the next look
        except MedserveError as error:
            self._judged[name] = seen
            logger.error("%s changes nothing: %s", name, error)

    async def _let_go(self, name: str) -> None:
        """Remove the version of a file that has disappeared; the default one serves on."""
        model, version = self._loaded[name]
        try:
            if self._served.find(model, version).default:
                reason = "nothing takes the place of the default version"
            else:
                await self._versions.remove(_WATCHER, model, version)
                reason = ""
        except ServerBusyError:
            return
        except UnknownModelError:
            reason = ""  # it was removed by name
        except MedserveError as error:
            reason = error.message
        if reason:
            logger.error("%s is gone from the store and is served on: %s", name, reason)
        del self._loaded[name]
        self._judged.pop(name, None)
