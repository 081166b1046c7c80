from __future__ import annotations

import random
import re
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import Dataset
from pydicom.uid import (
    BasicTextSRStorage,
    CTImageStorage,
    EnhancedCTImageStorage,
    GrayscaleSoftcopyPresentationStateStorage,
    generate_uid,
)

from medserve.errors import InvalidImageError, InvalidRequestError
from medserve.imaging.codecs import dicom_series
from medserve.imaging.volume import Volume
from tests.volume_phantoms import as_bytes, dicom_slices, oblique, ramp, two_echoes, zipped

VOLUME = ramp(oblique((5, 4, 3)))
PLACES = VOLUME.geometry.shape[2]
_LISTED = re.compile(r"((?:[a-z_]+=[^,( ]+,?)+) \(\d+ (?:slices|images)\)")

Change = Callable[[Dataset], None]


def _set(name: str, value: Any) -> Change:
    return lambda dataset: setattr(dataset, name, value)


def _set_all(**elements: Any) -> Change:
    def change(dataset: Dataset) -> None:
        for name, value in elements.items():
            setattr(dataset, name, value)

    return change


def _private(group: int, creator: str, element: int, vr: str, value: Any) -> Change:
    def change(dataset: Dataset) -> None:
        dataset.private_block(group, creator, create=True).add_new(element, vr, value)

    return change


def _without_creator(manufacturer: str, tag: int, vr: str, value: Any) -> Change:
    def change(dataset: Dataset) -> None:
        dataset.Manufacturer = manufacturer
        dataset.add_new(tag, vr, value)

    return change


def _sign(key: str, text: str) -> str:
    return f"{key}=text-{zlib.crc32(text.encode()):08x}"


