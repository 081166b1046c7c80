"""Archives for the tests of packaging: built once, and altered copies of them."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path

__all__ = ["Members", "members", "repacked"]

Members = dict[str, bytes]


def members(path: Path) -> Members:
    """Content by name."""
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def repacked(archive: Path, target: Path, change: Callable[[Members], object]) -> Path:
    """A copy of the archive with changed members and a valid zip around them."""
    content = members(archive)
    change(content)
    with zipfile.ZipFile(target, "w") as changed:
        for name, value in content.items():
            changed.writestr(name, value)
    return target
