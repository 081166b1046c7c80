from __future__ import annotations

import contextlib
import gzip
import io
import random
import struct
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable, Iterable
from typing import Any

import highdicom
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as pillow
from pydicom import Dataset
from pydicom.encaps import encapsulate
from pydicom.pixels.utils import compress
from pydicom.uid import (
    UID,
    BasicTextSRStorage,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLSLossless,
    MediaStorageDirectoryStorage,
    RLELossless,
)

from medserve.errors import InvalidImageError, MedserveError, PayloadTooLargeError
from medserve.imaging.codecs import dicom_series
from medserve.imaging.geometry import Geometry
from medserve.imaging.volume import Volume, VolumeLimits
from tests.volume_phantoms import (
    SHAPE,
    as_bytes,
    dicom_slices,
    enhanced_dicom,
    geometries,
    lps_affine,
    oblique,
    ramp,
    zipped,
)

VOLUME = ramp(oblique())


def _files(datasets: Iterable[Dataset]) -> list[bytes]:
    return [as_bytes(dataset) for dataset in datasets]


def _tar(files: Iterable[bytes], name: str = "a", kind: bytes = tarfile.REGTYPE) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for n, content in enumerate(files):
            member = tarfile.TarInfo(f"{name}{n}")
            member.size, member.type = len(content), kind
            archive.addfile(member, io.BytesIO(content))
    return stream.getvalue()


@settings(deadline=None, max_examples=15)
@given(geometries(smallest=2, largest=6), st.randoms(use_true_random=False))
def test_each_voxel_lies_where_the_files_say_whatever_their_order(
    geometry: Geometry, order: random.Random
) -> None:
    volume = ramp(geometry)
    datasets = dicom_slices(volume)
    order.shuffle(datasets)
    decoded = dicom_series.decode(zipped(_files(datasets)))
    value = volume.array.size // 2
    np.testing.assert_allclose(
        decoded.geometry.to_world(np.argwhere(decoded.array == value)[0]),
        geometry.to_world(np.argwhere(volume.array == value)[0]),
        atol=1e-4,
    )
    assert sorted(np.unique(decoded.array)) == list(range(volume.array.size))


def test_the_affine_is_the_one_that_highdicom_finds() -> None:
    datasets = dicom_slices(VOLUME)
    decoded = dicom_series.decode(zipped(_files(datasets)))
    reference = highdicom.get_volume_from_series(datasets)
    reference = reference.match_geometry(
        highdicom.VolumeGeometry(
            lps_affine(decoded.geometry)[:, [2, 1, 0, 3]],
            reference.spatial_shape,
            coordinate_system="PATIENT",
        )
    )
    np.testing.assert_allclose(
        reference.affine, lps_affine(decoded.geometry)[:, [2, 1, 0, 3]], atol=1e-6
    )
    np.testing.assert_array_equal(decoded.array, reference.array.transpose(2, 1, 0))


@pytest.mark.parametrize("wrap", [zipped, _tar, lambda files: gzip.compress(_tar(files))])
def test_zip_tar_and_compressed_tar_hold_the_same_volume(wrap: Callable[..., bytes]) -> None:
    payload = wrap(_files(dicom_slices(VOLUME)))
    assert dicom_series.recognises(payload)
    decoded = dicom_series.decode(payload)
    assert decoded.array.shape == SHAPE
    assert decoded.array.dtype == np.int16


def test_the_headers_follow_the_slices() -> None:
    decoded = dicom_series.decode(zipped(_files(reversed(dicom_slices(VOLUME)))))
    heights = [
        lps_affine(decoded.geometry)[:3] @ (0, 0, k, 1) for k in range(decoded.geometry.shape[2])
    ]
    stated = [np.array(source.ImagePositionPatient) for source in decoded.sources]
    np.testing.assert_allclose(stated, heights, atol=1e-4)
    assert not any("PixelData" in source for source in decoded.sources)
    assert "Secret" not in repr(decoded)


def test_rescale_is_applied_slice_by_slice() -> None:
    datasets = dicom_slices(VOLUME)
    for k, dataset in enumerate(datasets):
        dataset.RescaleSlope, dataset.RescaleIntercept = str(k + 1), "-1024"
    decoded = dicom_series.decode(zipped(_files(datasets)))
    slopes = np.arange(SHAPE[2])[::-1] + 1  # the grid is mirrored: k runs against the phantom's
    expected = VOLUME.array[:, :, ::-1] * slopes.astype(np.float32) - 1024
    np.testing.assert_array_equal(decoded.array, expected)
    assert decoded.array.dtype == np.float32


