"""A server's private folder goes with it, even when the server was killed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from medserve.errors import ConfigError
from medserve.run_folder import RunFolder

_LONG_AGO = (1_000_000_000, 1_000_000_000)


@pytest.fixture
def parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


@pytest.fixture
def folder(parent: Path) -> Iterator[RunFolder]:
    made = RunFolder.create()
    yield made
    made.remove()


def abandoned(parent: Path) -> Path:
    """A folder whose process ended without removing it."""
    code = (
        "import tempfile; tempfile.tempdir = __import__('sys').argv[1]\n"
        "from medserve.run_folder import RunFolder; print(RunFolder.create().path)"
    )
    made = subprocess.run(
        [sys.executable, "-c", code, str(parent)], capture_output=True, text=True, check=True
    )
    return Path(made.stdout.strip())


def test_the_folder_is_closed_to_other_users(folder: RunFolder) -> None:
    assert folder.path.stat().st_mode & 0o077 == 0


def test_removing_takes_everything_and_can_be_repeated(folder: RunFolder) -> None:
    (folder.path / "tmp").mkdir()
    folder.remove()
    folder.remove()
    assert not folder.path.exists()


@pytest.mark.process
def test_the_folder_of_a_killed_server_is_taken_away_by_the_next(parent: Path) -> None:
    left = abandoned(parent)
    os.utime(left, _LONG_AGO)
    RunFolder.create().remove()
    assert not left.exists()


def test_the_folder_of_a_living_server_stays(folder: RunFolder) -> None:
    os.utime(folder.path, _LONG_AGO)
    RunFolder.create().remove()
    assert folder.path.exists()


def test_a_folder_that_is_not_ours_stays(parent: Path) -> None:
    (stranger := parent / "medserve-serve-notes").mkdir()
    os.utime(stranger, _LONG_AGO)
    RunFolder.create().remove()
    assert stranger.exists()


def test_a_named_folder_that_cannot_be_written_is_told_and_no_other_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "missing"))
    with pytest.raises(ConfigError, match="can be written"):
        RunFolder.create()
