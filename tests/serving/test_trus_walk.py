"""docs/build/frames-walk.md, command for command: from raw frames to a mask of a server."""

from __future__ import annotations

import csv
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.pages import blocks, listens
from training.frames.scores import compare_frame

pytest.importorskip("segmentation_models_pytorch", reason="needs the extra `train`")

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs/build/frames-walk.md"
SERVE = "medserve serve"
PORTS = (7070, 7071, 8000, 8001, 8002, 8082)


class Walk:
    """The page's shell blocks, run in a copy of the checkout, whose `models/` they write into."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("annotation", "handlers", "medserve", "models", "simulation", "training"):
            shutil.copytree(ROOT / name, folder / name)
        here = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self.environment = os.environ | {"PATH": here, "PYTHONPATH": str(folder)}

    def run(self, block: str) -> str:
        """What the block prints; it must succeed."""
        done = subprocess.run(
            ["bash", "-e", "-c", block], cwd=self.folder, env=self.environment,
            capture_output=True, text=True, timeout=1800, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{block}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
        return done.stdout

    def start(self, block: str) -> subprocess.Popen[bytes]:
        """The server, once it says that it is ready."""
        ready = self.folder / "ready.json"
        server = subprocess.Popen(
            ["bash", "-c", f"exec {block.strip()} --ready-file {ready}"],
            cwd=self.folder, env=self.environment, start_new_session=True,
        )  # fmt: skip
        deadline = time.monotonic() + 180
        while not ready.is_file():
            assert server.poll() is None, "the server ended"
            assert time.monotonic() < deadline, "the server was not ready in time"
            time.sleep(0.5)
        return server


@pytest.fixture(scope="module")
def walked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The copy of the checkout after the last command of the page."""
    for port in PORTS:
        if listens(port):
            pytest.skip(f"port {port}, which the page's server uses, is taken")
    walk = Walk(tmp_path_factory.mktemp("walk"))
    server: subprocess.Popen[bytes] | None = None
    try:
        for block in blocks(PAGE, "bash"):
            if block.startswith(SERVE):
                server = walk.start(block)
            else:
                walk.run(block)
        yield walk.folder
    finally:
        if server is not None:
            os.killpg(server.pid, signal.SIGTERM)
            server.wait(timeout=60)


@pytest.mark.walk
def test_the_walk_ends_with_a_mask_and_an_overlay_for_every_loop(walked: Path) -> None:
    loops = sorted((walked / "work" / "raw" / "raw").iterdir())
    assert len(loops) == 16
    for loop in loops:
        for ending in ("_mask.nii.gz", "_overlay.png"):
            assert (walked / "work" / "masks" / f"{loop.stem}{ending}").is_file()
    with (walked / "work" / "masks" / "files.csv").open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 16
    assert not any(row["error"] for row in rows)


@pytest.mark.walk
def test_what_was_trained_on_the_way_finds_the_gland(walked: Path) -> None:
    """Most pixels of a loop's middle frame, of patients that the network was trained on or not."""
    import nibabel

    dices = []
    for truth in sorted((walked / "work" / "raw" / "truth").iterdir()):
        reference = (np.asarray(Image.open(truth / "0002.png")) > 0).astype(np.uint8)
        volume = nibabel.Nifti1Image.from_filename(
            walked / "work" / "masks" / f"{truth.name}_mask.nii.gz"
        )
        mask = np.asarray(volume.dataobj)[:, :, 2].T.astype(np.uint8)
        assert mask.shape == reference.shape
        dices.append(compare_frame("0002", truth.name, mask, reference).dice)
    assert float(np.median(dices)) > 0.7


@pytest.mark.walk
def test_the_archive_is_the_variant_and_carries_its_card(walked: Path) -> None:
    [archive] = (walked / "work" / "store").glob("*.mar")
    assert archive.name == "trus_prostate-0.1-clinic.mar"
    weights = walked / "models" / "trus_prostate" / "variants" / "clinic" / "weights"
    assert (weights / "metrics.json").is_file()