def test_an_enhanced_image_is_read_in_the_order_of_its_positions() -> None:
    order = [4, 0, 8, 2, 1, 3, 7, 5, 6]
    decoded = dicom_series.decode(as_bytes(enhanced_dicom(VOLUME, order)))
    plain = dicom_series.decode(zipped(_files(dicom_slices(VOLUME))))
    assert decoded.geometry.matches(plain.geometry)
    np.testing.assert_array_equal(decoded.array, plain.array.astype(np.float32) * 2 - 10)
    assert [order[frame] for frame in decoded.frames] == list(range(SHAPE[2]))[::-1]


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless])
def test_lossless_compression_changes_nothing(syntax: UID) -> None:
    datasets = dicom_slices(VOLUME)
    for dataset in datasets:
        compress(dataset, syntax, generate_instance_uid=False)
    decoded = dicom_series.decode(zipped(_files(datasets)))
    np.testing.assert_array_equal(decoded.array, VOLUME.array[:, :, ::-1])


@pytest.mark.parametrize(
    ("kind", "syntax", "options"),
    [
        ("JPEG2000", JPEG2000Lossless, {"no_jp2": True}),
        ("JPEG", JPEGBaseline8Bit, {"quality": 100}),
    ],
)
def test_eight_bit_jpeg_is_read(kind: str, syntax: UID, options: dict[str, Any]) -> None:
    plane = np.arange(14 * 11, dtype=np.uint8).reshape(11, 14)
    stream = io.BytesIO()
    pillow.fromarray(plane).save(stream, format=kind, **options)
    dataset = dicom_slices(VOLUME)[0]
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit, dataset.PixelRepresentation = 7, 0
    dataset.PixelData = encapsulate([stream.getvalue()])
    dataset["PixelData"].is_undefined_length = True
    dataset.file_meta.TransferSyntaxUID = syntax
    decoded = dicom_series.decode(as_bytes(dataset))
    np.testing.assert_allclose(decoded.array[:, :, 0].T.astype(int), plane, atol=3)


def test_a_frame_that_states_a_giant_size_is_refused_before_it_is_decoded() -> None:
    dataset = dicom_slices(VOLUME)[0]
    compress(dataset, JPEGLSLossless, generate_instance_uid=False)
    payload = bytearray(as_bytes(dataset))
    header = payload.index(b"\xff\xf7")  # SOF55: length, precision, rows, columns
    payload[header + 5 : header + 9] = struct.pack(">2H", 20000, 20000)
    with pytest.raises(InvalidImageError, match="pixel data is damaged"):
        dicom_series.decode(bytes(payload))


def test_a_single_slice_takes_its_thickness_from_the_header() -> None:
    decoded = dicom_series.decode(as_bytes(dicom_slices(VOLUME)[0]))
    assert decoded.array.shape == (*SHAPE[:2], 1)
    np.testing.assert_allclose(decoded.geometry.spacing_mm, VOLUME.geometry.spacing_mm, rtol=1e-6)


def test_hostile_names_and_links_are_passed_over() -> None:
    files = _files(dicom_slices(VOLUME))
    names = [f"../../../../tmp/evil{n}" for n in range(len(files) - 1)]
    payload = zipped(files, [*names, "/etc/passwd"])
    assert dicom_series.decode(payload).array.shape == SHAPE
    archive = io.BytesIO(_tar(files))
    with tarfile.open(fileobj=archive, mode="a") as tar:
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    assert dicom_series.decode(archive.getvalue()).array.shape == SHAPE


def _report() -> bytes:
    dataset = dicom_slices(VOLUME)[0]
    del dataset.PixelData
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = BasicTextSRStorage
    return as_bytes(dataset)


def _without_its_pixels() -> bytes:
    dataset = dicom_slices(VOLUME)[0]
    del dataset.PixelData
    return as_bytes(dataset)


_UNREAD: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda file: b"",
    "a gzip-compressed file": gzip.compress,
    "DICOM without its preamble": lambda file: file[132:],
    "zero bytes only": lambda file: bytes(len(file)),
    "text": lambda file: b"read me",
    "an image without its pixels": lambda file: _without_its_pixels(),
    "a DICOM object that is no image": lambda file: _report(),
}


@settings(deadline=None, max_examples=10)
@given(st.dictionaries(st.integers(0, SHAPE[2] - 1), st.sampled_from(sorted(_UNREAD)), min_size=1))
def test_what_was_sent_and_not_read_is_counted_and_named(broken: dict[int, str]) -> None:
    files = _files(dicom_slices(VOLUME))
    for place, kind in broken.items():
        files[place] = _UNREAD[kind](files[place])
    with pytest.raises(InvalidImageError) as raised:
        dicom_series.decode(zipped(files))
    message = str(raised.value)
    assert f"got {len(broken)} of {len(files)} files that are no readable image" in message
    for kind in set(broken.values()):
        assert kind in message
    assert "Secret" not in message


