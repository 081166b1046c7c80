"""What all tests share: their tiers, their spread over processes, the servers started once."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest_plugins = ("tests.tiers", "tests.spread", "tests.servers")


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A new folder with a short name: TMPDIR of a TorchServe, whose sockets take few bytes."""
    with tempfile.TemporaryDirectory(prefix="ms-") as folder:
        yield Path(folder)
