from __future__ import annotations

import contextlib
import gzip
import io
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medserve.errors import InvalidImageError, MedserveError, PayloadTooLargeError
from medserve.imaging.codecs import nifti, sniff
from medserve.imaging.codecs.research_volumes import decode, recognises
from medserve.imaging.codecs.volume_file import decode as decode_any
from medserve.imaging.geometry import Geometry
from medserve.imaging.volume import Volume, VolumeLimits
from medserve.spec import InputKind
from tests.volume_phantoms import geometries, lps_affine, oblique, ramp

VOLUME = ramp(oblique((5, 4, 3)))
_TYPES = ("u1", "i1", "i2", "u2", "i4", "f4", "f8")


def nrrd(volume: Volume, data: bytes | None = None, **fields: str) -> bytes:
    """An NRRD file in LPS; a field that is empty is left out."""
    affine = lps_affine(volume.geometry)
    vectors = [f"({','.join(repr(float(n)) for n in column)})" for column in affine[:3].T]
    stated = {
        "type": volume.array.dtype.name.replace("float32", "float").replace("float64", "double"),
        "dimension": "3",
        "space": "left-posterior-superior",
        "sizes": " ".join(map(str, volume.geometry.shape)),
        "space directions": " ".join(vectors[:3]),
        "space origin": vectors[3],
        "endian": "little",
        "encoding": "raw",
    } | {name.replace("_", " "): value for name, value in fields.items()}
    lines = "".join(f"{name}: {value}\n" for name, value in stated.items() if value)
    content = volume.array.tobytes(order="F") if data is None else data
    return f"NRRD0005\n# a comment: of no account\n{lines}key:=value\n\n".encode() + content


def metaimage(volume: Volume, data: bytes | None = None, **fields: str) -> bytes:
    """A MetaImage file; a field that is empty is left out."""
    affine, spacing = lps_affine(volume.geometry), volume.geometry.spacing_mm
    rows = (affine[:3, :3] / spacing).T.ravel()
    kinds = {"int16": "MET_SHORT", "float32": "MET_FLOAT", "uint8": "MET_UCHAR"}
    stated = {
        "ObjectType": "Image",
        "NDims": "3",
        "BinaryData": "True",
        "BinaryDataByteOrderMSB": "False",
        "CompressedData": "False",
        "TransformMatrix": " ".join(repr(float(n)) for n in rows),
        "Offset": " ".join(repr(float(n)) for n in affine[:3, 3]),
        "AnatomicalOrientation": "RAI",
        "ElementSpacing": " ".join(map(repr, map(float, spacing))),
        "DimSize": " ".join(map(str, volume.geometry.shape)),
        "ElementType": kinds[volume.array.dtype.name],
    } | fields
    end = stated.pop("ElementDataFile", "LOCAL")
    lines = "".join(f"{name} = {value}\n" for name, value in stated.items() if value)
    content = volume.array.tobytes(order="F") if data is None else data
    return f"{lines}ElementDataFile = {end}\n".encode() + content


def mgh(array: np.ndarray, affine: np.ndarray) -> bytes:
    """FreeSurfer's format, written by nibabel."""
    image: Any = nibabel.MGHImage
    content: bytes = image(array, affine).to_bytes()
    return content


def mgz(volume: Volume) -> bytes:
    """FreeSurfer's format in gzip."""
    return gzip.compress(mgh(volume.array, volume.geometry.affine))


FILES = {"NRRD": nrrd(VOLUME), "MetaImage": metaimage(VOLUME), "MGZ": mgz(VOLUME)}


@settings(deadline=None, max_examples=8)
@given(geometries(smallest=1, largest=6), st.sampled_from(_TYPES), st.booleans())
def test_simpleitk_reads_the_same_voxels_at_the_same_places(
    tmp_path_factory: pytest.TempPathFactory, geometry: Geometry, kind: str, packed: bool
) -> None:
    itk = pytest.importorskip("SimpleITK", reason="pip install SimpleITK, the oracle of this test")
    values = np.arange(np.prod(geometry.shape)).reshape(geometry.shape) % 120
    affine = lps_affine(geometry)
    image = itk.GetImageFromArray(values.astype(kind).T)
    image.SetSpacing([float(mm) for mm in geometry.spacing_mm])
    image.SetOrigin([float(mm) for mm in affine[:3, 3]])
    image.SetDirection((affine[:3, :3] / geometry.spacing_mm).ravel())
    for suffix in ("nrrd", "mha"):
        path = tmp_path_factory.mktemp("itk") / f"a.{suffix}"
        itk.WriteImage(image, str(path), packed)
        found = decode(path.read_bytes())
        assert found.array.dtype == np.dtype(kind)
        np.testing.assert_array_equal(found.array, values)
        np.testing.assert_allclose(found.geometry.affine, geometry.affine, atol=1e-5)


