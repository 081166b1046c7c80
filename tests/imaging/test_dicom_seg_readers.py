"""Other people's readers and validators on every kind of DICOM Segmentation that is written."""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import highdicom
import nibabel
import numpy as np
import pytest
from pydicom import Dataset, config, dcmread
from pydicom.uid import UltrasoundMultiFrameImageStorage

from medserve.errors import InvalidImageError
from medserve.imaging.codecs import dicom_frames, dicom_series
from medserve.imaging.codecs.dicom_series import DicomVolume
from medserve.imaging.frames import FrameLimits
from medserve.imaging.packed_masks import PackedMasks
from medserve.results.files import dicom_seg, dicom_seg_frames
from medserve.results.segmentation import Segmentation
from medserve.spec import InputKind, InputSpec
from medserve.spec.volumes import CodedTerm, SegmentCoding
from medserve.tasks.result import Provenance
from tests import frame_phantoms
from tests.volume_phantoms import as_bytes, dicom_slices, enhanced_dicom, oblique, ramp, zipped

pytestmark = pytest.mark.process

LABELS = ("background", "anterior", "posterior")
HIPPOCAMPUS = CodedTerm("5366008", "Hippocampus")
CODES = {
    "anterior": SegmentCoding(HIPPOCAMPUS, CodedTerm("255549009", "Anterior")),
    "posterior": SegmentCoding(HIPPOCAMPUS, CodedTerm("255551008", "Posterior")),
}
PROVENANCE = Provenance("segmentation_3d", "1.2", "sha256:" + "0a" * 32)
PROSTATE = SegmentCoding(CodedTerm("41216001", "Prostate"))
VOLUME = ramp(oblique())
FRAME_LIMITS = FrameLimits(InputSpec(kinds=(InputKind.DICOM,), size=(32, 32)))

Spoil = Callable[[Dataset], None]


def _without(*keywords: str) -> Spoil:
    def spoil(header: Dataset) -> None:
        for keyword in keywords:
            header.pop(keyword, None)

    return spoil


def _with(**elements: object) -> Spoil:
    def spoil(header: Dataset) -> None:
        for keyword, value in elements.items():
            setattr(header, keyword, value)

    return spoil


# Headers as hospitals send them.
HEADERS: dict[str, Spoil] = {
    "as it should be": _without(),
    "de-identified": _without(
        *("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime"),
        *("AccessionNumber", "StudyID", "ReferringPhysicianName", "PositionReferenceIndicator"),
        *("SeriesNumber", "Manufacturer"),
    ),
    "Japanese": _with(
        SpecificCharacterSet=["", "ISO 2022 IR 87"], PatientName="Yamada^Tarou=山田^太郎"
    ),
    "Korean": _with(
        SpecificCharacterSet=["", "ISO 2022 IR 149"], PatientName="Hong^Gildong=洪^吉洞=홍^길동"
    ),
    "Chinese": _with(SpecificCharacterSet="GB18030", PatientName="Wang^XiaoDong=王^小东"),
    "Latin-1": _with(SpecificCharacterSet="ISO_IR 100", PatientName="Müller^Jörg"),
    "bytes of no stated character set": _with(PatientName="Müller^Jörg".encode("latin-1")),
    "values that do not conform": _with(
        PatientSex="X",
        PatientBirthDate="19990230",
        StudyDate="2026.01.02",
        PatientID="7" * 70,
        AccessionNumber="8" * 20,
        PatientAge="50",
        StudyID="9" * 17,
        StudyDescription="\n" * 3,
        PatientIdentityRemoved="YES",
        ReferringPhysicianName="A" * 65,
    ),
    "no slice thickness": _without("SliceThickness"),
    "an empty slice thickness": _with(SliceThickness=None),
    "identity and equipment": _with(
        PatientAge="050Y",
        PatientWeight="71.5",
        StudyDescription="Schädel",
        SpecificCharacterSet="ISO_IR 192",
        BodyPartExamined="HEAD",
        PatientIdentityRemoved="YES",
        DeidentificationMethod="by hand",
        Manufacturer="Maker",
        ContentDate="20200101",
        ContentTime="120000.5",
    ),
}


