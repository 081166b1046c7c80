"""docs/build/frames-walk.md, command for command: from raw frames to a mask of a server."""

from __future__ import annotations

import contextlib
import csv
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.pages import blocks
from tests.walking import Walk, skip_if_taken
from training.frames.scores import compare_frame

pytest.importorskip("segmentation_models_pytorch", reason="needs the extra `train`")

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs/build/frames-walk.md"
SERVE = "medserve serve"


@pytest.fixture(scope="module")
def walked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The copy of the checkout after the last command of the page."""
    skip_if_taken()
    walk = Walk(tmp_path_factory.mktemp("walk"), ("annotation", "simulation"))
    with contextlib.ExitStack() as running:
        for block in blocks(PAGE, "bash"):
            if block.startswith(SERVE):
                running.enter_context(walk.serving(block))
            else:
                walk.run(block)
        yield walk.folder


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
