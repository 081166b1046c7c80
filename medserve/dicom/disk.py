"""Files of a node that are through to the disk when a function returns."""

from __future__ import annotations

import contextlib
import os
from hashlib import sha256
from pathlib import Path

from medserve.errors import ConfigError

__all__ = ["IMAGES", "move", "refuse_network_disk", "remove", "sync"]

IMAGES = "images"  # has a folder for each series
_NETWORK_DISKS = {"nfs", "nfs4", "cifs", "smb3", "smbfs", "fuse.sshfs", "9p"}


def sync(file: Path) -> tuple[str, int]:
    """Write a file through to the disk; returns its digest and size."""
    digest, size = sha256(), 0
    with file.open("rb") as stream:
        while block := stream.read(2**20):
            digest.update(block)
            size += len(block)
        os.fsync(stream.fileno())
    return digest.hexdigest(), size


def move(file: Path, target: Path) -> None:
    """Move a file on one disk; its new name is safe when this returns."""
    is_new = not target.parent.exists()
    target.parent.mkdir(mode=0o700, exist_ok=True)
    file.replace(target)
    _sync_folder(target.parent)
    if is_new:
        _sync_folder(target.parent.parent)


def remove(path: Path) -> None:
    """Delete a file, if it is there, and the folder of its series after the last one."""
    with contextlib.suppress(OSError):
        path.unlink()
        if path.parent.parent.name == IMAGES:
            path.parent.rmdir()  # where it was the last one


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def refuse_network_disk(folder: Path) -> None:
    """Raise ConfigError on a disk where the write-ahead log of sqlite is not safe."""
    with contextlib.suppress(OSError):
        mounts = Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines()
        real = folder.resolve()
        holding = [line.split()[1:3] for line in mounts if real.is_relative_to(line.split()[1])]
        _, kind = max(holding, key=lambda each: len(each[0]))
        if kind in _NETWORK_DISKS:
            raise ConfigError(
                f"state folder {folder}: expected a local disk, got {kind}, where a killed node "
                "can lose what it has acknowledged; give a local folder or a block volume"
            )
