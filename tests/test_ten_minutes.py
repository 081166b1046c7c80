"""docs/start/ten-minutes.md, command for command, from a built wheel in an empty environment."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from medserve.imaging.codecs import nifti
from tests.pages import blocks, listens

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs/start/ten-minutes.md"
_PORTS = (7070, 8000, 8001)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package as it is published."""
    folder = tmp_path_factory.mktemp("dist")
    command = ["pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(ROOT)]
    subprocess.run([sys.executable, "-m", *command], check=True)
    [built] = folder.glob("medserve-*.whl")
    return built


@pytest.fixture
def environment(wheel: Path) -> dict[str, str]:
    """A shell's, without this environment and with the wheel beside what the index has."""
    here = {str(Path(sys.executable).parent), str(Path(sys.prefix) / "bin")}
    path = [each for each in os.environ["PATH"].split(os.pathsep) if each not in here]
    kept = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("MEDSERVE_", "PYTHON", "VIRTUAL_ENV"))
    }
    return kept | {
        "PATH": os.pathsep.join(path),
        "PIP_CONSTRAINT": str(ROOT / "constraints.txt"),
        "PIP_FIND_LINKS": f"{os.environ.get('PIP_FIND_LINKS', '')} {wheel.parent}".strip(),
    }


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A reader's empty folder, in which the page's description was saved."""
    folder = tmp_path / "reader"
    folder.mkdir()
    shutil.copy(ROOT / "docs/build/specs/deepbet_first_stage.yaml", folder / "brain.yaml")
    yield folder
    shutil.rmtree(folder)  # an environment of two gigabytes


@pytest.mark.clone
@pytest.mark.timeout(900)  # installs everything from nothing
def test_a_stranger_comes_from_an_empty_folder_to_a_mask(
    environment: dict[str, str], folder: Path
) -> None:
    datasets = pytest.importorskip(
        "nilearn.datasets", reason="nilearn is not installed; .ci/run installs it"
    )
    if shutil.which("python3.11", path=environment["PATH"]) is None:
        pytest.skip("needs python3.11 beside the environment of the tests")
    if taken := [port for port in _PORTS if listens(port)]:
        pytest.skip(f"something listens on {taken}, the ports that the page uses")
    [example] = blocks(PAGE, "python")
    (folder / "example.py").write_text(example, encoding="utf-8")
    script = "trap 'kill $(jobs -p) 2> /dev/null; wait' EXIT\n" + "".join(blocks(PAGE, "bash"))
    shell = subprocess.Popen(
        ["bash", "-e", "-c", script + "python example.py\n"],
        cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip
    try:
        said, _ = shell.communicate(timeout=700)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(shell.pid, signal.SIGTERM)
    log = folder / "serve.log"
    assert shell.returncode == 0, f"{said}\n{log.read_text()[-1500:] if log.exists() else ''}"
    for written in ("tried/overlay.png", "masks/t1_overlay.png", "masks/volumes.csv"):
        assert (folder / written).stat().st_size
    mask = nifti.decode((folder / "masks/t1_mask.nii.gz").read_bytes())
    image = nifti.decode((folder / "t1.nii.gz").read_bytes())
    np.testing.assert_array_equal(mask.geometry.affine, image.geometry.affine)
    reference = datasets.load_mni152_brain_mask(resolution=1)
    np.testing.assert_array_equal(mask.geometry.affine, reference.affine)
    brain = np.asarray(reference.dataobj) > 0
    dice = 2 * np.sum(brain & (mask.array > 0)) / (brain.sum() + (mask.array > 0).sum())
    assert dice >= 0.98
    assert "{'brain': " in said
