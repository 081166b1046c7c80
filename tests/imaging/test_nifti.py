from __future__ import annotations

import contextlib
import gzip
import math
import os
import tarfile
import tracemalloc
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from medserve.errors import InvalidImageError, MedserveError, PayloadTooLargeError
from medserve.imaging.codecs import nifti
from medserve.imaging.geometry import Geometry
from medserve.imaging.volume import Volume, VolumeLimits
from tests.volume_phantoms import SHAPE, geometries, oblique, ramp

# nibabel, the field's reference reader, is untyped.
_Nifti1: Any = nibabel.Nifti1Image
_Nifti2: Any = nibabel.Nifti2Image
_Nifti1Pair: Any = nibabel.Nifti1Pair


def _written(array: npt.NDArray[Any], affine: npt.NDArray[np.float64], **fields: Any) -> bytes:
    """A .nii as nibabel writes it, with header fields changed afterwards."""
    image = _Nifti1(array, affine)
    header = image.header
    raw = bytearray(image.to_bytes())
    for name, value in fields.items():
        header[name] = value
    raw[:348] = _with_written_layout(header, raw)
    return bytes(raw)


def _with_written_layout(header: Any, raw: bytearray) -> bytes:
    stored = nibabel.Nifti1Header(bytes(raw[:348]))  # type: ignore[no-untyped-call]
    header["vox_offset"], header["magic"] = stored["vox_offset"], stored["magic"]
    block: bytes = header.binaryblock
    return block


def _as_nibabel_sees(payload: bytes) -> Any:
    return _Nifti1.from_bytes(gzip.decompress(payload) if payload[:2] == b"\x1f\x8b" else payload)


@settings(deadline=None)
@given(geometries())
def test_a_mask_lies_on_the_affine_and_shape_of_its_source(geometry: Geometry) -> None:
    source = _written(ramp(geometry).array, geometry.affine)
    volume = nifti.decode(source)
    mask = Volume((volume.array > 20).astype(np.uint8), volume.geometry)
    answer = _as_nibabel_sees(nifti.encode(mask, volume.space))
    before = _as_nibabel_sees(source)
    np.testing.assert_array_equal(answer.affine, before.affine)
    assert answer.shape == before.shape
    assert answer.header["sform_code"] == before.header["sform_code"]
    assert answer.header["qform_code"] == before.header["qform_code"]
    assert answer.header.get_xyzt_units() == before.header.get_xyzt_units()
    np.testing.assert_array_equal(np.asarray(answer.dataobj), mask.array)


@settings(deadline=None)
@given(geometries(), st.sampled_from(["qform", "neither", "both"]))
def test_the_affine_is_the_one_that_nibabel_reads(geometry: Geometry, form: str) -> None:
    image = _Nifti1(np.zeros(geometry.shape, np.uint8), geometry.affine)
    image.set_qform(geometry.affine, code=0 if form == "neither" else 2)
    image.set_sform(geometry.affine, code=3 if form == "both" else 0)
    payload = image.to_bytes()
    volume = nifti.decode(payload)
    expected = _as_nibabel_sees(payload).affine
    np.testing.assert_allclose(volume.geometry.affine, expected, atol=1e-5)
    back = _as_nibabel_sees(nifti.encode(volume))
    np.testing.assert_array_equal(back.affine, expected)


def test_forms_that_disagree_are_both_kept_and_the_sform_counts() -> None:
    image = _Nifti1(np.zeros(SHAPE, np.uint8), np.eye(4))
    image.set_sform(np.diag([2.0, 3.0, 4.0, 1.0]), code=2)
    image.set_qform(np.diag([1.0, 1.5, 2.0, 1.0]), code=1)
    volume = nifti.decode(image.to_bytes())
    assert volume.geometry.spacing_mm == (2.0, 3.0, 4.0)
    answer = _as_nibabel_sees(nifti.encode(volume))
    np.testing.assert_array_equal(answer.get_qform(), np.diag([1.0, 1.5, 2.0, 1.0]))
    np.testing.assert_array_equal(answer.get_sform(), np.diag([2.0, 3.0, 4.0, 1.0]))


