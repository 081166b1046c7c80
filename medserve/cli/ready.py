"""The file by which a server tells other programs that it is ready, and where."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from medserve.whole_file import write_whole

__all__ = ["ReadyFile", "announced_in"]

ReadyFile = Annotated[
    Path | None, typer.Option(help="Write the addresses here (JSON) once all is ready.")
]


@contextlib.contextmanager
def announced_in(path: Path | None) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Yield what writes the addresses as JSON, whole at once and readable by all.

    The file is there no longer than the block, and one that a killed server left is removed first,
    so whoever finds it finds a server. Nothing is written where `path` is None.
    """

    def ready(addresses: dict[str, Any]) -> None:
        if path is not None:
            write_whole(path, json.dumps(addresses, indent=2).encode() + b"\n", mode=0o644)

    if path is not None:
        path.unlink(missing_ok=True)
    try:
        yield ready
    finally:
        if path is not None:
            path.unlink(missing_ok=True)
