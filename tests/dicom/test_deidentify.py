"""De-identified copies: nothing of a person is left, and all that a model needs is."""

from __future__ import annotations

import io
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import DataElement, Dataset, dcmread
from pydicom._dicom_dict import DicomDictionary
from pydicom.tag import Tag
from pydicom.uid import UID, EnhancedMRImageStorage, UltrasoundImageStorage

from medserve.dicom.deidentify import Pseudonyms, copy_without_identity
from medserve.errors import InvalidImageError
from medserve.imaging.codecs import dicom_series
from medserve.imaging.codecs.dicom_traits import traits_of
from tests.dicom.archive import Archive, running_archive, send
from tests.dicom.series import RULES, SECRETS, series, write
from tests.dicom.test_node import NodeProcess
from tests.frame_phantoms import scan, ultrasound
from tests.volume_phantoms import as_bytes, dicom_slices, enhanced_dicom, oblique, ramp, zipped

KEY = Pseudonyms(b"k" * 32)
VOLUME = ramp(oblique())
SECRET, SECRET_UID = "Canary^Zoe", "1.2.3.987654321"
# What a value of each kind says of a person, as it would stand in the file.
SAYS: dict[str, object] = {
    **dict.fromkeys(("PN", "LO", "SH", "ST", "LT", "UT", "UC", "UR", "CS", "AE"), SECRET),
    **dict.fromkeys(("OB", "OW", "UN"), SECRET.encode()),
    "DA": "19870617",
    "TM": "131719.987654",
    "DT": "19870617131719.987654",
    "AS": "087Y",
    "UI": SECRET_UID,
}
TRACES = [SECRET.encode(), SECRET_UID.encode(), b"19870617", b"131719", b"087Y"]
_NEEDED = ("PixelData", "LookupTable", "LUTData", "OffsetTable", "SOPClassUID", "CharacterSet")


def copied(source: Dataset | bytes, folder: Path, *, may_show_text: bool = False) -> Dataset:
    content = source if isinstance(source, bytes) else as_bytes(source)
    (folder / "source").write_bytes(content)
    copy_without_identity(folder / "source", folder / "copy", KEY, may_show_text=may_show_text)
    return dcmread(folder / "copy")


def telling() -> Dataset:
    """An image of which every element of the dictionary that can names a person."""
    dataset = dicom_slices(VOLUME)[0]
    nested = Dataset()
    nested.PatientName, nested.StudyDate, nested.PatientID = SECRET, "19870617", SECRET
    nested.add(DataElement(0x00091001, "LO", SECRET))
    for tag, (vr, _, _, _, keyword) in DicomDictionary.items():
        vr = vr.split(" or ")[0]
        group = tag >> 16
        if group in (0x0000, 0x0002, 0x0004, 0xFFFE) or tag & 0xFFFF == 0 or tag in dataset:
            continue
        if any(part in keyword for part in _NEEDED):
            continue
        if vr == "SQ":
            dataset.add(DataElement(tag, "SQ", [nested]))
        elif vr in SAYS:
            dataset.add(DataElement(tag, vr, SAYS[vr]))
    dataset.PatientName, dataset.PatientID, dataset.StudyInstanceUID = SECRET, SECRET, SECRET_UID
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = UID(SECRET_UID)
    dataset.BurnedInAnnotation = "NO"
    for group in (0x6000, 0x6002, 0x5000):  # overlays and curves, which repeat
        dataset.add(DataElement(Tag(group, 0x0022), "LO", SECRET))
        dataset.add(DataElement(Tag(group, 0x3000), "OW", SECRET.encode()))
    for group in (0x0009, 0x0019, 0x7FE1):
        dataset.add(DataElement(Tag(group, 0x0010), "LO", "SOMEBODY"))
        dataset.add(DataElement(Tag(group, 0x1001), "LO", SECRET))
    dataset.add(DataElement(Tag(0xFFFC, 0xFFFC), "OB", SECRET.encode()))
    return dataset


def test_nothing_that_any_element_says_of_a_person_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pydicom import config

    monkeypatch.setattr(config.settings, "writing_validation_mode", config.IGNORE)
    monkeypatch.setattr(config.settings, "reading_validation_mode", config.IGNORE)
    dataset = telling()
    assert len(dataset) > 2500
    content = bytearray(as_bytes(dataset))
    content[: len(SECRET)] = SECRET.encode()  # the preamble may hold anything
    assert all(trace in content for trace in TRACES)
    copy = copied(bytes(content), tmp_path)
    written = (tmp_path / "copy").read_bytes()
    assert [trace for trace in TRACES if trace in written] == []
    assert not [element for element in copy.iterall() if element.tag.is_private]
    for name in ("PatientWeight", "PatientSize", "PatientAge", "OtherPatientIDs"):
        assert name not in copy
    np.testing.assert_array_equal(copy.pixel_array, dicom_slices(VOLUME)[0].pixel_array)
    assert (copy.PatientIdentityRemoved, copy.PatientBirthDate, copy.StudyDate) == ("YES", "", "")