def test_a_qfac_of_zero_counts_as_one() -> None:
    raw = bytearray(_written(np.zeros(SHAPE, np.uint8), np.eye(4), qform_code=1, sform_code=0))
    raw[76:80] = b"\0\0\0\0"  # pixdim[0]
    assert nifti.decode(bytes(raw)).geometry.handedness == 1


def test_micrometres_become_millimetres_and_stay_in_the_answer() -> None:
    image = _Nifti1(np.zeros(SHAPE, np.uint8), np.diag([500.0, 250.0, 1000.0, 1.0]))
    image.header.set_xyzt_units("micron")
    volume = nifti.decode(image.to_bytes())
    np.testing.assert_allclose(volume.geometry.spacing_mm, (0.5, 0.25, 1.0))
    assert _as_nibabel_sees(nifti.encode(volume)).header.get_xyzt_units()[0] == "micron"


@pytest.mark.parametrize(
    "kind", ["u1", "i1", "<i2", ">i2", "u2", "i4", "u4", "i8", "u8", "f4", ">f4", "f8"]
)
def test_every_real_type_in_both_byte_orders_is_read(kind: str) -> None:
    dtype = np.dtype(kind)
    array = (np.arange(math.prod(SHAPE)).reshape(SHAPE) % 120).astype(dtype.newbyteorder("="))
    header = nibabel.Nifti1Header(endianness=">" if kind[0] == ">" else "<")  # type: ignore[no-untyped-call]
    header.set_data_dtype(array.dtype)  # type: ignore[no-untyped-call]
    image = _Nifti1(array, np.eye(4), header=header, dtype=array.dtype)
    volume = nifti.decode(image.to_bytes())
    assert volume.array.dtype == dtype.newbyteorder("=")
    np.testing.assert_array_equal(volume.array, array)


def test_slope_and_intercept_are_applied() -> None:
    array = np.arange(math.prod(SHAPE), dtype=np.int16).reshape(SHAPE)
    volume = nifti.decode(_written(array, np.eye(4), scl_slope=0.5, scl_inter=-1024.0))
    assert volume.array.dtype == np.float32
    np.testing.assert_array_equal(volume.array, array * np.float32(0.5) - np.float32(1024))


@pytest.mark.parametrize("slope", [0.0, math.nan, math.inf])
def test_an_unset_slope_leaves_the_stored_numbers(slope: float) -> None:
    array = ramp(oblique()).array
    volume = nifti.decode(_written(array, np.eye(4), scl_slope=slope, scl_inter=7.0))
    assert volume.array.dtype == np.int16
    np.testing.assert_array_equal(volume.array, array)


def test_a_flat_image_becomes_one_slice_and_is_answered_flat() -> None:
    flat = _written(np.ones((6, 4), np.uint8), np.eye(4), srow_z=[0, 0, 0, 0])
    volume = nifti.decode(flat)
    assert volume.array.shape == (6, 4, 1)
    answer = _as_nibabel_sees(nifti.encode(volume))
    assert answer.shape == (6, 4)


def test_a_flat_image_is_refused_where_depth_is_needed() -> None:
    payload = _written(np.ones((64, 64), np.uint8), np.eye(4))
    with pytest.raises(InvalidImageError, match="64 x 64 x 1"):
        nifti.decode(payload, VolumeLimits(min_side=8))


def test_four_axes_are_refused_unless_a_channel_is_named() -> None:
    array = np.stack([ramp(oblique()).array, ramp(oblique()).array + 9], axis=-1)
    payload = _written(array, np.eye(4))
    with pytest.raises(InvalidImageError, match=r"14 x 11 x 9 x 2.*one of the 2 channels"):
        nifti.decode(payload)
    volume = nifti.decode(payload, channel=1)
    np.testing.assert_array_equal(volume.array, array[..., 1])
    assert _as_nibabel_sees(nifti.encode(volume)).shape == SHAPE
    with pytest.raises(InvalidImageError, match="channel from 0 to 1, got 2"):
        nifti.decode(payload, channel=2)


