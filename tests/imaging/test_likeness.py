"""Ultrasound told from other pictures; the rates on real frames need the training data."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image as pillow

from medserve.imaging import Image
from medserve.imaging.ultrasound_check import looks_like_ultrasound
from tests.frame_phantoms import scan


def grey(array: npt.NDArray[np.uint8]) -> Image:
    return Image(array.astype(np.float32) / np.float32(255))


def test_speckle_looks_like_ultrasound_at_any_size() -> None:
    speckle = scan(192, 256)
    for larger in (1, 2, 4):  # grain has the size of the scanner's resolution, not of a pixel
        frame = np.kron(speckle, np.ones((larger, larger), np.uint8))
        assert looks_like_ultrasound(grey(frame))
    assert looks_like_ultrasound(grey(scan(48, 64)))


def _smooth() -> Image:
    rows, columns = np.mgrid[:300, :400]
    return grey(((rows + columns) * 255 // 700).astype(np.uint8))


def _page() -> Image:
    page = np.full((300, 400), 255, np.uint8)
    page[::12, ::3] = 0
    return grey(page)


def _coloured() -> Image:
    speckle = np.repeat(scan(300, 400)[..., np.newaxis], 3, axis=2)
    speckle[..., 2] //= 3
    return Image(speckle.astype(np.float32) / np.float32(255))


def _coarse() -> Image:
    noise = np.random.default_rng(0).integers(0, 256, (300, 400))
    return grey(noise.astype(np.uint8))


def _black() -> Image:
    return Image(np.zeros((300, 400), np.float32))


@pytest.mark.parametrize("picture", [_smooth, _page, _coloured, _coarse, _black])
def test_other_pictures_do_not(picture: Callable[[], Image]) -> None:
    assert not looks_like_ultrasound(picture())


@pytest.fixture(scope="module")
def data() -> Path:
    folder = os.environ.get("MEDSERVE_DATA")
    if not folder:
        pytest.skip("MEDSERVE_DATA names no folder with the training data")
    return Path(folder)


def pictures(archive: Path, part: str, every: int) -> Iterator[Image]:
    """Every n-th picture whose path holds `part`."""
    with tarfile.open(archive) as files:
        chosen = [each for each in files if each.isfile() and part in each.name]
        for member in chosen[::every]:
            content = files.extractfile(member)
            assert content is not None
            picture = pillow.open(io.BytesIO(content.read()))
            yield grey(np.asarray(picture.convert("L" if picture.mode == "L" else "RGB")))


@pytest.mark.data
def test_real_ultrasound_is_hardly_ever_flagged(data: Path) -> None:
    frames = list(pictures(data / "US_BUSI_standin.tar.gz", "/images/", 1))
    flagged = np.mean([not looks_like_ultrasound(frame) for frame in frames])
    assert len(frames) == 622
    assert flagged <= 0.02


@pytest.mark.data
@pytest.mark.parametrize(
    ("archive", "part", "every", "least"),
    [
        ("MedNIST.tar.gz", "/", 400, 0.95),
        ("BrainMRI.tar.gz", "/", 50, 0.85),
        ("PBC_128.tar.gz", "/", 100, 1.0),
    ],
)
def test_most_other_medical_images_are_flagged(
    archive: str, part: str, every: int, least: float, data: Path
) -> None:
    flags = [
        not looks_like_ultrasound(picture) for picture in pictures(data / archive, part, every)
    ]
    assert len(flags) > 100
    assert np.mean(flags) >= least
