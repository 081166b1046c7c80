"""The wheel: what is in it, and that it installs where there is no network."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from medserve import __version__

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.clone
@pytest.mark.timeout(600)
def test_the_wheel_installs_from_a_wheelhouse_without_a_network(tmp_path: Path) -> None:
    clean = {key: value for key, value in os.environ.items() if key not in ("MAKEFLAGS", "MFLAGS")}
    clean.pop("PYTHONPATH", None)
    # the environment that runs this test is left as it is
    make = ["make", "--old-file=.venv/web", "wheelhouse", f"DIST={tmp_path}", "EXTRAS="]
    run = subprocess.run(make, cwd=ROOT, env=clean, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "PASSED" in run.stdout
    [wheel] = tmp_path.glob("medserve-*.whl")
    with zipfile.ZipFile(wheel) as content:
        names = content.namelist()
    for part in (
        "medserve/py.typed",
        "medserve/archive/handlers/",
        "medserve/gateway/faces/page/static/vendor/niivue",
    ):
        assert any(name.startswith(part) for name in names), part
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    install = [str(tmp_path / "venv/bin/pip"), "install", "--quiet", "--no-index"]
    install += ["--find-links", str(tmp_path / "wheelhouse"), "medserve"]
    subprocess.run(install, check=True, env=clean | {"PIP_NO_INDEX": "1"})
    program = str(tmp_path / "venv/bin/medserve")
    run = subprocess.run([program, "--version"], env=clean, capture_output=True, text=True)
    assert __version__ in run.stdout, run.stderr
    start = "import sys, medserve.client; assert 'torch' not in sys.modules"
    python = str(tmp_path / "venv/bin/python")
    subprocess.run([python, "-c", start], check=True, cwd=tmp_path, env=clean)


def test_pages_install_the_wheel_that_make_dist_builds() -> None:
    wheel = f"dist/medserve-{__version__}-py3-none-any.whl"
    for page in ("docs/call/python.md", "docs/run/dicom.md"):
        text = (ROOT / page).read_text(encoding="utf-8")
        assert wheel in text
        assert "pip install medserve\n" not in text  # the index does not have it