def test_a_fourth_axis_of_one_is_no_obstacle_and_comes_back() -> None:
    volume = nifti.decode(_written(np.ones((*SHAPE, 1), np.uint8), np.eye(4)))
    assert volume.array.shape == SHAPE
    assert _as_nibabel_sees(nifti.encode(volume)).shape == (*SHAPE, 1)


def test_the_second_version_of_the_format_is_read_and_answered_in_kind() -> None:
    image = _Nifti2(ramp(oblique()).array, oblique().affine)
    volume = nifti.decode(image.to_bytes())
    np.testing.assert_array_equal(volume.geometry.affine, oblique().affine)  # NIfTI-2: float64
    answer = nifti.encode(volume, compress=False)
    np.testing.assert_array_equal(_Nifti2.from_bytes(answer).affine, oblique().affine)


def test_gzip_is_known_by_content_and_several_members_are_one_file() -> None:
    plain = nifti.encode(ramp(oblique()), compress=False)
    parts = gzip.compress(plain[:700]) + gzip.compress(plain[700:])
    np.testing.assert_array_equal(nifti.decode(parts).array, ramp(oblique()).array)
    assert nifti.recognises(parts)
    assert nifti.recognises(plain)
    assert not nifti.recognises(gzip.compress(b"no volume"))


def test_extensions_before_the_voxels_are_passed_over() -> None:
    image = _Nifti1(ramp(oblique()).array, np.eye(4))
    extension: Any = nibabel.nifti1.Nifti1Extension
    image.header.extensions.append(extension("comment", b"x" * 3000))
    payload = image.to_bytes()
    np.testing.assert_array_equal(nifti.decode(payload).array, ramp(oblique()).array)
    np.testing.assert_array_equal(nifti.decode(gzip.compress(payload)).array, ramp(oblique()).array)


def test_the_same_volume_gives_the_same_bytes() -> None:
    assert nifti.encode(ramp(oblique())) == nifti.encode(ramp(oblique()))


def test_a_volume_without_header_is_written_with_both_forms() -> None:
    answer = _as_nibabel_sees(nifti.encode(ramp(oblique())))
    np.testing.assert_allclose(answer.get_sform(), oblique().affine, atol=1e-5)
    np.testing.assert_allclose(answer.get_qform(), oblique().affine, atol=1e-5)


def test_a_space_of_another_grid_is_a_mistake_of_the_caller() -> None:
    space = nifti.decode(nifti.encode(ramp(oblique()))).space
    with pytest.raises(ValueError, match="another grid"):
        nifti.encode(ramp(Geometry.from_spacing(SHAPE, (1, 1, 1))), space)


def _header_of(shape: tuple[int, ...]) -> bytes:
    return _written(np.zeros((2, 2, 2), np.uint8), np.eye(4), dim=[len(shape), *shape, 1, 1, 1, 1])


@pytest.mark.parametrize("compress", [False, True])
def test_a_header_of_2000_cubed_without_data_takes_no_memory(compress: bool) -> None:
    payload = _header_of((2000, 2000, 2000))
    payload = gzip.compress(payload) if compress else payload
    tracemalloc.start()
    with pytest.raises(PayloadTooLargeError, match="2000 x 2000 x 2000"):
        nifti.decode(payload)
    with pytest.raises(InvalidImageError, match="cannot hold them"):
        nifti.decode(payload, VolumeLimits(max_voxels=10**10))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10 * 2**20


def test_a_gzip_bomb_is_expanded_no_further_than_its_header_states() -> None:
    small = nifti.encode(ramp(oblique()), compress=False)
    bomb = gzip.compress(small + bytes(200 * 2**20), 1)
    tracemalloc.start()
    nifti.decode(bomb)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20 * 2**20