def test_files_whose_pixels_are_cut_are_counted() -> None:
    files = _files(dicom_slices(VOLUME))
    files[2], files[7] = files[2][:-40], files[7][:-1]
    with pytest.raises(InvalidImageError, match=r"got 2 of 9 files .* \(2 damaged or cut short\)"):
        dicom_series.decode(zipped(files))


@pytest.mark.parametrize(
    "content",
    [b"\0\5\x16\7" + bytes(300), b"\0\0\0\1Bud1" + bytes(300), "directory"],
    ids=["AppleDouble", ".DS_Store", "DICOMDIR"],
)
def test_a_directory_of_images_and_what_desktops_leave_behind_do_not_count(
    content: bytes | str,
) -> None:
    if isinstance(content, str):
        directory = dicom_slices(VOLUME)[0]
        del directory.PixelData
        directory.SOPClassUID = MediaStorageDirectoryStorage
        content = as_bytes(directory)
    decoded = dicom_series.decode(zipped([content, *_files(dicom_slices(VOLUME))]))
    assert decoded.array.shape == SHAPE
    with pytest.raises(InvalidImageError, match="expected DICOM images"):
        dicom_series.decode(zipped([content]))


@pytest.mark.parametrize(
    ("element", "values", "words"),
    [
        (
            "EchoTime",
            [30, 60],
            r"2 that differ in echo time: echo_time=30 \(5 slices\), echo_time=60 \(4 sl",
        ),
        (
            "DiffusionBValue",
            [0.0, 1000.0],
            r"b-value: b_value=0 \(5 slices\), b_value=1000 \(4 slices\)",
        ),
        ("TemporalPositionIdentifier", [1, 2], "temporal position"),
        (
            "ImageType",
            ["ORIGINAL\\PRIMARY\\M", "ORIGINAL\\PRIMARY\\P"],
            "image_type=ORIGINAL/PRIMARY/M",
        ),
    ],
)
def test_acquisitions_whose_slices_interleave_are_no_volume(
    element: str, values: list[Any], words: str
) -> None:
    datasets = dicom_slices(VOLUME)
    for k, dataset in enumerate(datasets):
        setattr(dataset, element, values[k % 2])
    with pytest.raises(InvalidImageError, match=words):
        dicom_series.decode(zipped(_files(datasets)))


def test_echoes_of_one_enhanced_image_are_told_apart() -> None:
    dataset = enhanced_dicom(VOLUME, list(range(SHAPE[2])))
    for k, item in enumerate(dataset.PerFrameFunctionalGroupsSequence):
        echo = Dataset()
        echo.EffectiveEchoTime = 30.0 if k < 4 else 60.0
        item.MREchoSequence = [echo]
    with pytest.raises(InvalidImageError, match="echo time: echo_time=30"):
        dicom_series.decode(as_bytes(dataset))


@settings(deadline=None, max_examples=5)
@given(st.integers(8, 16), st.booleans(), st.booleans())
def test_white_means_more_signal_in_monochrome1_as_well(
    bits: int, signed: bool, rescaled: bool
) -> None:
    low, top = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    array = np.linspace(low, top, VOLUME.array.size).round().astype(int).reshape(SHAPE)
    found = []
    for kind in ("MONOCHROME2", "MONOCHROME1"):
        datasets = dicom_slices(VOLUME, BitsStored=bits, HighBit=bits - 1)
        for k, dataset in enumerate(datasets):
            plane = array[:, :, k].T if kind == "MONOCHROME2" else low + top - array[:, :, k].T
            dataset.PixelData = (plane & 0xFFFF).astype("<u2").tobytes()
            dataset.PhotometricInterpretation = kind
            dataset.PixelRepresentation = int(signed)
            if rescaled:
                dataset.RescaleSlope, dataset.RescaleIntercept = "0.5", "-100"
        found.append(dicom_series.decode(zipped(_files(datasets))).array)
    np.testing.assert_array_equal(found[0], found[1])