@pytest.mark.parametrize("written", [nrrd, metaimage])
def test_simpleitk_agrees_on_files_that_others_wrote(written: Any, tmp_path: Path) -> None:
    itk = pytest.importorskip("SimpleITK", reason="pip install SimpleITK, the oracle of this test")
    path = tmp_path / f"a.{'nrrd' if written is nrrd else 'mha'}"
    path.write_bytes(written(VOLUME))
    image, found = itk.ReadImage(str(path)), decode(path.read_bytes())
    np.testing.assert_array_equal(itk.GetArrayFromImage(image).T, found.array)
    for index in ((0, 0, 0), (4, 0, 0), (0, 3, 0), (1, 2, 2)):
        x, y, z = image.TransformIndexToPhysicalPoint(index)
        np.testing.assert_allclose(found.geometry.to_world(np.array(index)), (-x, -y, z), atol=1e-4)


@settings(deadline=None, max_examples=8)
@given(geometries(smallest=2, largest=6), st.sampled_from(("u1", "i2", "i4", "f4")), st.booleans())
def test_mgh_lies_where_freesurfer_puts_it(geometry: Geometry, kind: str, packed: bool) -> None:
    values = (np.arange(np.prod(geometry.shape)).reshape(geometry.shape) % 120).astype(kind)
    content = mgh(values, geometry.affine)
    found = decode(gzip.compress(content) if packed else content)
    np.testing.assert_array_equal(found.array, values)
    np.testing.assert_allclose(found.geometry.affine, geometry.affine, atol=1e-3)


@pytest.mark.parametrize(
    ("space", "signs"),
    [("RAS", (-1, -1, 1)), ("left-anterior-superior", (1, -1, 1)), ("LPS", (1, 1, 1))],
)
def test_each_space_of_nrrd_is_turned_to_ras(space: str, signs: tuple[int, ...]) -> None:
    found = decode(nrrd(VOLUME, space=space))
    lps = lps_affine(VOLUME.geometry)[:3] * np.reshape(signs, (3, 1))
    np.testing.assert_allclose(lps_affine(found.geometry)[:3], lps, atol=1e-9)


def test_big_endian_and_compressed_data_are_read() -> None:
    swapped = VOLUME.array.astype(">i2").tobytes(order="F")
    plain = VOLUME.array.tobytes(order="F")
    for payload in (
        nrrd(VOLUME, swapped, endian="big"),
        nrrd(VOLUME, gzip.compress(plain), encoding="gzip"),
        nrrd(VOLUME).replace(b"\n", b"\r\n", nrrd(VOLUME).count(b"\n", 0, 400)),
        metaimage(VOLUME, swapped, BinaryDataByteOrderMSB="True"),
        metaimage(VOLUME, zlib.compress(plain), CompressedData="True"),
    ):
        np.testing.assert_array_equal(decode(payload).array, VOLUME.array)


def test_one_of_several_volumes_is_chosen_wherever_its_axis_stands() -> None:
    both = np.stack([VOLUME.array, VOLUME.array + 100])  # (C, I, J, K)
    directions = "none " + nrrd(VOLUME).split(b"space directions: ")[1].split(b"\n")[0].decode()
    beside = both.tobytes(order="F")
    for payload in (
        nrrd(VOLUME, beside, dimension="4", sizes="2 5 4 3", space_directions=directions),
        metaimage(VOLUME, beside, ElementNumberOfChannels="2"),
        mgh(np.moveaxis(both, 0, 3), VOLUME.geometry.affine),
    ):
        with pytest.raises(InvalidImageError, match="5 x 4 x 3 x 2; send one volume, or name"):
            decode(payload)
        np.testing.assert_array_equal(decode(payload, channel=1).array, both[1])
        with pytest.raises(InvalidImageError, match="channel from 0 to 1"):
            decode(payload, channel=2)


def test_nan_and_infinities_are_background() -> None:
    array = VOLUME.array.astype(np.float32) + 5
    array[0, 0, 0], array[1, 1, 1] = np.nan, -np.inf
    volume = decode(nrrd_of(array))
    assert volume.array[0, 0, 0] == volume.array[1, 1, 1] == 6


