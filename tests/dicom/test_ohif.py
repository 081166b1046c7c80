"""What people see of a segmentation in OHIF: its labelmap, voxel for voxel."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.dicom.test_pacs import namespace

__all__ = ["namespace"]  # a fixture

# `.ci/run` fetches it from npm.
DIST = Path(__file__).resolve().parents[2] / "build/ohif/package/dist"


@pytest.mark.pacs
def test_the_labelmap_of_ohif_is_the_mask_in_every_image(
    namespace: list[str], tmp_path: Path
) -> None:
    if not DIST.is_dir():
        pytest.skip(f"needs @ohif/app of npm, unpacked in {DIST.parents[1]}")
    if importlib.util.find_spec("playwright") is None or shutil.which("chromium") is None:
        pytest.skip("needs Playwright and Chromium (Debian's package chromium)")
    done = subprocess.run(
        [*namespace, sys.executable, "-m", "tests.dicom.ohif_scenario", str(tmp_path), str(DIST)],
        capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    seen = json.loads(done.stdout.splitlines()[-1])
    # Of each case the images, and the voxels that are not the mask's.
    assert seen == {each: [9, 0] for each in ("oblique", "flipped", "enhanced", "label-map")}
