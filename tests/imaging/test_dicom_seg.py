from __future__ import annotations

import io

import highdicom
import numpy as np
import pytest
from pydicom import Dataset, dcmread

from medserve.errors import InvalidImageError, InvalidRequestError
from medserve.imaging.codecs import dicom_series
from medserve.imaging.codecs.dicom_series import DicomVolume
from medserve.imaging.geometry import Geometry
from medserve.results.files import dicom_seg
from medserve.results.segmentation import Segmentation
from medserve.spec.volumes import CodedTerm, SegmentCoding
from medserve.tasks.result import Provenance
from tests.volume_phantoms import (
    SHAPE,
    as_bytes,
    dicom_slices,
    enhanced_dicom,
    lps_affine,
    oblique,
    ramp,
    two_echoes,
    zipped,
)

LABELS = ("background", "anterior", "posterior")
HIPPOCAMPUS = CodedTerm("5366008", "Hippocampus")
CODES = {
    "anterior": SegmentCoding(HIPPOCAMPUS, CodedTerm("255549009", "Anterior")),
    "posterior": SegmentCoding(HIPPOCAMPUS, CodedTerm("255551008", "Posterior")),
}
PROVENANCE = Provenance("segmentation_3d", "1.2", "sha256:00")
VOLUME = ramp(oblique())


def _series() -> DicomVolume:
    return dicom_series.decode(zipped([as_bytes(each) for each in dicom_slices(VOLUME)]))


def _mask(geometry: Geometry) -> Segmentation:
    mask = np.zeros(geometry.shape, np.uint8)
    mask[2:7, 3:5, 1:4] = 1
    mask[8:12, 1:9, 3:6] = 2  # slices 0, 6, 7 and 8 stay empty
    return Segmentation(mask, geometry, LABELS)


def _slice_at(item: Dataset) -> int:
    """The slice of `VOLUME` at the position of a frame."""
    lps = np.array([*item.PlanePositionSequence[0].ImagePositionPatient, 1.0])
    return round(float((np.linalg.inv(lps_affine(VOLUME.geometry)) @ lps)[2]))


def _read_back(payload: bytes, geometry: Geometry) -> np.ndarray:
    """What another reader finds on our grid: (I, J, K)."""
    seg = highdicom.seg.Segmentation.from_dataset(dcmread(io.BytesIO(payload)))
    volume = seg.get_volume(combine_segments=True)
    ours = highdicom.VolumeGeometry(
        lps_affine(geometry)[:, [2, 1, 0, 3]], geometry.shape[::-1], coordinate_system="PATIENT"
    )
    return np.asarray(volume.match_geometry(ours).array).transpose(2, 1, 0)


@pytest.mark.parametrize("is_labelmap", [False, True])
@pytest.mark.parametrize("kind", ["slices", "enhanced"])
def test_another_reader_finds_the_mask_on_the_grid_of_the_source(
    kind: str, is_labelmap: bool
) -> None:
    order = [4, 0, 8, 2, 1, 3, 7, 5, 6]
    source = (
        _series()
        if kind == "slices"
        else dicom_series.decode(as_bytes(enhanced_dicom(VOLUME, order)))
    )
    segmentation = _mask(source.geometry)
    payload = dicom_seg.encode(segmentation, source, CODES, PROVENANCE, is_labelmap=is_labelmap)
    np.testing.assert_array_equal(_read_back(payload, source.geometry), segmentation.mask)


def test_a_label_map_has_one_frame_for_every_slice_and_names_the_same_segments() -> None:
    source = _series()
    segmentation = _mask(source.geometry)
    found = dcmread(
        io.BytesIO(dicom_seg.encode(segmentation, source, CODES, PROVENANCE, is_labelmap=True))
    )
    assert found.SOPClassUID == "1.2.840.10008.5.1.4.1.1.66.7"  # Label Map Segmentation Storage
    assert found.NumberOfFrames == source.geometry.shape[2]
    counts = np.bincount(found.pixel_array.ravel())
    np.testing.assert_array_equal(counts, np.bincount(segmentation.mask.ravel()))
    named = {each.SegmentNumber: each.SegmentLabel for each in found.SegmentSequence}
    assert {number: named[number] for number in (1, 2)} == {1: "anterior", 2: "posterior"}
    volumes = [f"{each.volume_ml:.2f} ml" for each in segmentation.measures]
    described = [
        each.SegmentDescription for each in found.SegmentSequence if each.SegmentNumber > 0
    ]
    assert described == volumes


