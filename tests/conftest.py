"""What all tests share: their tiers, their spread over processes, the servers started once."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest_plugins = ("tests.tiers", "tests.spread", "tests.servers")


@pytest.fixture
def short_path() -> Iterator[Path]:
    """Give a folder for a server's own files: a worker's socket lies in it, whose path is short."""
    with tempfile.TemporaryDirectory(prefix="m-") as folder:
        yield Path(folder)
