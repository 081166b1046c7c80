"""Where a file goes while it comes in: into memory, or to the disk where it is too large for that.

A file that is larger than a message never reaches the engine as one. It is written, piece by piece,
into a folder that gateway and workers share; the request only names it. The name is drawn by chance
and known to nobody else, the file is closed to other users, and it is deleted with its call.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import secrets
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Protocol

from medserve.errors import PayloadTooLargeError, ServerBusyError
from medserve.gateway.core.admission import ByteBudget

__all__ = ["InMemory", "Incoming", "OnDisk", "Uploads", "refuse_larger"]

_KEY = "data_file"  # of a request, as `handlers/uploads.py` reads it
_NAME = re.compile(r"[0-9a-f]{32}")
_LARGEST_AT_A_TIME = 4  # of the disk: so many of the largest files, half of them of one caller


class Incoming(Protocol):
    """A file that is coming in."""

    size: int

    def begin(self, key: str) -> None:
        """Keep what follows as a file of its own, under this key of the request."""

    async def take(self, chunk: bytes) -> None:
        """Keep the next bytes; an error where they are too many, or there is no room."""

    def inputs(self) -> Mapping[str, bytes]:
        """Return what the request to the engine holds; the file is complete."""


class InMemory:
    """One file that travels within its request, or several of one case."""

    def __init__(self, limit: int) -> None:
        self._files: dict[str, bytearray] = {}
        self._key, self._limit = "data", limit
        self.size = 0

    def begin(self, key: str) -> None:
        """Keep what follows as a file of its own."""
        self._key = key
        self._files[key] = bytearray()

    async def take(self, chunk: bytes) -> None:
        """Keep the next bytes."""
        self.size += len(chunk)
        refuse_larger(self.size, self._limit)
        self._files.setdefault(self._key, bytearray()).extend(chunk)

    def inputs(self) -> Mapping[str, bytes]:
        """Return the files themselves."""
        return {key: bytes(content) for key, content in self._files.items()}


class OnDisk:
    """A file that its request names."""

    def __init__(self, folder: Path, limit: int) -> None:
        self.path = folder / secrets.token_hex(16)
        self._limit, self.size = limit, 0
        self._descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)

    def begin(self, key: str) -> None:
        """Refuse several files: the request names one."""
        raise PayloadTooLargeError(
            "expected the images of a case in one message together, got more; send them as one "
            "four-dimensional NIfTI file"
        )

    async def take(self, chunk: bytes) -> None:
        """Write the next bytes."""
        self.size += len(chunk)
        refuse_larger(self.size, self._limit)
        try:
            await asyncio.to_thread(self._write, chunk)
        except OSError as error:
            raise _no_room(error) from error

    def inputs(self) -> Mapping[str, bytes]:
        """Return its name."""
        return {_KEY: self.path.name.encode()}

    def _write(self, chunk: bytes) -> None:
        left = memoryview(chunk)
        while left:
            left = left[os.write(self._descriptor, left) :]

    def delete(self) -> None:
        """Let go of it."""
        os.close(self._descriptor)
        self.path.unlink(missing_ok=True)


class Uploads:
    """The folder for large files; without one a file has to fit into a message.

    Args:
        folder: On a disk that the workers see too; files of an earlier gateway are deleted.
        most_bytes: Of one file.
    """

    def __init__(self, folder: Path | None, most_bytes: int) -> None:
        self._folder = folder
        self.most_bytes = most_bytes if folder is not None else 0
        self._disk = ByteBudget(_LARGEST_AT_A_TIME * most_bytes)
        if folder is not None and folder.is_dir():
            for left in folder.iterdir():
                if _NAME.fullmatch(left.name):
                    left.unlink(missing_ok=True)

    @contextlib.asynccontextmanager
    async def receive(self, size: int, owner: str, deadline: float | None) -> AsyncIterator[OnDisk]:
        """Give a file of at most `size` bytes for the time of the block.

        Raises:
            DeadlineError: `deadline` (`time.monotonic()`) passed before there was room.
            ServerBusyError: the disk does not take it.
        """
        assert self._folder is not None  # else `most_bytes` is 0 and nobody comes here
        async with self._disk.reserve(size, owner, deadline):
            try:
                file = OnDisk(self._folder, size)
            except OSError as error:
                raise _no_room(error) from error
            try:
                yield file
            finally:
                file.delete()


def refuse_larger(size: int, limit: int) -> None:
    """Refuse a file over the limit.

    Raises:
        PayloadTooLargeError: it is.
    """
    if size > limit:
        raise PayloadTooLargeError(
            f"expected a file of at most {limit} bytes, got more; send a smaller one"
        )


def _no_room(error: OSError) -> ServerBusyError:
    return ServerBusyError(
        f"the folder for large files takes no more ({error.strerror}); try again later"
    )
