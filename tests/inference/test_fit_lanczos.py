"""Frames of cells reach the network as the pictures were shrunk that it learnt from."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image as PillowImage

from handlers.blood_cell import BloodCellHandler
from medserve.errors import ConfigError
from medserve.imaging import Image
from medserve.inference.fit import fit_colour, fit_image, fit_lanczos
from medserve.spec import Fit, InputKind, InputSpec, ModelSpec, ServingSpec, Task


def smear(height: int, width: int) -> npt.NDArray[np.uint8]:
    """A dark disc with fine granules on a cream ground (H, W, 3)."""
    rows, columns = np.mgrid[0:height, 0:width].astype(np.float64)
    inside = np.hypot(rows - height / 2, columns - width / 2) < height / 6
    granules = 40.0 * np.sin(rows / 2.0) * np.sin(columns / 2.0)
    picture = np.where(inside[..., None], np.array([90.0, 50.0, 130.0]), [250.0, 225.0, 200.0])
    return np.clip(picture + granules[..., None] * inside[..., None], 0, 255).astype(np.uint8)


def test_a_large_frame_is_shrunk_as_pillow_shrinks_bytes_by_lanczos() -> None:
    picture = smear(360, 360)
    expected = PillowImage.fromarray(picture).resize((128, 128), PillowImage.Resampling.LANCZOS)
    fitted = fit_lanczos(Image(picture.astype(np.float32) / np.float32(255)), (128, 128))
    difference = 255.0 * fitted.transpose(1, 2, 0) - np.asarray(expected, dtype=np.float32)
    assert np.abs(difference).mean() < 0.5  # bytes are rounded and cut after each of two passes
    assert np.quantile(np.abs(difference), 0.99) < 2.0


def test_granules_keep_more_contrast_than_by_the_smoother_filter() -> None:
    image = Image(smear(360, 360).astype(np.float32) / np.float32(255))
    middle = (slice(None), slice(50, 78), slice(50, 78))
    sharp, smooth = fit_lanczos(image, (128, 128))[middle], fit_colour(image, (128, 128))[middle]
    assert sharp.std() > 1.05 * smooth.std()


def test_intensities_stay_in_the_unit_interval_where_lanczos_overshoots() -> None:
    edge = np.zeros((300, 300, 3), np.float32)
    edge[:, 150:] = 1.0
    fitted = fit_lanczos(Image(edge), (128, 128))
    assert (float(fitted.min()), float(fitted.max())) == (0.0, 1.0)


def test_a_frame_of_the_size_passes_unchanged() -> None:
    picture = smear(128, 128).astype(np.float32) / np.float32(255)
    np.testing.assert_array_equal(
        fit_lanczos(Image(picture), (128, 128)), picture.transpose(2, 0, 1)
    )


def test_proportions_are_kept() -> None:
    fitted = fit_lanczos(Image(np.ones((180, 360, 3), np.float32)), (128, 128))
    assert (fitted[:, 32:96] > 0.99).all()
    assert (fitted[:, :32] == 0.0).all()


def test_a_grey_picture_has_three_equal_channels() -> None:
    grey = smear(256, 256)[..., 0].astype(np.float32) / np.float32(255)
    fitted = fit_lanczos(Image(grey), (128, 128))
    assert fitted.shape == (3, 128, 128)
    np.testing.assert_array_equal(fitted[0], fitted[2])


@pytest.mark.parametrize(("fit", "channels"), [(Fit.GREY, 3), (Fit.COLOUR, 1), (Fit.LANCZOS, 1)])
def test_a_fit_with_other_channels_than_the_network_is_refused(fit: Fit, channels: int) -> None:
    spec = InputSpec(kinds=(InputKind.RASTER,), size=(8, 8), channels=channels, fit=fit)
    with pytest.raises(ConfigError, match=f"input.fit {fit} gives"):
        fit_image(Image(np.ones((8, 8), np.float32)), spec)


def test_the_handler_fits_frames_to_the_network() -> None:
    spec = ModelSpec(
        name="blood_cell",
        version="1.0",
        title="Cells",
        task=Task.CLASSIFICATION,
        labels=("a", "b"),
        input=InputSpec(kinds=(InputKind.RASTER,), size=(128, 128), channels=3, fit=Fit.LANCZOS),
        serving=ServingSpec(min_workers=1, max_workers=1),
    )
    handler = BloodCellHandler()
    handler.spec = spec
    image = Image(smear(363, 360).astype(np.float32) / np.float32(255))
    row = handler.to_network(image)
    assert row.shape == (3, 128, 128)
    np.testing.assert_array_equal(row, fit_lanczos(image, (128, 128)))