@pytest.mark.parametrize("kind", ["slices", "enhanced"])
def test_copies_are_the_same_volume_under_identifiers_that_are_stable(
    tmp_path: Path, kind: str
) -> None:
    sources = dicom_slices(VOLUME) if kind == "slices" else [enhanced_dicom(VOLUME, [*range(9)])]
    first, second = ([copied(each, tmp_path) for each in sources] for _ in range(2))
    before = dicom_series.decode(zipped([as_bytes(each) for each in sources]))
    after = dicom_series.decode(zipped([as_bytes(each) for each in first]))
    np.testing.assert_array_equal(after.array, before.array)
    assert after.geometry == before.geometry
    assert [each.SOPInstanceUID for each in first] == [each.SOPInstanceUID for each in second]
    for name in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "PatientID"):
        [mapped] = {str(each[name].value) for each in first}
        assert mapped != str(sources[0][name].value)
    copy_without_identity(
        tmp_path / "source", tmp_path / "other", Pseudonyms(b"o" * 32), may_show_text=False
    )
    other = dcmread(tmp_path / "other")
    assert other.PatientID != first[-1].PatientID
    assert other.SOPInstanceUID != first[-1].SOPInstanceUID


def test_what_tells_acquisitions_apart_still_does(tmp_path: Path) -> None:
    found = set()
    for b_value in (0, 1000):
        dataset = dicom_slices(VOLUME, EchoTime="30", ConvolutionKernel="Secret sharp")[0]
        dataset.ContrastBolusAgent = "Secretovist"
        dataset.ProtocolName, dataset.SeriesDescription = "Secret T1", "Secret of the knee"
        dataset.ReceiveCoilName, dataset.PixelBandwidth, dataset.EchoNumbers = "Secret", "130", 2
        block = dataset.private_block(0x0019, "SIEMENS MR HEADER", create=True)
        block.add_new(0x0C, "IS", b_value)
        copy = copied(dataset, tmp_path)
        assert len(set(traits_of(copy, 0)) - {""}) == len(set(traits_of(dataset, 0)) - {""})
        assert b"Secret" not in (tmp_path / "copy").read_bytes()
        found.add(traits_of(copy, 0))
    assert len(found) == 2


def _plain_mr(dataset: Dataset) -> None:
    pass


def _says(text: str) -> Callable[[Dataset], None]:
    def say(dataset: Dataset) -> None:
        dataset.BurnedInAnnotation = text

    return say


def _screen(dataset: Dataset) -> None:
    dataset.ImageType = ["DERIVED", "SECONDARY", "SCREEN SAVE"]


@pytest.mark.parametrize(
    ("kind", "change", "is_taken"),
    [
        ("MR", _plain_mr, True),
        ("MR", _says("YES"), False),
        ("MR", _screen, False),
        ("US", _plain_mr, False),
        ("US", _says("NO"), True),
        ("US", _says("YES"), False),
    ],
)
def test_pixels_that_may_show_text_are_refused_unless_a_rule_takes_them(
    tmp_path: Path, kind: str, change: Callable[[Dataset], None], is_taken: bool
) -> None:
    dataset = dicom_slices(VOLUME)[0]
    if kind == "US":
        dataset = ultrasound(scan()[np.newaxis])
        dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = UltrasoundImageStorage
    change(dataset)
    if is_taken:
        copied(dataset, tmp_path)
    else:
        with pytest.raises(InvalidImageError, match="burned_in"):
            copied(dataset, tmp_path)
        copied(dataset, tmp_path, may_show_text=True)


@settings(max_examples=25, deadline=None)
@given(stored=st.integers(8, 16), signed=st.booleans(), seed=st.integers(0, 2**16))
def test_bits_beside_the_stored_ones_are_cleared_and_values_stay(
    tmp_path_factory: pytest.TempPathFactory, stored: int, signed: bool, seed: int
) -> None:
    chance = np.random.default_rng(seed)
    low, high = (-(2 ** (stored - 1)), 2 ** (stored - 1)) if signed else (0, 2**stored)
    dataset = dicom_slices(VOLUME, BitsStored=stored, HighBit=stored - 1)[0]
    dataset.PixelRepresentation = int(signed)
    values = chance.integers(low, high, (dataset.Rows, dataset.Columns))
    written = (values & (2**stored - 1)) | (chance.integers(0, 2**16, values.shape) << stored)
    dataset.PixelData = (written & 0xFFFF).astype("<u2").tobytes()
    copy = copied(dataset, tmp_path_factory.mktemp("bits"))
    found = np.frombuffer(copy.PixelData, "<i2" if signed else "<u2").reshape(values.shape)
    np.testing.assert_array_equal(found, values)


