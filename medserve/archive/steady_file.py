"""A file whose bytes cannot change between the moment they are hashed and the moment they are used.

Another process may write to an archive while it is verified. A `SteadyFile` hashes the file once,
keeps the first of its blocks and the digests of the others, and refuses every later read whose
block has another digest: all that is read from it is what its `sha256` stands for.
"""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import BinaryIO

from medserve.errors import ArchiveError

__all__ = ["SteadyFile", "open_steadily"]

_BLOCK_BYTES = 2**16
_KEPT_BLOCKS = 2**10  # 64 MiB: most archives are read from the disk once


class SteadyFile(io.RawIOBase):
    """The content of a file as it was when it was opened; read it through `open_steadily`.

    Attributes:
        sha256: Of the whole content, in hexadecimal.
        size_bytes: Of the content; what is appended later does not exist here.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: BinaryIO = path.open("rb", buffering=0)
        self._known: list[bytes] = []  # each block, or its digest
        self._last: tuple[int, bytes] = (-1, b"")  # number and content of a block that was read
        self._place = 0
        whole = hashlib.sha256()
        self.size_bytes = 0
        while block := self._read_block(len(self._known)):
            whole.update(block)
            keep = len(self._known) < _KEPT_BLOCKS
            self._known.append(block if keep else hashlib.sha256(block).digest())
            self.size_bytes += len(block)
        self.sha256 = whole.hexdigest()

    def readable(self) -> bool:
        """Say that it can be read."""
        return True

    def seekable(self) -> bool:
        """Say that it can be read from any place."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to a place and return it."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self.size_bytes}[whence]
        self._place = max(0, start + offset)
        return self._place

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Fill the buffer up to the end of the block; 0 at the end of the file.

        Raises:
            ArchiveError: the block is not the one that was hashed.
        """
        number, start = divmod(self._place, _BLOCK_BYTES)
        if number >= len(self._known):
            return 0
        part = self._block(number)[start : start + len(buffer)]
        buffer[: len(part)] = part
        self._place += len(part)
        return len(part)

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        super().close()

    def _block(self, number: int) -> bytes:
        """Return a block as it was."""
        if number < _KEPT_BLOCKS:
            return self._known[number]
        if self._last[0] != number:
            block = self._read_block(number)
            if hashlib.sha256(block).digest() != self._known[number]:
                raise ArchiveError(
                    f"{self._path} was changed while it was read; let nobody write to it and "
                    "start again"
                )
            self._last = (number, block)
        return self._last[1]

    def _read_block(self, number: int) -> bytes:
        """Return a block as it is now; the last one may be shorter, and b"" is beyond it."""
        self._file.seek(number * _BLOCK_BYTES)
        block = b""
        while len(block) < _BLOCK_BYTES and (part := self._file.read(_BLOCK_BYTES - len(block))):
            block += part
        return block


def open_steadily(path: Path) -> tuple[io.BufferedReader, SteadyFile]:
    """Return a reader of the file, and the file that knows its digest; close the reader.

    Raises:
        ArchiveError: the file is not there or cannot be read.
    """
    try:
        file = SteadyFile(path)
    except FileNotFoundError:
        raise ArchiveError(f"{path}: no such file; build it with `medserve package NAME`") from None
    except OSError as error:
        raise ArchiveError(
            f"{path}: expected a model archive (.mar, a zip file), cannot read it: {error}"
        ) from error
    return io.BufferedReader(file, _BLOCK_BYTES), file