SIEMENS, GE = (0x19, "SIEMENS MR HEADER", 0x0C), (0x43, "GEMS_PARM_01", 0x39)
PHILIPS, UIH = (0x2001, "Philips Imaging DD 001", 0x03), (0x65, "Image Private Header", 0x09)
# What tells two acquisitions apart, and how each of them is chosen.
APART: dict[str, tuple[Change, Change, str, str]] = {
    "echo time": (_set("EchoTime", "30.0000001"), _set("EchoTime", "60"),
                  "echo_time=30", "echo_time=60"),
    "image type": (_set("ImageType", ["ORIGINAL", "PRIMARY", "M"]),
                   _set("ImageType", ["ORIGINAL", "PRIMARY", "P"]),
                   "image_type=ORIGINAL/PRIMARY/M", "image_type=ORIGINAL/PRIMARY/P"),
    "component": (_set("ComplexImageComponent", "MAGNITUDE"),
                  _set("ComplexImageComponent", "PHASE"),
                  "component=MAGNITUDE", "component=PHASE"),
    "b-value": (_set("DiffusionBValue", 50.0), _set("DiffusionBValue", 1000.0),
                "b_value=50", "b_value=1000"),
    "b-value of Siemens": (_private(*SIEMENS, "IS", 0), _private(*SIEMENS, "IS", 800),
                           "b_value=0", "b_value=800"),
    "b-value of GE": (_private(*GE, "IS", [1000000050, 8, 0, 0]),
                      _private(*GE, "IS", [1000000750, 8, 0, 0]), "b_value=50", "b_value=750"),
    "b-value of Philips": (_private(*PHILIPS, "FL", 0.0), _private(*PHILIPS, "FL", 500.0),
                           "b_value=0", "b_value=500"),
    "b-value of UIH": (_private(*UIH, "FD", 0.0), _private(*UIH, "FD", 700.0),
                       "b_value=0", "b_value=700"),
    "b-value without creator": (_without_creator("SIEMENS", 0x0019100C, "UN", b"0 "),
                                _without_creator("SIEMENS", 0x0019100C, "UN", b"400 "),
                                "b_value=0", "b_value=400"),
    "b-value of one alone": (lambda dataset: None, _set("DiffusionBValue", 1000.0),
                             "b_value=none", "b_value=1000"),
    "temporal position": (_set("TemporalPositionIdentifier", 1),
                          _set("TemporalPositionIdentifier", 2),
                          "temporal_position=1", "temporal_position=2"),
    "contrast agent": (_set("ContrastBolusAgent", "Secret 20 ml"),
                       _set("ContrastBolusAgent", ""), "contrast=yes", "contrast=no"),
    "flip angle": (_set("FlipAngle", "5"), _set("FlipAngle", "26"),
                   "flip_angle=5", "flip_angle=26"),
    "inversion time": (_set("InversionTime", "100"), _set("InversionTime", "2200"),
                       "inversion_time=100", "inversion_time=2200"),
    "tube voltage": (_set("KVP", "80"), _set("KVP", "140"), "voltage=80", "voltage=140"),
    "kernel": (_set("ConvolutionKernel", "B30f"), _set("ConvolutionKernel", "B70f"),
               "kernel=B30f", "kernel=B70f"),
    "acquisition number": (_set("AcquisitionNumber", 1), _set("AcquisitionNumber", 2),
                           "acquisition=1", "acquisition=2"),
    "slice thickness": (_set("SliceThickness", "1"), _set("SliceThickness", "3"),
                        "thickness=1", "thickness=3"),
    "scanning sequence": (_set("ScanningSequence", ["SE", "IR"]), _set("ScanningSequence", "GR"),
                          "sequence=SE/IR", "sequence=GR"),
    "sequence name": (_set("SequenceName", "tfl3d1"), _set("SequenceName", "se2d1"),
                      "sequence_name=tfl3d1", "sequence_name=se2d1"),
    "scan options": (_set("ScanOptions", "FS"), _set("ScanOptions", ""),
                     "options=FS", "options=none"),
    "SOP class": (_set("SOPClassUID", CTImageStorage), _set("SOPClassUID", EnhancedCTImageStorage),
                  f"class={CTImageStorage}", f"class={EnhancedCTImageStorage}"),
    "series number": (_set("SeriesNumber", 3), _set("SeriesNumber", 4), "number=3", "number=4"),
    "reconstruction diameter": (_set("ReconstructionDiameter", "200"),
                                _set("ReconstructionDiameter", "400"),
                                "diameter=200", "diameter=400"),
    "echo number": (_set("EchoNumbers", 1), _set("EchoNumbers", 2),
                    "echo_number=1", "echo_number=2"),
    "protocol": (_set("ProtocolName", "Secret T1"), _set("ProtocolName", "Secret t2"),
                 _sign("protocol", "secret t1"), _sign("protocol", "secret t2")),
    "coil": (_set("ReceiveCoilName", "HEA"), _set("ReceiveCoilName", "NEC"),
             _sign("coil", "hea"), _sign("coil", "nec")),
    "coil of Siemens": (_private(0x51, "SIEMENS MR HEADER", 0x0F, "LO", "H1"),
                        _private(0x51, "SIEMENS MR HEADER", 0x0F, "LO", "H2"),
                        _sign("coil", "h1"), _sign("coil", "h2")),
    "series description": (_set("SeriesDescription", "Secret in"),
                           _set("SeriesDescription", "Secret out"),
                           _sign("description", "secret in"), _sign("description", "secret out")),
    "pixel bandwidth": (_set("PixelBandwidth", "130"), _set("PixelBandwidth", "260"),
                        "bandwidth=130", "bandwidth=260"),
    "unit": (_set_all(RescaleType="HU", RescaleSlope="1", RescaleIntercept="0"),
             _set_all(RescaleType="US", RescaleSlope="1", RescaleIntercept="0"),
             "unit=HU", "unit=US"),
    "unit of PET": (_set("Units", "BQML"), _set("Units", "CNTS"), "unit=BQML", "unit=CNTS"),
    "series": (_set("SeriesNumber", 100001),
               _set_all(SeriesNumber=100002, SeriesInstanceUID=generate_uid(entropy_srcs=["b"])),
               "series=100001", "series=100002"),
    "trigger time": (_set("TriggerTime", "0"), _set("TriggerTime", "412.5"),
                     "phase=1", "phase=2"),
    "acquisition time": (_set("AcquisitionTime", "101010.5"), _set("AcquisitionTime", "101310"),
                         "phase=1", "phase=2"),
    "acquisition past midnight": (_set_all(ContentDate="20260101", ContentTime="235959"),
                                  _set_all(ContentDate="20260102", ContentTime="000100"),
                                  "phase=1", "phase=2"),
}  # fmt: skip


def _acquisition(change: Change, volume: Volume = VOLUME) -> list[Dataset]:
    datasets = dicom_slices(volume)
    for dataset in datasets:
        change(dataset)
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    return datasets


