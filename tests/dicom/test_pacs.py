"""A real archive sends to a node, and gets back what the node made."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import highdicom
import numpy as np
import pytest
from pydicom import dcmread

from tests.dicom.series import SECRETS

pytestmark = pytest.mark.pacs

_UNSHARE = ["unshare", "--net"]


@pytest.fixture
def namespace() -> list[str]:
    """Return the command that gives a process a network of its own; skip where there is none."""
    for program in ("Orthanc", "storescu", "unshare"):
        if shutil.which(program) is None:
            pytest.skip(f"needs {program}; apt-get install orthanc orthanc-dicomweb dcmtk")
    if subprocess.run([*_UNSHARE, "true"], capture_output=True).returncode:
        pytest.skip("needs the right to make a network namespace")
    return _UNSHARE


def play(namespace: list[str], folder: Path, way: str) -> dict[str, Any]:
    """Return what the scenario found, which runs in a network of its own."""
    done = subprocess.run(
        [*namespace, sys.executable, "-m", "tests.dicom.pacs_scenario", str(folder), way],
        capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("way", ["c-store", "stow"])
def test_a_study_comes_back_with_its_results_once(
    namespace: list[str], tmp_path: Path, way: str
) -> None:
    found = play(namespace, tmp_path, way)
    # The archive forwards its results to the node, which answers none of them.
    assert found["modalities"] == {"MR": 9, "SEG": 1, "SR": 1}
    assert found["pulled"] == 11
    assert found["patient"] == "S1-1"
    assert not [secret for secret in SECRETS if secret in found["log"]]
    seg = highdicom.seg.segread(tmp_path / "SEG.dcm")
    array = np.asarray(seg.get_volume(combine_segments=True).array)
    assert [(array == label).sum() for label in (1, 2)] == [12, 16]


def test_a_research_archive_gets_nothing_of_a_person(namespace: list[str], tmp_path: Path) -> None:
    found = play(namespace, tmp_path, "research")
    # The archive forwards copies and results to the node, which answers none of them.
    assert found["modalities"] == {"MR": 9, "SEG": 1, "SR": 1}
    assert found["pulled"] == 11
    sources = [dcmread(each) for each in sorted((tmp_path / "study").iterdir())]
    told = {str(element.value) for each in sources for element in each
            if element.VR in ("PN", "LO", "UI", "DA", "TM") and element.value
            and element.keyword != "SOPClassUID"}  # fmt: skip
    assert len(told) > 10
    for where in ("tags", "archive_log", "log", "patient"):
        assert [each for each in told if each in found[where]] == []


def test_an_archive_sends_to_the_dicomweb_face_finds_and_fetches(
    namespace: list[str], tmp_path: Path
) -> None:
    done = subprocess.run(
        [*namespace, sys.executable, "-m", "tests.dicom.pacs_web_scenario", str(tmp_path)],
        capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found == {"taken": 9, "found": [[1]], "empty": 0, "sent": True}


def test_a_manifest_names_studies_of_an_archive(namespace: list[str], tmp_path: Path) -> None:
    done = subprocess.run(
        [*namespace, sys.executable, "-m", "tests.dicom.pacs_batch_scenario", str(tmp_path)],
        capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.splitlines()[-1]) == {
        "counts": {"answered": 2, "failed": 1},
        "repeated": {"kept": 2, "failed": 1},
        "changed": {"kept": 1, "answered": 1, "failed": 1},
        "slices": [4, 9],
        "grown": [5],
        "whole": True,
    }
