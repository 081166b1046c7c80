from __future__ import annotations

from pathlib import Path

import pytest

from handlers.mednist import MednistHandler
from tests.artifacts import write_artifact
from tests.handlers.worker import ready


@pytest.fixture(scope="session")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_artifact(tmp_path_factory.mktemp("brightness"))


@pytest.fixture(scope="session")
def handler(artifact: Path) -> MednistHandler:
    return ready(artifact)