@settings(deadline=None, max_examples=6)
@given(st.sampled_from([-32768, -2000, -1, 0]), st.booleans())
def test_padding_of_any_value_gives_one_volume(padding: int, inverted: bool) -> None:
    inside = VOLUME.array + 10
    datasets = dicom_slices(VOLUME, PixelPaddingValue=padding)
    for k, dataset in enumerate(datasets):
        plane = (-1 - inside[:, :, k] if inverted else inside[:, :, k]).T.copy()
        plane[:2] = padding
        dataset.PixelData = plane.astype("<i2").tobytes()
        dataset.PhotometricInterpretation = "MONOCHROME1" if inverted else "MONOCHROME2"
    expected = inside[:, :, ::-1].copy()
    expected[:, :2] = expected[:, 2:].min()
    decoded = dicom_series.decode(zipped(_files(datasets)))
    if padding != -1:  # where a pixel of the image has that value, it is padding, too
        np.testing.assert_array_equal(decoded.array, expected)


def test_a_palette_is_no_volume() -> None:
    datasets = dicom_slices(VOLUME, PhotometricInterpretation="PALETTE COLOR")
    with pytest.raises(InvalidImageError, match="grey slices"):
        dicom_series.decode(zipped(_files(datasets)))


def test_a_missing_slice_is_counted() -> None:
    datasets = dicom_slices(VOLUME)
    del datasets[3:5]
    with pytest.raises(InvalidImageError, match=r"2\.30 mm apart, got 1 gaps where 2 slices"):
        dicom_series.decode(zipped(_files(datasets)))


def test_a_slice_sent_twice_is_refused() -> None:
    datasets = dicom_slices(VOLUME)
    with pytest.raises(InvalidImageError, match="10 slices at 9 positions"):
        dicom_series.decode(zipped(_files([*datasets, datasets[2]])))


def test_two_series_are_refused_with_their_sizes() -> None:
    datasets = dicom_slices(VOLUME) + dicom_slices(VOLUME, series="2")[:4]
    with pytest.raises(
        InvalidImageError, match=r"one series, got 2: series=1 \(9 images\), series=1 \(4 images\)"
    ):
        dicom_series.decode(zipped(_files(datasets)))


def test_a_scout_of_another_orientation_is_refused() -> None:
    scout = dicom_slices(ramp(Geometry.from_spacing(SHAPE, oblique().spacing_mm)))[:1]
    with pytest.raises(InvalidImageError, match=r"orientation of slices, got 2 \(of 9, 1"):
        dicom_series.decode(zipped(_files([*dicom_slices(VOLUME), *scout])))


def test_slices_of_two_sizes_are_refused() -> None:
    datasets = dicom_slices(VOLUME)
    other = ramp(Geometry((7, 6, 9), VOLUME.geometry.affine))
    datasets[1] = dicom_slices(other)[1]
    with pytest.raises(InvalidImageError, match="one size of slices, got 2"):
        dicom_series.decode(zipped(_files(datasets)))


def test_gantry_tilt_is_measured_and_refused() -> None:
    affine = np.diag([1.0, 1.0, 3.0, 1.0])
    affine[1, 2] = 3 * np.tan(np.radians(12))
    with pytest.raises(InvalidImageError, match=r"gantry tilt of 12\.0 degrees"):
        dicom_series.decode(zipped(_files(dicom_slices(ramp(Geometry(SHAPE, affine))))))


def test_uneven_distances_are_refused() -> None:
    volume = ramp(Geometry.from_spacing(SHAPE, (1, 1, 2)))
    datasets = dicom_slices(volume)
    datasets[4].ImagePositionPatient = [0, 0, 8.7]
    with pytest.raises(InvalidImageError, match=r"even distances, got 1\.30 to 2\.70 mm"):
        dicom_series.decode(zipped(_files(datasets)))


def test_a_slice_shifted_sideways_is_refused() -> None:
    volume = ramp(Geometry.from_spacing(SHAPE, (1, 1, 2)))
    datasets = dicom_slices(volume)
    datasets[4].ImagePositionPatient = [3, 0, 8]
    with pytest.raises(InvalidImageError, match="shifted sideways"):
        dicom_series.decode(zipped(_files(datasets)))


def test_another_modality_than_the_models_is_refused() -> None:
    payload = zipped(_files(dicom_slices(VOLUME)))
    with pytest.raises(InvalidImageError, match="modality CT, got another"):
        dicom_series.decode(payload, modalities=("CT",))
    dicom_series.decode(payload, modalities=("MR", "CT"))


def test_errors_quote_nothing_of_the_header() -> None:
    datasets = dicom_slices(VOLUME, PixelSpacing=None)
    with pytest.raises(InvalidImageError, match="pixel spacing") as raised:
        dicom_series.decode(zipped(_files(datasets)))
    assert raised.value.__suppress_context__
    assert "Secret" not in str(raised.value)


