"""The request by which a model proves itself: its archive's golden input, sent like any other."""

from __future__ import annotations

from medserve.archive import ArchiveInfo, golden_input
from medserve.spec import Task

__all__ = ["canary_inputs"]


def canary_inputs(archive: ArchiveInfo) -> dict[str, bytes]:
    """What to send: a file, or the parameters of one answer where a model takes no file."""
    key = "params" if archive.spec.task is Task.GENERATION else "data"
    return {key: golden_input(archive.path), "transport": b"grpc"}