def _two(kind: str) -> tuple[list[Dataset], list[Dataset]]:
    """The slices of two acquisitions of one place with other pixels."""
    first, second, _, _ = APART[kind]
    other = Volume(VOLUME.array + 1000, VOLUME.geometry)
    return _acquisition(first), _acquisition(second, other)


def _read(datasets: list[Dataset], select: str | None = None) -> dicom_series.DicomVolume:
    return dicom_series.decode(zipped([as_bytes(each) for each in datasets]), select=select)


@pytest.mark.parametrize("kind", sorted(APART))
def test_acquisitions_are_never_mixed_and_each_that_the_error_lists_can_be_chosen(
    kind: str,
) -> None:
    both = _two(kind)
    datasets = [*both[0], *both[1]]
    random.Random(kind).shuffle(datasets)
    with pytest.raises(InvalidImageError, match="choose one with the option select") as raised:
        _read(datasets)
    assert "Secret" not in str(raised.value)
    words = APART[kind][2:]
    assert sorted(_LISTED.findall(str(raised.value))) == sorted(words)
    for alone, select in zip(both, words, strict=True):
        chosen = _read(datasets, select)
        found, wanted = chosen.array, _read(alone).array
        np.testing.assert_array_equal(found, wanted)
        assert {each.SOPInstanceUID for each in chosen.sources} == {
            each.SOPInstanceUID for each in alone
        }


def test_packages_of_a_triggered_acquisition_are_one_volume() -> None:
    datasets = _acquisition(lambda dataset: None)
    alone = _read(datasets).array
    for index, dataset in enumerate(datasets):  # breathing decides how long each package takes
        dataset.RepetitionTime = "6315.8" if index % 2 else "6667.1"
    np.testing.assert_array_equal(_read(datasets).array, alone)


@pytest.mark.parametrize(
    "kind", sorted(set(APART) - {"trigger time", "acquisition time", "acquisition past midnight"})
)
def test_slices_of_two_acquisitions_at_places_of_their_own_are_no_volume(kind: str) -> None:
    first, second = _two(kind)
    with pytest.raises(InvalidImageError, match="choose one with the option select"):
        _read([first[0], second[1], first[2]])


def test_a_table_that_moves_step_by_step_counts_acquisitions_in_one_volume() -> None:
    datasets = dicom_slices(VOLUME)
    for number, dataset in enumerate(datasets):
        dataset.AcquisitionNumber = number // 2
        dataset.TriggerTime, dataset.AcquisitionTime = number % 2, f"10000{number}"
    assert _read(datasets).array.shape == VOLUME.geometry.shape


def test_images_of_one_place_without_a_time_of_their_own_are_copies() -> None:
    datasets = [*dicom_slices(VOLUME, TriggerTime="5"), *dicom_slices(VOLUME, TriggerTime="5")]
    with pytest.raises(InvalidImageError, match="6 slices at 3 positions"):
        _read(datasets)


def test_a_phase_that_lacks_a_slice_takes_none_of_another() -> None:
    first, second = _two("trigger time")
    for select in (None, "phase=1", "phase=2"):
        with pytest.raises((InvalidImageError, InvalidRequestError)):
            _read([*first[1:], *second], select)


def test_several_differences_are_chosen_one_after_the_other_or_at_once() -> None:
    datasets = []
    for echo in (30, 60):
        for b_value in (0.0, 900.0):
            volume = Volume(VOLUME.array + int(echo + b_value), VOLUME.geometry)
            datasets += dicom_slices(volume, EchoTime=echo, DiffusionBValue=b_value)
    with pytest.raises(InvalidImageError, match=r"echo_time=30,b_value=0 \(3 slices\)"):
        _read(datasets)
    with pytest.raises(InvalidImageError, match=r"got 2 .*: echo_time=30 .*, echo_time=60"):
        _read(datasets, "b_value=900")
    assert _read(datasets, " echo_time = 60.0, b_value=900 ").array.min() == 960


def test_a_difference_that_follows_from_another_is_not_listed() -> None:
    first = dicom_slices(VOLUME, EchoTime=30, FlipAngle=5, AcquisitionNumber=1)
    second = dicom_slices(VOLUME, EchoTime=60, FlipAngle=7, AcquisitionNumber=2)
    with pytest.raises(InvalidImageError, match=r"differ in echo time: echo_time=30 \(3 slices\),"):
        _read([*first, *second])


