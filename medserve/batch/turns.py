"""One run at a time for every study: a run holds its part of a batch for as long as it lives.

Two runs that store one answer at the same moment take each other's files away; and where they ask
an archive of another version or other options, a receipt could speak of the files of the other.

    OUT/running/3-of-16            locked by the run of that shard, which has written here who it is

The kernel gives the lock free when its process ends, however it ends; the file stays.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from medserve.batch.studies import Shard
from medserve.errors import ConfigError

__all__ = ["turn"]

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
_MOST_BYTES = 300  # of what a run says of itself


@contextlib.contextmanager
def turn(out: Path, shard: Shard) -> Iterator[bool]:
    """Hold a part of the batch in a folder; gives False where its file system has no locks.

    Raises:
        ConfigError: another run lives that works on some of the same studies.
        OSError: nothing can be written there.
    """
    folder = out / "running"
    folder.mkdir(parents=True, exist_ok=True)
    own = os.open(folder / _name(shard), os.O_RDWR | os.O_CREAT, 0o666)
    try:
        has_locks = _lock(own, fcntl.LOCK_EX, out)
        os.ftruncate(own, 0)
        os.pwrite(own, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
        if has_locks:
            _need_no_other(folder, shard, out)
        yield has_locks
    finally:
        os.close(own)


def _need_no_other(folder: Path, shard: Shard, out: Path) -> None:
    """Raise ConfigError where a run of other parts lives that shares studies with this one."""
    for name in os.listdir(folder):
        other = _shard(name)
        if other is None or other == shard or not other.meets(shard):
            continue
        found = os.open(folder / name, os.O_RDONLY)
        try:
            _lock(found, fcntl.LOCK_SH, out)
        finally:
            os.close(found)


def _lock(file: int, kind: int, out: Path) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError as error:
        who = os.pread(file, _MOST_BYTES, 0).decode("utf-8", "replace") or "it has just begun"
        raise ConfigError(
            f"--out {out}: another run works on these studies ({who}); wait for its end, or name "
            "another folder"
        ) from error
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return False
        raise
    return True


def _name(shard: Shard) -> str:
    return f"{shard.index}-of-{shard.count}"


def _shard(name: str) -> Shard | None:
    try:
        return Shard.parse(name.replace("-of-", "/"))
    except ConfigError:
        return None
