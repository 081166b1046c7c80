"""Copies of training images are told from other images, and training images stay unreadable."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from medserve.errors import ArchiveError, ConfigError
from medserve.inference.fingerprints import FINGERPRINTS_FILE, FingerprintIndex

THRESHOLD = 0.1
RAMP_CODES = [45, -127, 16, -72, -9, 48, 9, 34, 28, -12, -44, 84]  # as first computed

Images = npt.NDArray[np.uint8]


def blobs(count: int, seed: int = 0, side: int = 64, channels: int = 1) -> Images:
    """Smooth planes uint8 (N, C, side, side), each different from all others."""
    draws = np.random.default_rng(seed).random((count, 12, 3))
    rows, columns = np.mgrid[0:side, 0:side] / side
    planes = np.zeros((count, channels, side, side))
    for blob in np.moveaxis(draws, (1, 2), (0, 1))[..., None, None, None]:
        row, column, size = blob  # each (N, 1, 1, 1)
        far = (rows - row) ** 2 + (columns - column) ** 2
        planes += (0.2 + size) * np.exp(-far / (2 * (0.05 + 0.1 * size) ** 2))
    planes /= planes.max(axis=(1, 2, 3), keepdims=True)
    return np.rint(230 * planes).astype(np.uint8)


@pytest.fixture(scope="module")
def index() -> FingerprintIndex:
    return FingerprintIndex.build(blobs(200), THRESHOLD)


def test_a_training_image_is_a_copy_and_another_image_is_none(index: FingerprintIndex) -> None:
    assert index.is_copy(blobs(200)).all()
    assert not index.is_copy(blobs(200, seed=1)).any()


@pytest.mark.parametrize(
    "change",
    [
        lambda image: image[..., ::-1],
        lambda image: np.rint(0.7 * image + 40).astype(np.uint8),
        lambda image: np.clip(
            image + np.random.default_rng(2).normal(0, 8, image.shape), 0, 255
        ).astype(np.uint8),
    ],
    ids=["mirrored", "other brightness and contrast", "noisy"],
)
def test_a_changed_copy_is_still_found(index: FingerprintIndex, change: object) -> None:
    assert callable(change)
    assert index.is_copy(change(blobs(50))).all()


def test_the_distance_is_about_that_of_the_whole_thumbnails(index: FingerprintIndex) -> None:
    def vectors(images: Images) -> npt.NDArray[np.float64]:
        small = images.reshape(len(images), 16, 4, 16, 4).mean(axis=(2, 4)).reshape(len(images), -1)
        small -= small.mean(axis=1, keepdims=True)
        return np.asarray(small / np.linalg.norm(small, axis=1, keepdims=True))

    asked = blobs(100, seed=3)
    exact = np.minimum.reduce(
        [
            np.linalg.norm(vectors(seen)[:, None] - vectors(blobs(200))[None], axis=2).min(axis=1)
            for seen in (asked, asked[..., ::-1])
        ]
    )
    ratio = index.nearest(asked) / exact
    assert np.median(ratio) == pytest.approx(1, abs=0.15)
    assert ratio.min() > 0.5
    assert ratio.max() < 1.5


def test_the_same_picture_at_another_size_or_in_colour_is_a_copy(index: FingerprintIndex) -> None:
    large = blobs(20).repeat(3, axis=2).repeat(3, axis=3)
    assert index.is_copy(large).all()
    assert index.is_copy(blobs(20).repeat(3, axis=1)).all()


def test_sides_that_16_does_not_divide_are_averaged_by_area() -> None:
    picture = np.tile(np.linspace(0, 255, 50), (50, 1)).astype(np.uint8)[None, None]
    index = FingerprintIndex.build(picture, THRESHOLD)
    ramp = np.tile(np.linspace(0, 255, 400), (400, 1)).astype(np.uint8)[None, None]
    assert index.nearest(ramp)[0] < 0.02


def test_a_blank_image_is_nobodys_copy(index: FingerprintIndex) -> None:
    blank = np.full((1, 1, 64, 64), 7, dtype=np.uint8)
    assert index.nearest(blank)[0] == np.inf
    assert not FingerprintIndex.build(blank, THRESHOLD).is_copy(blank).any()


def test_an_image_holds_far_less_than_its_picture(index: FingerprintIndex, tmp_path: Path) -> None:
    index.save(tmp_path / FINGERPRINTS_FILE)
    size = (tmp_path / FINGERPRINTS_FILE).stat().st_size
    assert index.codes.shape == (200, 64)
    assert size < 200 * 64 + 2000  # 64 bytes an image, of 4096


def test_what_is_saved_is_loaded_and_the_same_images_give_the_same_bytes(
    index: FingerprintIndex, tmp_path: Path
) -> None:
    for name in ("one.npz", "two.npz"):
        FingerprintIndex.build(blobs(200), THRESHOLD).save(tmp_path / name)
    loaded = FingerprintIndex.load(tmp_path / "one.npz")
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "two.npz").read_bytes()
    assert loaded.threshold == THRESHOLD
    asked = blobs(10, seed=4)
    np.testing.assert_array_equal(loaded.nearest(asked), index.nearest(asked))


def test_the_projection_is_the_same_on_every_machine() -> None:
    ramp = np.arange(64 * 64, dtype=np.uint32).reshape(1, 1, 64, 64) * 255 // 4095
    codes = FingerprintIndex.build(ramp.astype(np.uint8), THRESHOLD).codes
    assert codes[0, :12].tolist() == RAMP_CODES


def test_no_images_make_no_comparison(index: FingerprintIndex) -> None:
    assert index.nearest(blobs(0)).shape == (0,)


@pytest.mark.parametrize("spoil", ["missing", "cut", "other"])
def test_a_file_that_holds_no_fingerprints_is_refused_by_name(
    index: FingerprintIndex, tmp_path: Path, spoil: str
) -> None:
    path = tmp_path / FINGERPRINTS_FILE
    if spoil == "cut":
        index.save(path)
        path.write_bytes(path.read_bytes()[:500])
    elif spoil == "other":
        np.savez(path, codes=np.zeros((3, 5), np.int8), scale=1.0, threshold=0.1, format=1)
    with pytest.raises(ArchiveError, match=r"fingerprints\.npz"):
        FingerprintIndex.load(path)


def test_no_images_or_no_threshold_make_no_index() -> None:
    with pytest.raises(ConfigError, match=r"got 0 and 0\.1"):
        FingerprintIndex.build(blobs(0), THRESHOLD)
    with pytest.raises(ConfigError, match="got 3 and 0"):
        FingerprintIndex.build(blobs(3), 0.0)


def test_images_smaller_than_a_thumbnail_are_refused() -> None:
    with pytest.raises(ConfigError, match="at least 16 pixels"):
        FingerprintIndex.build(blobs(3, side=12), THRESHOLD)