def test_a_damaged_number_is_refused_without_its_value(tmp_path: Path) -> None:
    content = as_bytes(dicom_slices(VOLUME, EchoTime="30")[0])
    with pytest.raises(InvalidImageError) as caught:
        copied(content.replace(b"\x18\x00\x81\x00DS\x02\x0030", b"\x18\x00\x81\x00DS\x02\x00ZQ"),
               tmp_path)  # fmt: skip
    assert "EchoTime" in str(caught.value)
    assert "ZQ" not in str(caught.value)


def test_the_key_of_a_folder_is_made_once_and_closed_to_others(tmp_path: Path) -> None:
    first, second = Pseudonyms.of_folder(tmp_path), Pseudonyms.of_folder(tmp_path)
    assert first.uid("1.2.3") == second.uid("1.2.3") != KEY.uid("1.2.3")
    [key] = tmp_path.iterdir()
    assert key.stat().st_mode & 0o077 == 0
    assert first.uid(EnhancedMRImageStorage) == EnhancedMRImageStorage


@pytest.mark.process
@pytest.mark.parametrize("kind", ["slices", "enhanced"])
def test_a_validator_finds_no_error_in_a_copy_that_the_source_has_not(
    tmp_path: Path, kind: str
) -> None:
    program = shutil.which("dciodvfy")
    if program is None:
        pytest.skip("dciodvfy is missing: apt-get install dicom3tools")
    dataset = dicom_slices(VOLUME)[0] if kind == "slices" else enhanced_dicom(VOLUME, [*range(9)])
    copied(dataset, tmp_path)
    found = []
    for name in ("source", "copy"):
        run = subprocess.run([program, tmp_path / name], capture_output=True, text=True, timeout=60)
        lines = (run.stderr + run.stdout).splitlines()
        found.append({line for line in lines if line.startswith("Error")})
    assert found[1] - found[0] == set()


@pytest.mark.process
def test_a_research_archive_gets_copies_and_results_that_refer_to_them(tmp_path: Path) -> None:
    sources = [dcmread(io.BytesIO(each)) for each in series(1)]
    with running_archive() as hospital, running_archive() as research:
        more = f'destination = ["{research.destination}"]\ndeidentify = true\n'
        node = NodeProcess(tmp_path, hospital.destination, rules=RULES + more)
        node.start()
        try:
            assert send(node.address, series(1)) == [0] * 5
            node.wait(lambda: len(research.contents) == 7)
            _check_route(research, sources)
            assert hospital.contents == {}
            back = list(research.contents.values())
            assert send(node.address, back) == [0] * 7  # and none of them is worked on
            [(ignored,)] = node.rows("SELECT value FROM count WHERE name = 'results_ignored'")
            assert ignored == 7
            assert node.rows("SELECT count(*) FROM shown") == [(5,)]  # the originals alone
            assert not [secret for secret in SECRETS if secret in node.log.read_text()]
        finally:
            node.kill()


@pytest.mark.process
def test_a_late_image_adds_its_copy_and_a_result_of_all(tmp_path: Path) -> None:
    files = series(1, slices=6)
    with running_archive() as research:
        more = f'destination = ["{research.destination}"]\ndeidentify = true\n'
        node = NodeProcess(tmp_path, research.destination, rules=RULES + more)
        node.start()
        try:
            assert send(node.address, files[:5]) == [0] * 5
            node.wait(lambda: len(research.contents) == 7)
            assert send(node.address, files[5:]) == [0]
            node.wait(lambda: len(research.contents) == 10)  # 6 copies, 2 and 2 results
        finally:
            node.kill()
    assert {len(digests) for digests in research.digests.values()} == {1}


def _check_route(research: Archive, sources: Sequence[Dataset]) -> None:
    files = [dcmread(io.BytesIO(each)) for each in research.contents.values()]
    originals = {str(each[name].value).encode() for each in sources
                 for name in ("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID",
                              "FrameOfReferenceUID", "PatientID", "PatientName")}  # fmt: skip
    for content in research.contents.values():
        assert [each for each in originals if each in content] == []
    assert len({each.PatientID for each in files}) == len({each.StudyInstanceUID for each in files})
    copies = {each.SOPInstanceUID for each in files if each.Modality == "MR"}
    [seg] = [each for each in files if each.Modality == "SEG"]
    referred = {
        image.ReferencedSOPInstanceUID
        for group in seg.PerFrameFunctionalGroupsSequence
        for derivation in group.DerivationImageSequence
        for image in derivation.SourceImageSequence
    }
    assert referred == copies
    times = {
        str(element.value)
        for each in files
        for element in each.iterall()
        if element.VR in ("DA", "DT") and element.value
    }
    assert times <= {"19000101", "19000101000000"}


def test_series_of_one_patient_have_one_pseudonym(tmp_path: Path) -> None:
    first, second = (dcmread(file) for file in write(tmp_path, [series(1)[0], series(2)[0]]))
    second.PatientID = first.PatientID
    assert copied(first, tmp_path).PatientID == copied(second, tmp_path).PatientID