def test_the_mask_of_one_echo_refers_to_the_frames_of_that_echo() -> None:
    order = [5, 0, 17, 9, 1, 12, 2, 3, 16, 4, 6, 10, 13, 7, 8, 11, 14, 15]
    payload = as_bytes(two_echoes(VOLUME, order))
    source = dicom_series.decode(payload, select="echo_time=60")
    segmentation = _mask(source.geometry)
    seg = dicom_seg.encode(segmentation, source, CODES, PROVENANCE)
    np.testing.assert_array_equal(_read_back(seg, source.geometry), segmentation.mask)
    for item in dcmread(io.BytesIO(seg)).PerFrameFunctionalGroupsSequence:
        [image] = item.DerivationImageSequence[0].SourceImageSequence
        frame = order.index(SHAPE[2] + _slice_at(item)) + 1
        assert image.ReferencedFrameNumber == frame
    empty = Segmentation(np.zeros(source.geometry.shape, np.uint8), source.geometry, LABELS)
    assert not _read_back(dicom_seg.encode(empty, source, CODES, PROVENANCE), source.geometry).any()


def test_every_slice_has_a_frame_for_every_segment() -> None:
    source = _series()
    payload = dicom_seg.encode(_mask(source.geometry), source, CODES, PROVENANCE)
    assert dcmread(io.BytesIO(payload)).NumberOfFrames == 2 * source.geometry.shape[2]


def test_an_empty_mask_is_an_answer_too() -> None:
    source = _series()
    empty = Segmentation(np.zeros(source.geometry.shape, np.uint8), source.geometry, LABELS)
    payload = dicom_seg.encode(empty, source, CODES, PROVENANCE)
    assert not _read_back(payload, source.geometry).any()


def test_segments_carry_their_codes_and_the_model() -> None:
    source = _series()
    payload = dicom_seg.encode(_mask(source.geometry), source, CODES, PROVENANCE)
    segment = dcmread(io.BytesIO(payload)).SegmentSequence[1]
    assert segment.SegmentLabel == "posterior"
    kind = segment.SegmentedPropertyTypeCodeSequence[0]
    assert (kind.CodeValue, kind.CodingSchemeDesignator) == ("5366008", "SCT")
    [part] = kind.SegmentedPropertyTypeModifierCodeSequence
    assert (part.CodeValue, part.CodeMeaning) == ("255551008", "Posterior")
    category = segment.SegmentedPropertyCategoryCodeSequence[0]
    assert category.CodeValue == "91723000"
    algorithm = segment.SegmentationAlgorithmIdentificationSequence[0]
    assert (algorithm.AlgorithmName, algorithm.AlgorithmVersion) == ("segmentation_3d", "1.2")


def test_the_object_belongs_to_the_patient_study_and_frame_of_its_source() -> None:
    source = _series()
    dataset = dcmread(
        io.BytesIO(dicom_seg.encode(_mask(source.geometry), source, CODES, PROVENANCE))
    )
    header = source.sources[0]
    for name in ("PatientID", "StudyInstanceUID", "FrameOfReferenceUID"):
        assert dataset[name].value == header[name].value
    assert dataset.SeriesInstanceUID != header.SeriesInstanceUID


def test_the_same_answer_is_the_same_object() -> None:
    source = _series()
    first, second = (
        dcmread(io.BytesIO(dicom_seg.encode(_mask(source.geometry), source, CODES, PROVENANCE)))
        for _ in range(2)
    )
    assert first.SOPInstanceUID == second.SOPInstanceUID
    other = Segmentation(np.zeros(source.geometry.shape, np.uint8), source.geometry, LABELS)
    third = dcmread(io.BytesIO(dicom_seg.encode(other, source, CODES, PROVENANCE)))
    assert third.SOPInstanceUID != first.SOPInstanceUID


def test_a_source_that_is_no_dicom_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="ask for NIfTI"):
        dicom_seg.encode(_mask(VOLUME.geometry), VOLUME, CODES, PROVENANCE)


def test_headers_too_poor_to_derive_from_are_refused_without_quoting_them() -> None:
    source = _series()
    del source.sources[0].StudyInstanceUID
    with pytest.raises(InvalidImageError, match="complete enough") as raised:
        dicom_seg.encode(_mask(source.geometry), source, CODES, PROVENANCE)
    assert raised.value.__suppress_context__


def test_a_label_without_code_is_a_mistake_of_the_code() -> None:
    source = _series()
    with pytest.raises(ValueError, match=r"without a code.*posterior"):
        dicom_seg.encode(
            _mask(source.geometry), source, {"anterior": CODES["anterior"]}, PROVENANCE
        )