@pytest.mark.parametrize("keep", [0, 1, 100, 347, 348, 352, 900, -1])
@pytest.mark.parametrize("compress", [False, True])
def test_a_file_that_is_cut_short_is_refused(keep: int, compress: bool) -> None:
    payload = nifti.encode(ramp(oblique()), compress=compress)
    with pytest.raises(InvalidImageError):
        nifti.decode(payload[:keep])


def test_flipped_bits_in_gzip_are_noticed_by_the_checksum() -> None:
    payload = bytearray(nifti.encode(ramp(oblique())))
    payload[-6] ^= 1  # CRC-32
    with pytest.raises(InvalidImageError, match="checksum"):
        nifti.decode(bytes(payload))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"datatype": 128, "bitpix": 24}, "datatype 128"),
        ({"datatype": 32, "bitpix": 64}, "datatype 32"),
        ({"datatype": 3}, "datatype 3"),
        ({"sform_code": 1, "srow_x": [0, 0, 0, 0]}, "singular|spacings"),
        ({"sform_code": 1, "srow_y": [0, math.nan, 0, 0]}, "finite affine"),
        ({"sform_code": 0, "qform_code": 1, "quatern_b": 2.0}, "unit quaternion"),
        ({"sform_code": 0, "qform_code": 1, "quatern_b": math.nan}, "unit quaternion"),
        ({"sform_code": 0, "pixdim": [1, 1, 0, 1, 1, 1, 1, 1]}, "spacings"),
        ({"xyzt_units": 5}, "unit code 5"),
        ({"scl_slope": 2.0, "scl_inter": math.inf}, "scl_inter"),
        ({"dim": [3, 5, 0, 4, 1, 1, 1, 1]}, "at least 1 voxel"),
        ({"dim": [3, 5, -3, 4, 1, 1, 1, 1]}, "at least 1 voxel"),
    ],
)
def test_a_header_that_makes_no_sense_is_refused(fields: dict[str, Any], message: str) -> None:
    payload = _written(np.zeros(SHAPE, np.uint8), np.eye(4), **fields)
    with pytest.raises(InvalidImageError, match=message):
        nifti.decode(payload)


def test_voxels_that_are_not_numbers_are_background() -> None:
    array = np.arange(np.prod(SHAPE), dtype=np.float32).reshape(SHAPE) + 7
    expected = array.copy()
    array[0, 0, 0], array[1, 2, 1], array[2, 1, 1] = math.nan, math.inf, -math.inf
    expected[[0, 1, 2], [0, 2, 1], [0, 1, 1]] = 8  # the smallest that is left
    decoded = nifti.decode(_written(array, np.eye(4)))
    np.testing.assert_array_equal(decoded.array, expected)
    with pytest.raises(InvalidImageError, match="NaN or infinity"):
        nifti.decode(_written(np.full(SHAPE, math.nan, np.float32), np.eye(4)))


@settings(deadline=None)
@given(st.floats(0, 4e-5), st.lists(st.floats(-1, 1), min_size=3, max_size=3))
def test_a_quaternion_that_rounding_made_too_long_is_taken_for_a_unit_one(
    excess: float, direction: list[float]
) -> None:
    length = float(np.linalg.norm(direction))
    assume(length > 1e-3)
    unit = np.array(direction) / length
    b, c, d = unit * (1 + excess)
    quaternion = {"quatern_b": b, "quatern_c": c, "quatern_d": d}
    fields = {"sform_code": 0, "qform_code": 1, **quaternion}
    decoded = nifti.decode(_written(np.ones(SHAPE, np.uint8), np.eye(4), **fields))
    half_a_turn = 2 * np.outer(unit, unit) - np.eye(3)  # about an axis, by 180 degrees
    np.testing.assert_allclose(decoded.geometry.affine[:3, :3], half_a_turn, atol=2e-3)


def test_bytes_behind_a_whole_gzip_stream_do_not_make_it_damaged() -> None:
    payload = nifti.encode(ramp(oblique()))
    np.testing.assert_array_equal(nifti.decode(payload + b"trailing").array, ramp(oblique()).array)


