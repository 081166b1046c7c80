"""docs/run/dicom-walk.md, command for command, on a loopback of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.archives import packaged
from tests.dicom.test_pacs import namespace
from tests.pages import blocks

__all__ = ["namespace"]  # a fixture

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs/run/dicom-walk.md"
VIEWER = ROOT / "build/ohif/ohif-app-3.13.2.tgz"  # `.ci/run` fetches it from npm
_INSIDE = """
import os, sys
from tests.dicom.pacs_scenario import raise_loopback
raise_loopback()
os.execvp("bash", ["bash", "-e", "-c", sys.argv[1]])
"""


@pytest.mark.pacs
def test_the_walk_ends_with_a_segmentation_and_a_report_in_the_archive(
    namespace: list[str], engine_installed: None, short_path: Path
) -> None:
    packaged("segmentation_3d", short_path / "model_store")
    (short_path / "models").symlink_to(ROOT / "models")
    has_viewer = VIEWER.is_file()
    if has_viewer:  # the walk is alone on its loopback: what npm would fetch is here already
        npm = short_path / "npm"
        npm.write_text(f"#!/bin/sh\ncp '{VIEWER}' .\n")
        npm.chmod(0o755)
    path = os.pathsep.join([str(short_path), str(Path(sys.executable).parent), os.environ["PATH"]])
    commands = [each for each in blocks(PAGE, "bash") if has_viewer or "npm pack" not in each]
    script = "trap 'kill $(jobs -p) 2> /dev/null || true' EXIT\n" + "".join(commands)
    done = subprocess.run(
        [*namespace, sys.executable, "-c", _INSIDE, script],
        cwd=short_path, env=os.environ | {"PATH": path, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=400,
    )  # fmt: skip
    logs = "".join(each.read_text()[-1500:] for each in sorted(short_path.rglob("*.log")))
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr[-1500:]}\n{logs}"
    assert "PACS@127.0.0.1:4242 answers" in done.stdout
    assert "1 answered" in done.stdout
    for modality in ("MR", "SEG", "SR"):
        assert f'"Modality" : "{modality}"' in done.stdout
    if has_viewer:  # through the viewer's own address the one study is found
        assert "1" in done.stdout.splitlines()
    assert "Try^It" not in (short_path / "dicom-try/node.log").read_text()
