"""Which files a command works on, and how their names are shown."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from medserve.errors import ConfigError

__all__ = ["STDIN", "find_files", "shown", "walk"]

STDIN = Path("-")


def find_files(paths: Iterable[Path]) -> list[Path]:
    """Named files (and `-`) as they are, folders walked; in the order given.

    Raises:
        ConfigError: a path does not exist, or there is no file at all.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            found += walk(path)
        elif path == STDIN or path.exists():
            found.append(path)
        else:
            raise ConfigError(f"expected an existing file or folder, got {shown(str(path))}")
    if not found:
        raise ConfigError("expected at least one file, the given folders hold none")
    return found


def walk(folder: Path, *, without: Path | None = None) -> Iterator[Path]:
    """All files under a folder, sorted, without hidden ones and without the folder `without`.

    A link counts if it leads to a file inside the folder; links to folders are not followed.

    Raises:
        ConfigError: a folder cannot be read, so that files would be missed.
    """
    root = folder.resolve()
    excluded = None if without is None else without.resolve()
    for current, folders, names in os.walk(folder, onerror=_refuse):
        here = Path(current)
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith(".") and (here / name).resolve() != excluded
        )
        for name in sorted(names):
            path = here / name
            if not name.startswith(".") and _is_ours(path, root):
                yield path


def _refuse(error: OSError) -> None:
    raise ConfigError(f"{shown(str(error.filename))}: {error.strerror}") from error


def _is_ours(path: Path, root: Path) -> bool:
    if path.is_symlink() and not path.resolve().is_relative_to(root):
        return False
    return path.is_file()  # neither pipe nor device nor broken link


def shown(text: str) -> str:
    """A foreign name for the terminal: nothing in it can move the cursor or change colours."""
    safe = text.encode("utf-8", "replace").decode("utf-8")
    return "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in safe)
