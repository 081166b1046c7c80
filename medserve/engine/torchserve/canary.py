"""The request by which a model proves itself: its archive's golden input, sent like any other."""

from __future__ import annotations

from pathlib import Path

from medserve.archive.read import golden_input
from medserve.spec import Task

__all__ = ["canary_inputs"]


def canary_inputs(archive: Path, task: Task) -> dict[str, bytes]:
    """What to send: a file, or the parameters of one answer where a model takes no file."""
    key = "params" if task is Task.GENERATION else "data"
    return {key: golden_input(archive), "transport": b"grpc"}
