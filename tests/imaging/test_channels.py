"""Several images of one case: in one file, or one file each."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medserve.errors import InvalidImageError, InvalidRequestError
from medserve.imaging.codecs import nifti
from medserve.imaging.codecs.channels import decode_channels
from medserve.imaging.codecs.volume_file import ReadOptions
from medserve.imaging.geometry import Geometry
from medserve.imaging.volume import Volume, VolumeLimits
from medserve.spec import InputKind
from tests.volume_phantoms import geometries, ramp

_NAMES = ("t1", "flair", "t2")


def _decoded(payloads: list[bytes], channel: int | None = None) -> tuple[Volume, ...]:
    return decode_channels(
        payloads, _NAMES, [InputKind.NIFTI], VolumeLimits(), ReadOptions(channel)
    )


@settings(deadline=None)
@given(geometry=geometries(), count=st.integers(1, 5))
def test_channels_keep_their_order_in_one_file_as_in_several(
    geometry: Geometry, count: int
) -> None:
    images = [ramp(geometry, np.float32).array + 1000 * n for n in range(count)]
    files = [nifti.encode(Volume(each, geometry)) for each in images]
    whole = nifti.encode_maps(np.stack(images), ["x"] * count, Volume(images[0], geometry))
    if count != len(_NAMES):
        for payloads in (files, [whole]):
            with pytest.raises(InvalidImageError, match=f"expected 3 images .* got {count}"):
                _decoded(payloads)
        return
    for payloads in (files, [whole]):
        for found, image in zip(_decoded(payloads), images, strict=True):
            np.testing.assert_array_equal(found.array, image)


def test_one_channel_cannot_be_chosen_of_all() -> None:
    with pytest.raises(InvalidRequestError, match="sees all of t1, flair, t2"):
        _decoded([b""], channel=1)
