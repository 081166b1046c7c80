from __future__ import annotations

import warnings
from pathlib import Path

import pytest

from handlers.mednist import MednistHandler
from tests.artifacts import write_artifact
from tests.handlers.worker import ready


@pytest.fixture(scope="session", autouse=True)
def torchserve_library() -> None:
    """Import what handlers import late, for TorchServe leaves a file open when it is imported."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        import ts.utils.util  # noqa: F401


@pytest.fixture(scope="session")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_artifact(tmp_path_factory.mktemp("brightness"))


@pytest.fixture(scope="session")
def handler(artifact: Path) -> MednistHandler:
    return ready(artifact)
