"""A room for volumes as an archive: what its code needs beyond that of an image model."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from medserve.archive.build import build_archive
from medserve.archive.read import verify_archive
from tests.tiny_volume_room import make_volume_checkout

pytestmark = pytest.mark.process


def test_the_archive_names_what_its_volumes_need(tmp_path: Path) -> None:
    pytest.importorskip("model_archiver", reason="needs the serve extra")
    checkout = make_volume_checkout(tmp_path / "checkout")
    archive = build_archive("tiny_volume", tmp_path / "store", checkout)
    info = verify_archive(archive)
    assert info.spec.volume is not None
    assert info.spec.volume.snomed["dim"].kind.value == "5366008"
    with zipfile.ZipFile(archive) as packed:
        required = packed.read("requirements.txt").decode()
        members = set(packed.namelist())
    for library in ("highdicom==", "nibabel==", "scipy==", "numpy=="):
        assert library in required
    for code in (
        "handlers/volumes.py",
        "medserve/spec/volumes.py",
        "medserve/inference/volume_pipeline.py",
    ):
        assert code in members