@pytest.fixture
def tolerant(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let pydicom write headers that do not conform."""
    monkeypatch.setattr(config.settings, "writing_validation_mode", config.IGNORE)
    monkeypatch.setattr(config.settings, "reading_validation_mode", config.IGNORE)


def _series(spoil: Spoil) -> DicomVolume:
    slices = dicom_slices(VOLUME)
    for each in slices:
        spoil(each)
    return dicom_series.decode(zipped([as_bytes(each) for each in slices]))


def _enhanced(spoil: Spoil) -> DicomVolume:
    header = enhanced_dicom(VOLUME, [4, 0, 8, 2, 1, 3, 7, 5, 6])
    [measures] = header.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence
    thin = Dataset()
    thin.SliceThickness = measures.SliceThickness
    spoil(thin)
    if "SliceThickness" in thin:
        measures.SliceThickness = thin.SliceThickness
    else:
        del measures.SliceThickness
    spoil(header)
    return dicom_series.decode(as_bytes(header))


def _mask() -> Segmentation:
    mask = np.zeros(VOLUME.geometry.shape, np.uint8)
    mask[2:7, 3:5, 1:4] = 1
    mask[8:12, 1:9, 3:6] = 2
    return Segmentation(mask, VOLUME.geometry, LABELS)


def _of_volume(source: DicomVolume, *, is_labelmap: bool = False) -> bytes:
    segmentation = Segmentation(_mask().mask, source.geometry, LABELS)
    return dicom_seg.encode(segmentation, source, CODES, PROVENANCE, is_labelmap=is_labelmap)


def _of_frames(frames: int, spoil: Spoil, *, calibrated: bool = True) -> tuple[bytes, PackedMasks]:
    header = frame_phantoms.ultrasound(frame_phantoms.cine(7)[:frames])
    if calibrated:
        header.SequenceOfUltrasoundRegions = [frame_phantoms.region()]
    spoil(header)
    stack = dicom_frames.decode(as_bytes(header), FRAME_LIMITS)
    height, width = stack.grid.size
    scales = np.linspace(0, 1, frames)
    masks = PackedMasks(
        (height, width), (frame_phantoms.ellipse(height, width, scale) for scale in scales)
    )
    return dicom_seg_frames.encode(masks, stack, [("prostate", PROSTATE)], PROVENANCE), masks


def _of_structures(frames: int, spoil: Spoil) -> tuple[bytes, PackedMasks]:
    """Return the object of a loop, or of a single frame, in which two structures lie."""
    header = frame_phantoms.ultrasound(frame_phantoms.cine(7)[:frames])
    spoil(header)
    stack = dicom_frames.decode(as_bytes(header), FRAME_LIMITS)
    masks = PackedMasks(stack.grid.size, labels=3)
    for place in range(frames):
        mask = np.zeros(stack.grid.size, np.uint8)
        mask[3 + place : 20, 5:30] = 1
        mask[22:31, 7 : 25 + place] = 2
        masks.append(mask)
    segments = [("prostate", PROSTATE), ("lesion", PROSTATE)]
    return dicom_seg_frames.encode(masks, stack, segments, PROVENANCE), masks


WRITERS: dict[str, Callable[[Spoil], bytes]] = {
    "MR series": lambda spoil: _of_volume(_series(spoil)),
    "enhanced MR": lambda spoil: _of_volume(_enhanced(spoil)),
    "label map of an MR series": lambda spoil: _of_volume(_series(spoil), is_labelmap=True),
    "label map of an enhanced MR": lambda spoil: _of_volume(_enhanced(spoil), is_labelmap=True),
    "US cine": lambda spoil: _of_frames(3, spoil)[0],
    "US cine without a calibration": lambda spoil: _of_frames(3, spoil, calibrated=False)[0],
    "US image": lambda spoil: _of_frames(1, spoil)[0],
    "US cine with two structures": lambda spoil: _of_structures(3, spoil)[0],
    "US image with two structures": lambda spoil: _of_structures(1, spoil)[0],
}


# The validator is of 2022, two years before the class of label maps.
_KNOWN_TO_DCIODVFY = [each for each in WRITERS if not each.startswith("label map")]


def _findings(payload: bytes, folder: Path) -> list[str]:
    """The lines in which dciodvfy speaks of errors."""
    program = shutil.which("dciodvfy")
    if program is None:
        pytest.skip("dciodvfy is missing: apt-get install dicom3tools")
    (folder / "seg.dcm").write_bytes(payload)
    run = subprocess.run([program, folder / "seg.dcm"], capture_output=True, text=True, timeout=60)
    report = run.stderr + run.stdout
    assert "Segmentation" in report  # it knew what it looked at
    return [line for line in report.splitlines() if line.startswith("Error")]


@pytest.mark.usefixtures("tolerant")
@pytest.mark.parametrize("header", HEADERS)
@pytest.mark.parametrize("writer", _KNOWN_TO_DCIODVFY)
def test_a_validator_finds_no_error(writer: str, header: str, tmp_path: Path) -> None:
    assert _findings(WRITERS[writer](HEADERS[header]), tmp_path) == []


@pytest.mark.usefixtures("tolerant")
@pytest.mark.parametrize("header", HEADERS)
@pytest.mark.parametrize("writer", WRITERS)
def test_the_same_answer_is_the_same_bytes_and_another_has_other_identifiers(
    writer: str, header: str
) -> None:
    first, second = (WRITERS[writer](HEADERS[header]) for _ in range(2))
    assert first == second

    def corrected(dataset: Dataset) -> None:
        HEADERS[header](dataset)
        dataset.PatientID = "corrected"

    found, other = (dcmread(io.BytesIO(each)) for each in (first, WRITERS[writer](corrected)))
    assert found.SOPInstanceUID != other.SOPInstanceUID
    assert found.SeriesInstanceUID != other.SeriesInstanceUID


@pytest.mark.parametrize("header", ["as it should be", "no slice thickness"])
@pytest.mark.parametrize("is_labelmap", [False, True])
@pytest.mark.parametrize("make", [_series, _enhanced])
def test_dcmqi_finds_the_mask_in_the_same_place(
    make: Callable[[Spoil], DicomVolume], is_labelmap: bool, header: str, tmp_path: Path
) -> None:
    program = shutil.which("segimage2itkimage", path=str(Path(sys.executable).parent))
    if program is None:
        pytest.skip("segimage2itkimage is missing: pip install dcmqi")
    source = make(HEADERS[header])
    (tmp_path / "seg.dcm").write_bytes(_of_volume(source, is_labelmap=is_labelmap))
    command = [program, "--inputDICOM", "seg.dcm", "--outputDirectory", "."]
    command += ["--outputType", "nii", "--prefix", "read"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stdout + run.stderr
    for number in (1, 2):
        image = nibabel.load(tmp_path / f"read-{1 if is_labelmap else number}.nii.gz")
        assert isinstance(image, nibabel.Nifti1Image)
        assert image.affine is not None
        array = np.asarray(image.dataobj)
        voxels = np.argwhere(array == number if is_labelmap else array > 0)
        found = voxels @ image.affine[:3, :3].T + image.affine[:3, 3]
        expected = source.geometry.to_world(np.argwhere(_mask().mask == number))
        order, other = (np.lexsort(np.round(each, 2).T) for each in (found, expected))
        np.testing.assert_allclose(found[order], np.asarray(expected)[other], atol=2e-3)


@pytest.mark.usefixtures("tolerant")
@pytest.mark.parametrize("header", HEADERS)
def test_highdicom_reads_frames_back_with_the_true_class_of_their_source(header: str) -> None:
    payload, masks = _of_frames(3, HEADERS[header])
    seg = highdicom.seg.Segmentation.from_dataset(dcmread(io.BytesIO(payload)))
    np.testing.assert_array_equal(seg.pixel_array, masks.array)
    references = [
        reference
        for group in seg.PerFrameFunctionalGroupsSequence
        for reference in group.DerivationImageSequence[0].SourceImageSequence
    ]
    assert {each.ReferencedSOPClassUID for each in references} == {UltrasoundMultiFrameImageStorage}
    assert [each.ReferencedFrameNumber for each in references] == [1, 2, 3]


@pytest.mark.parametrize("frames", [1, 3])
def test_highdicom_reads_each_of_several_structures_in_its_own_frames(frames: int) -> None:
    payload, masks = _of_structures(frames, HEADERS["as it should be"])
    seg = highdicom.seg.Segmentation.from_dataset(dcmread(io.BytesIO(payload)))
    assert [each.SegmentLabel for each in seg.SegmentSequence] == ["prostate", "lesion"]
    expected = np.concatenate([masks.array == 1, masks.array == 2])
    np.testing.assert_array_equal(seg.pixel_array, expected)
    found = [
        (
            group.SegmentIdentificationSequence[0].ReferencedSegmentNumber,
            group.DerivationImageSequence[0].SourceImageSequence[0].get("ReferencedFrameNumber", 1),
        )
        for group in seg.PerFrameFunctionalGroupsSequence
    ]
    assert found == [(segment, frame + 1) for segment in (1, 2) for frame in range(frames)]


@pytest.mark.usefixtures("tolerant")
@pytest.mark.parametrize(
    ("header", "name"),
    [
        ("Japanese", "Yamada^Tarou=山田^太郎"),
        ("Korean", "Hong^Gildong=洪^吉洞=홍^길동"),
        ("Chinese", "Wang^XiaoDong=王^小东"),
        ("Latin-1", "Müller^Jörg"),
        ("bytes of no stated character set", ""),
    ],
)
@pytest.mark.parametrize("writer", WRITERS)
def test_names_are_repeated_as_utf_8(writer: str, header: str, name: str) -> None:
    dataset = dcmread(io.BytesIO(WRITERS[writer](HEADERS[header])))
    assert (dataset.SpecificCharacterSet, str(dataset.PatientName)) == ("ISO_IR 192", name)


def test_the_size_of_a_pixel_is_stated_where_it_is_known() -> None:
    dataset = dcmread(io.BytesIO(_of_frames(3, _without())[0]))
    [measures] = dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence
    assert [float(mm) for mm in measures.PixelSpacing] == [0.2, 0.3]
    assert measures.SliceThickness < 0.01  # a cine loop has none, so no volume follows from it


def test_lists_of_series_tell_what_it_is() -> None:
    dataset = dcmread(io.BytesIO(_of_volume(_series(_without()))))
    assert dataset.SeriesDescription == "medserve segmentation_3d 1.2 (research use)"
    assert dataset.SeriesNumber == 1001
    assert dataset.DeviceSerialNumber == "0a" * 32
    first, second = dataset.SegmentSequence
    assert (first.TrackingID, second.TrackingID) == ("anterior", "posterior")
    assert first.TrackingUID != second.TrackingUID
    assert first.RecommendedDisplayCIELabValue != second.RecommendedDisplayCIELabValue
    assert (
        "archive_digest" in first.SegmentationAlgorithmIdentificationSequence[0].AlgorithmParameters
    )


@pytest.mark.parametrize("keyword", ["PatientID", "PatientName", "StudyInstanceUID"])
def test_a_series_of_two_patients_is_refused_without_quoting_them(keyword: str) -> None:
    slices = dicom_slices(VOLUME)
    setattr(slices[3], keyword, "1.2.3")
    with pytest.raises(InvalidImageError, match=f"one patient.*2 values of {keyword}") as raised:
        _of_volume(dicom_series.decode(zipped([as_bytes(each) for each in slices])))
    assert "Secret" not in str(raised.value)


def test_a_header_is_left_as_it_was() -> None:
    source = _series(_without("PatientName", "SliceThickness"))
    before = [each.to_json() for each in source.sources]
    _of_volume(source)
    assert [each.to_json() for each in source.sources] == before
