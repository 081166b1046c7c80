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


@pytest.mark.process
@pytest.mark.parametrize("status", [0, 1])
def test_make_shows_what_it_installs_and_fails_where_pip_does(tmp_path: Path, status: int) -> None:
    python = tmp_path / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(
        f"""#!/bin/sh
echo 'Collecting torch==2.13.0 (from medserve)'
echo '  Downloading torch-2.13.0-cp311-manylinux.whl (532.1 MB)'
echo 'Requirement already satisfied: pip'
echo 'Processing /wheels/openvino-2026.4.1-cp311.whl (from medserve)'
echo 'Collecting numpy==2.4.6 (from medserve)'
echo '  Downloading numpy-2.4.6.whl (16.6 MB)'
echo 'Installing collected packages: numpy, torch'
echo 'pip is unhappy' >&2
exit {status}
""",
        encoding="utf-8",
    )
    python.chmod(0o755)
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    make = ["make", "--no-print-directory", ".venv/serve"]  # which a make around it would print
    run = subprocess.run(make, cwd=tmp_path, capture_output=True, text=True)
    assert run.stdout.splitlines()[-6:] == [
        "Installing into .venv what serves the models:",
        "    1 torch==2.13.0",
        "      downloading (532.1 MB)",
        "    2 openvino-2026.4.1-cp311.whl",
        "    3 numpy==2.4.6",
        "      installing what was collected",
    ]
    assert "pip is unhappy" in run.stderr
    assert (run.returncode == 0) == (status == 0)
