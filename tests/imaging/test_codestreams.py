"""A compressed frame may not state another size than its image."""

from __future__ import annotations

import numpy as np
import pytest
from pydicom.encaps import encapsulate
from pydicom.uid import UID, ExplicitVRLittleEndian, JPEG2000Lossless, JPEGBaseline8Bit

from medserve.imaging.codecs.jpeg_headers import check_codestream
from tests.phantoms import dicom_dataset, disc, raster_bytes

KINDS = [(JPEGBaseline8Bit, "JPEG", {}), (JPEG2000Lossless, "JPEG2000", {"no_jp2": True})]


@pytest.mark.parametrize(("syntax", "kind", "options"), KINDS)
def test_a_frame_of_the_stated_size_passes(
    syntax: UID, kind: str, options: dict[str, object]
) -> None:
    dataset = dicom_dataset(disc(), syntax)
    dataset.PixelData = encapsulate([raster_bytes(disc(), kind, **options)])
    check_codestream(dataset, syntax, 0)


@pytest.mark.parametrize(("syntax", "kind", "options"), KINDS)
def test_a_larger_frame_is_refused_before_it_is_decoded(
    syntax: UID, kind: str, options: dict[str, object]
) -> None:
    dataset = dicom_dataset(disc(), syntax)
    dataset.PixelData = encapsulate([raster_bytes(np.tile(disc(), (2, 3)), kind, **options)])
    with pytest.raises(ValueError, match="another size"):
        check_codestream(dataset, syntax, 0)


def test_uncompressed_pixels_have_no_header_of_their_own() -> None:
    check_codestream(dicom_dataset(disc()), ExplicitVRLittleEndian, 0)