def nrrd_of(array: np.ndarray) -> bytes:
    return nrrd(VOLUME, array.tobytes(order="F"), type="float")


@pytest.mark.parametrize("name", sorted(FILES))
def test_the_door_reads_what_a_model_of_nifti_takes(name: str) -> None:
    payload = FILES[name]
    volume = decode_any(payload, (InputKind.NIFTI,))
    np.testing.assert_array_equal(volume.array, VOLUME.array)
    mask = nifti.decode(nifti.encode(Volume(volume.array % 2, volume.geometry)))
    assert mask.geometry.matches(volume.geometry)
    with pytest.raises(InvalidImageError, match=f"{name} volume"):
        decode_any(payload, (InputKind.DICOM,))
    assert sniff.kind(payload).advice == "send it to a volume model"


@pytest.mark.parametrize(
    ("payload", "words"),
    [
        (nrrd(VOLUME, data_file="/etc/passwd"), "voxels lie in another file"),
        (metaimage(VOLUME, ElementDataFile="/etc/passwd"), "voxels lie in another file"),
        (nrrd(VOLUME, space="scanner-xyz"), "space LPS, RAS or LAS"),
        (nrrd(VOLUME, space=""), "space LPS, RAS or LAS"),
        (nrrd(VOLUME, space_directions="", spacings="1 1 1"), "space LPS, RAS or LAS"),
        (nrrd(VOLUME, space_units='"um" "um" "um"'), "millimetres"),
        (nrrd(VOLUME, encoding="bzip2"), "raw or gzip"),
        (nrrd(VOLUME, byte_skip="8"), "skip"),
        (nrrd(VOLUME, type="block"), "header is damaged"),
        (nrrd(VOLUME, endian=""), "header is damaged"),
        (nrrd(VOLUME)[:-1], "cut short"),
        (nrrd(VOLUME, gzip.compress(bytes(120))[:-9], encoding="gzip"), "cut short"),
        (FILES["MGZ"][:-9], "cut short"),
        (nrrd(VOLUME, b"no gzip", encoding="gzip"), "damaged"),
        (nrrd(VOLUME, space_origin="(nan,0,0)"), "finite|affine"),
        (metaimage(VOLUME, BinaryData="False"), "binary"),
        (metaimage(VOLUME, DistanceUnits="um"), "millimetres"),
        (metaimage(VOLUME, ElementToIntensityFunctionSlope="2"), "rescale"),
        (metaimage(VOLUME, ElementType="MET_LONG"), "header is damaged"),
        (metaimage(VOLUME)[:-1], "cut short"),
        (mgh(VOLUME.array, VOLUME.geometry.affine)[:300], "cut short"),
        (b"text", "expected NRRD"),
    ],
)
def test_what_cannot_be_read_with_certainty_is_refused(payload: bytes, words: str) -> None:
    with pytest.raises(InvalidImageError, match=words):
        decode(payload)


@pytest.mark.parametrize("written", [nrrd, metaimage])
def test_a_bomb_is_expanded_no_further_than_its_header_says(written: Any) -> None:
    data = zlib.compress(bytes(40 * 2**20))
    packed = {"encoding": "gzip"} if written is nrrd else {"CompressedData": "True"}
    tracemalloc.start()
    decode(written(VOLUME, data, **packed))
    sides = {"sizes": "9999 9999 9999"} if written is nrrd else {"DimSize": "9999 9999 9999"}
    with pytest.raises(PayloadTooLargeError):
        decode(written(VOLUME, data, **packed, **sides), VolumeLimits())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 * 2**20


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(sorted(FILES)),
    st.lists(st.tuples(st.integers(0, 500), st.integers(0, 255)), max_size=6),
    st.integers(10, 900),
)
def test_damaged_files_raise_only_our_own_errors(
    name: str, changes: list[tuple[int, int]], keep: int
) -> None:
    raw = bytearray(FILES[name])
    for at, value in changes:
        raw[at % len(raw)] = value
    with contextlib.suppress(MedserveError):
        if recognises(bytes(raw[:keep])):
            decode(bytes(raw[:keep]))
        decode(bytes(raw))


def test_a_stream_of_bytes_of_any_kind_is_taken() -> None:
    for payload in (bytearray(FILES["NRRD"]), memoryview(FILES["MGZ"])):
        np.testing.assert_array_equal(decode(payload).array, VOLUME.array)
    assert not recognises(io.BytesIO().getvalue())
