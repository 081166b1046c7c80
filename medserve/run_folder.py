"""The private folder of one running server, and the folders that killed servers left behind."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Self

from medserve.errors import ConfigError

__all__ = ["RunFolder"]

_PREFIX = "medserve-serve-"
_LOCK = "lock"
_SETTLED_S = 60  # younger folders may be between their creation and their lock


class RunFolder:
    """A folder for one server, closed to other users and locked as long as the server lives.

    The lock is held by the server and by Java, which inherits `lock_fd`; when both have ended,
    however they ended, the next server takes the folder away.
    """

    def __init__(self, path: Path, lock_fd: int) -> None:
        self.path = path
        self.lock_fd = lock_fd

    @classmethod
    def create(cls) -> Self:
        """Make a new folder, after removing those of servers that were killed.

        Raises:
            ConfigError: nothing can be written where TMPDIR says; Python would take another folder
                without a word, and patients' files would lie there.
        """
        given = os.environ.get("TMPDIR")
        if given and not os.access(given, os.W_OK | os.X_OK):
            raise ConfigError(
                f"expected TMPDIR to name a folder that can be written, got {given}; mount it "
                "writable, or name another one"
            )
        _sweep(Path(tempfile.gettempdir()))
        path = Path(tempfile.mkdtemp(prefix=_PREFIX))  # mode 700
        lock_fd = os.open(path / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(lock_fd, fcntl.LOCK_EX)
        return cls(path, lock_fd)

    def remove(self) -> None:
        """Remove the folder with all that is in it."""
        shutil.rmtree(self.path, ignore_errors=True)
        with contextlib.suppress(OSError):  # a second removal is no error
            os.close(self.lock_fd)


def _sweep(parent: Path) -> None:
    """Remove our own folders that nobody holds any more."""
    for folder in parent.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):  # it belongs to another user, or is gone already
            if time.time() - folder.stat().st_mtime < _SETTLED_S:
                continue
            with (folder / _LOCK).open("r+") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder)