def test_series_are_told_apart_by_their_uid_where_they_have_one_number() -> None:
    first, second = dicom_slices(VOLUME), dicom_slices(VOLUME, series="2")
    chosen = _read([*first, *second], f"series={second[0].SeriesInstanceUID}")
    assert {each.SeriesInstanceUID for each in chosen.sources} == {second[0].SeriesInstanceUID}
    with pytest.raises(InvalidImageError, match=r"series=UID"):
        _read([*first, *second], "series=1")


@pytest.mark.parametrize(
    "of_another_series",
    [
        {"PhotometricInterpretation": "RGB", "SamplesPerPixel": 3},
        {"Modality": "PR", "SOPClassUID": GrayscaleSoftcopyPresentationStateStorage},
        {"Modality": "SR", "SOPClassUID": BasicTextSRStorage},
        {"ImagePositionPatient": None},
    ],
)
def test_objects_of_series_that_were_not_chosen_do_not_count(
    of_another_series: dict[str, Any],
) -> None:
    other = dicom_slices(VOLUME, series="9", SeriesNumber=9, **of_another_series)[0]
    if "SOPClassUID" in of_another_series:
        del other.PixelData
        other.file_meta.MediaStorageSOPClassUID = other.SOPClassUID
    payload = zipped([as_bytes(each) for each in [*dicom_slices(VOLUME), other]])
    with pytest.raises(InvalidImageError):
        dicom_series.decode(payload)
    chosen = dicom_series.decode(payload, modalities=("MR",), select="series=1")
    np.testing.assert_array_equal(chosen.array, _read(dicom_slices(VOLUME)).array)
    with pytest.raises(InvalidImageError, match="text"):
        dicom_series.decode(zipped([b"text", *map(as_bytes, dicom_slices(VOLUME))]),
                            select="series=1")  # fmt: skip


def test_an_object_without_pixels_is_named() -> None:
    state = dicom_slices(VOLUME, SOPClassUID=GrayscaleSoftcopyPresentationStateStorage)[0]
    del state.PixelData
    state.file_meta.MediaStorageSOPClassUID = state.SOPClassUID
    with pytest.raises(InvalidImageError, match="Grayscale Softcopy Presentation State"):
        _read([*dicom_slices(VOLUME), state])


@pytest.mark.parametrize(
    "select", ["", "5", "echo=30", "echo_time", "echo_time=", "phase=1,phase=1", "a=b", "series=1,"]
)
def test_a_choice_that_cannot_be_read_is_refused_with_the_keys(select: str) -> None:
    with pytest.raises(InvalidRequestError, match="out of series, echo_time, image_type"):
        _read(dicom_slices(VOLUME), select)


@pytest.mark.parametrize(
    ("select", "words"),
    [
        ("echo_time=31", r"one of echo_time=30 \(3 slices\)"),
        ("series=7", r"a series out of series=1 \(3 images\)"),
        ("phase=2", "a phase from 1 to 1"),
        ("phase=Secret", "a phase from 1 to 1"),
    ],
)
def test_a_choice_that_takes_nothing_is_refused_with_what_there_is(select: str, words: str) -> None:
    with pytest.raises(InvalidRequestError, match=words) as raised:
        _read(dicom_slices(VOLUME, EchoTime=30), select)
    assert "Secret" not in str(raised.value)


def test_text_that_is_no_code_is_not_shown() -> None:
    datasets = [
        *dicom_slices(VOLUME, ConvolutionKernel="Müller^Secret"),
        *dicom_slices(VOLUME, ConvolutionKernel="B30f"),
    ]
    with pytest.raises(InvalidImageError, match="kernel=another") as raised:
        _read(datasets)
    assert "Secret" not in str(raised.value)


@settings(deadline=None, max_examples=10)
@given(st.permutations(range(2 * PLACES)))
def test_frames_of_one_echo_of_an_enhanced_image_are_chosen(order: list[int]) -> None:
    payload = as_bytes(two_echoes(VOLUME, order))
    with pytest.raises(InvalidImageError, match=r"echo_time=30 \(3 slices\), echo_time=60"):
        dicom_series.decode(payload)
    chosen = dicom_series.decode(payload, select="echo_time=60")
    expected = (VOLUME.array + 500)[:, :, ::-1].astype(np.float32) * 2 - 10
    np.testing.assert_array_equal(chosen.array, expected)
    assert [order[frame] for frame in chosen.frames] == [*range(PLACES, 2 * PLACES)][::-1]
