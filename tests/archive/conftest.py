"""One archive of the fixture room for all tests of packaging."""

from __future__ import annotations

from pathlib import Path

import pytest

from medserve.archive.build import build_archive
from tests.tiny_room import make_checkout


@pytest.fixture(scope="session")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout whose only room is `tiny`."""
    pytest.importorskip("model_archiver", reason="needs the serve extra")
    return make_checkout(tmp_path_factory.mktemp("checkout"))


@pytest.fixture(scope="session")
def archive(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The archive of `tiny` 1.0."""
    return build_archive("tiny", tmp_path_factory.mktemp("store"), checkout)
