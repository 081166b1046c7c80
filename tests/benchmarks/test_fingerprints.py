"""The measurement of fingerprints tells copies that are still known from those that are not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from benchmarks.fingerprints import known_shares, main


def waves(count: int) -> npt.NDArray[np.uint8]:
    """Planes of a few waves, uint8 (N, 1, 64, 64), each different from all others."""
    draws = np.random.default_rng(0)
    rows, columns = np.mgrid[0:64, 0:64] / 64
    planes = np.zeros((count, 64, 64))
    for _ in range(8):
        row, column, phase = draws.uniform(0, 12, (3, count, 1, 1))
        planes += np.sin(row * rows + column * columns + phase)
    return np.rint(127.5 + 15 * planes).clip(0, 255).astype(np.uint8)[:, None]


@pytest.mark.cpu
def test_unchanged_images_are_known_and_turned_ones_are_not() -> None:
    shares = known_shares(waves(300))
    assert shares["unchanged"] == shares["mirrored"] == 1.0
    assert shares["noise of 4 grey levels"] > shares["turned by 3 degrees"]


def test_a_folder_gives_a_table_of_every_change(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for place, plane in enumerate(waves(40)):
        Image.fromarray(plane[0]).save(tmp_path / f"{place}.png")
    (tmp_path / "notes.txt").write_text("no image")
    main(["--data-dir", str(tmp_path)])
    shown = capsys.readouterr().out
    assert "40 images" in shown
    assert "unchanged" in shown


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="at least 20 images"):
        main(["--data-dir", str(tmp_path)])
