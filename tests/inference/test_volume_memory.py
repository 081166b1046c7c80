"""The memory of a call, as it was foretold and as numpy then took it."""

from __future__ import annotations

import tracemalloc

import numpy as np
import numpy.typing as npt
import pytest

from medserve.imaging.volume import Volume
from medserve.inference import volume_memory
from medserve.inference.volume_pipeline import VolumeSettings
from tests.inference.test_volume_pipeline import half, phantom, pipeline
from tests.volume_phantoms import oblique

PLAIN = VolumeSettings()
ALL = VolumeSettings(
    largest_component=True, fill_holes=True, probabilities=True, entropy=True, flips=True
)


@pytest.mark.parametrize("spacing_mm", [(1.0, 1.0, 1.0), (0.7, 0.7, 2.0), (1.6, 1.5, 1.4)])
@pytest.mark.parametrize("options", [PLAIN, ALL])
@pytest.mark.parametrize("kind", ["none", "otsu"])
@pytest.mark.parametrize("dtype", [np.int16, np.float64])
def test_a_call_takes_no_more_than_was_foretold(
    spacing_mm: tuple[float, float, float],
    options: VolumeSettings,
    kind: str,
    dtype: npt.DTypeLike,
) -> None:
    bright = phantom(oblique((72, 64, 56), spacing_mm))
    volume = Volume((bright.array * 100).astype(dtype), bright.geometry)
    own = pipeline(roi={"kind": kind}, network_bytes=0)
    foretold = volume_memory.peak_bytes(
        own.spec, volume.geometry, volume.array.dtype.itemsize, options
    )
    own.segment(own.prepare(volume, options), half, options)  # what is imported late, is now
    tracemalloc.start()
    try:
        prepared = own.prepare(volume, options)
        own.segment(prepared, half, options)
        taken = tracemalloc.get_traced_memory()[1] + volume.array.nbytes
    finally:
        tracemalloc.stop()
    assert taken <= foretold
    if kind == "none":  # a region counts as the whole volume: how large it is shows too late
        assert foretold < 5 * taken  # or it would refuse what fits
