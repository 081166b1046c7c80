"""Where the public training data lie, for the tests marked `data`."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def medserve_data() -> Path:
    """The folder of archives that MEDSERVE_DATA names; skips where it names none."""
    folder = os.environ.get("MEDSERVE_DATA", "")
    if not folder or not (Path(folder) / "MedNIST.tar.gz").is_file():
        pytest.skip("MEDSERVE_DATA names no folder with MedNIST.tar.gz")
    return Path(folder)