def test_colour_and_cine_loops_are_no_volume() -> None:
    colour = dicom_slices(VOLUME, SamplesPerPixel=3)
    with pytest.raises(InvalidImageError, match="colour"):
        dicom_series.decode(zipped(_files(colour)))
    loop = dicom_slices(VOLUME, NumberOfFrames=5)[:1]
    with pytest.raises(InvalidImageError, match="cine loop"):
        dicom_series.decode(as_bytes(loop[0]))


def test_a_damaged_file_among_good_ones_is_not_left_out() -> None:
    files = _files(dicom_slices(VOLUME))
    files[2] = files[2][:-40]
    with pytest.raises(InvalidImageError, match="damaged or cut short"):
        dicom_series.decode(zipped(files))


def test_a_zip_bomb_is_refused_by_its_directory() -> None:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a", bytes(40 * 2**20))
    tracemalloc.start()
    with pytest.raises(PayloadTooLargeError, match="at most 1048576 bytes"):
        dicom_series.decode(stream.getvalue(), VolumeLimits(max_expanded_bytes=2**20))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20


def test_a_zip_whose_directory_lies_about_sizes_is_expanded_no_further() -> None:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a", bytes(40 * 2**20))
    small, large = (struct.pack("<I", size) for size in (1000, 40 * 2**20))
    tracemalloc.start()
    with pytest.raises(InvalidImageError):
        dicom_series.decode(stream.getvalue().replace(large, small))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_zip_of_a_method_without_bound_is_refused(method: int) -> None:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        archive.writestr("a", b"text")
    with pytest.raises(InvalidImageError, match="stored or deflated"):
        dicom_series.decode(stream.getvalue())


def test_a_compressed_tar_is_expanded_no_further_than_allowed() -> None:
    payload = gzip.compress(_tar([bytes(40 * 2**20)]))
    tracemalloc.start()
    with pytest.raises(PayloadTooLargeError, match="at most 1048576 bytes"):
        dicom_series.decode(payload, VolumeLimits(max_expanded_bytes=2**20))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 6 * 2**20


def test_too_many_files_are_refused() -> None:
    with pytest.raises(PayloadTooLargeError, match=r"at most 4 files .* got 9"):
        dicom_series.decode(zipped(_files(dicom_slices(VOLUME))), VolumeLimits(max_files=4))


def test_a_header_of_absurd_size_is_refused_before_its_pixels() -> None:
    datasets = dicom_slices(VOLUME, Rows=65000, Columns=65000)
    with pytest.raises(PayloadTooLargeError, match="65000 x 65000 x 9"):
        dicom_series.decode(zipped(_files(datasets)))


@pytest.mark.parametrize(
    "payload", [b"", b"PK\x03\x04", b"\x1f\x8b\x08", b"hello", zipped([b"text"]), _tar([b"text"])]
)
def test_bytes_without_dicom_images_are_refused(payload: bytes) -> None:
    with pytest.raises(InvalidImageError):
        dicom_series.decode(payload)


@pytest.mark.parametrize("keep", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("wrap", [zipped, _tar])
def test_an_archive_cut_short_is_refused(keep: float, wrap: Callable[..., bytes]) -> None:
    payload = wrap(_files(dicom_slices(VOLUME)))
    content = len(payload.rstrip(b"\0"))  # a tar ends with zeros, which nobody misses
    with pytest.raises(InvalidImageError):
        dicom_series.decode(payload[: int(content * keep)])


def test_a_tar_cut_between_two_files_is_noticed() -> None:
    files = _files(dicom_slices(VOLUME))
    block = 512 + -(-len(files[0]) // 512) * 512
    with pytest.raises(InvalidImageError, match="tar archive, got one that is damaged or cut"):
        dicom_series.decode(_tar(files)[: 7 * block])


_SMALL = as_bytes(dicom_slices(Volume(VOLUME.array, VOLUME.geometry))[0])


@settings(deadline=None, max_examples=150)
@given(
    st.lists(st.tuples(st.integers(128, len(_SMALL) - 1), st.integers(0, 255)), max_size=8),
    st.integers(100, 2 * len(_SMALL)),
)
def test_damaged_files_raise_only_our_own_errors(changes: list[tuple[int, int]], keep: int) -> None:
    raw = bytearray(_SMALL)
    for at, value in changes:
        raw[at] = value
    with contextlib.suppress(MedserveError):
        dicom_series.decode(bytes(raw[:keep]))


@settings(deadline=None)
@given(st.binary(max_size=300), st.sampled_from([b"", b"PK\x03\x04", b"\x1f\x8b\x08\x00"]))
def test_noise_raises_only_our_own_errors(noise: bytes, start: bytes) -> None:
    with contextlib.suppress(MedserveError):
        dicom_series.decode(start + noise)