def test_a_length_of_0_behind_the_third_axis_counts_as_1() -> None:
    array = ramp(oblique()).array
    payload = _written(array, np.eye(4), dim=[4, *array.shape, 0, 1, 1, 1])
    np.testing.assert_array_equal(nifti.decode(payload).array, array)


def test_half_of_a_pair_of_files_is_named_as_such() -> None:
    pair = _Nifti1Pair(np.zeros(SHAPE, np.uint8), np.eye(4))
    payload = pair.header.binaryblock + bytes(4000)
    with pytest.raises(InvalidImageError, match=r"\.hdr/\.img pair"):
        nifti.decode(payload)


@pytest.mark.parametrize("payload", [b"", b"PK\x03\x04", b"hello", b"\x1f\x8b", bytes(400)])
def test_bytes_that_are_no_volume_are_refused(payload: bytes) -> None:
    with pytest.raises(InvalidImageError, match="NIfTI"):
        nifti.decode(payload)


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 351), st.integers(0, 255)), max_size=12),
    st.booleans(),
    st.integers(0, 3200),
)
def test_damaged_headers_raise_only_our_own_errors(
    changes: list[tuple[int, int]], compress: bool, keep: int
) -> None:
    raw = bytearray(nifti.encode(ramp(oblique()), compress=False))
    for at, value in changes:
        raw[at] = value
    payload = bytes(raw[:keep] if keep < 3000 else raw)
    with contextlib.suppress(MedserveError):
        nifti.decode(gzip.compress(payload, 1) if compress else payload)


@settings(deadline=None)
@given(st.binary(max_size=400), st.sampled_from([b"", b"\x1f\x8b\x08\x00", b"\x5c\x01\x00\x00"]))
def test_noise_raises_only_our_own_errors(noise: bytes, start: bytes) -> None:
    with contextlib.suppress(MedserveError):
        nifti.decode(start + noise)


@pytest.mark.data
def test_every_real_case_is_answered_on_its_own_grid() -> None:
    archive = Path(os.environ.get("MEDSERVE_DATA", "")) / "Task04_Hippocampus.tar.gz"
    if not archive.is_file():
        pytest.skip("MEDSERVE_DATA names no folder with Task04_Hippocampus.tar.gz")
    cases = 0
    with tarfile.open(archive) as tar:
        for member in tar:
            name = Path(member.name).name
            if not name.endswith(".nii.gz") or name.startswith("."):
                continue
            source = tar.extractfile(member)
            assert source is not None
            payload = source.read()
            volume = nifti.decode(payload, VolumeLimits(min_side=8))
            before = _as_nibabel_sees(payload)
            mask = Volume((volume.array > 0).astype(np.uint8), volume.geometry)
            answer = _as_nibabel_sees(nifti.encode(mask, volume.space))
            np.testing.assert_array_equal(volume.array, before.get_fdata())
            np.testing.assert_array_equal(volume.geometry.affine, before.affine)
            np.testing.assert_array_equal(answer.affine, before.affine)
            assert answer.shape == before.shape
            cases += 1
    assert cases > 100


def _with_sform(volume: Volume, sform: npt.NDArray[np.float64], *, qform: bool) -> bytes:
    image = _Nifti1(volume.array, volume.geometry.affine)
    image.header.set_qform(volume.geometry.affine, code=1 if qform else 0)
    image.header.set_sform(sform, code=2)
    header = image.header.copy()
    header["vox_offset"] = 352
    return bytes(header.binaryblock) + bytes(4) + volume.array.tobytes(order="F")


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_an_sform_that_mirrors_the_qform_is_refused(axis: int) -> None:
    volume = ramp(oblique((5, 4, 3)))
    mirrored = volume.geometry.affine.copy()
    mirrored[:3, axis] *= -1
    with pytest.raises(InvalidImageError, match="left and right on the same sides"):
        nifti.decode(_with_sform(volume, mirrored, qform=True))
    np.testing.assert_allclose(
        nifti.decode(_with_sform(volume, mirrored, qform=False)).geometry.affine,
        mirrored,
        atol=1e-4,
    )
