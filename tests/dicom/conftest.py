"""Tests of the node: associations that were broken on purpose leave sockets to the collector."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

_LEFT = (
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
)


def pytest_itemcollected(item: pytest.Item) -> None:
    """Let pynetdicom leave the sockets of broken associations to Python."""
    if "tests/dicom/" in item.path.as_posix():
        for mark in _LEFT:
            item.add_marker(mark)


@pytest.fixture(autouse=True)
def _collected(request: pytest.FixtureRequest) -> Iterator[None]:
    """Collect them before the next test, whose warnings count."""
    yield
    if any(request.node.iter_markers(name) for name in ("process", "loopback", "pacs")):
        gc.collect()
