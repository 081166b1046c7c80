from __future__ import annotations

import dataclasses
import io
import json
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
from pydicom import Dataset, dcmread
from pydicom.tag import Tag

from medserve.client import SegmentedFile
from medserve.dicom.ask import Answer
from medserve.dicom.evidence import evidence_of
from medserve.dicom.objects import make_objects
from medserve.dicom.rules import Kind, Rule, RuleTask
from medserve.dicom.spool import MadeObject, Task
from medserve.imaging.codecs import dicom_frames, nifti
from medserve.imaging.frames import FrameLimits
from medserve.imaging.packed_masks import PackedMasks
from medserve.results.files import dicom_seg_frames
from medserve.results.frame_measure import measure_frame, measure_stack
from medserve.results.frame_segmentation import FrameFinding, FrameSegmentation
from medserve.spec import InputKind, InputSpec
from medserve.spec.volumes import CodedTerm, SegmentCoding
from medserve.tasks.classification import Classification
from medserve.tasks.frames import FrameResult
from medserve.tasks.regression import Estimate, Regression
from tests.dicom.series import PROVENANCE, answer_volume, series, write
from tests.frame_phantoms import cine, region, saved, ultrasound
from tests.volume_phantoms import as_bytes

TASK = Task(1, 1, "brain", "content", ("1.2.3",), "waiting", "", 0, 1e9)
VOLUMES = Rule(name="brain", model="segmentation_3d", task=RuleTask.VOLUMES)
_BIN = Path(sys.executable).parent  # where pip puts the programs of dcmqi
_PROSTATE = SegmentCoding(CodedTerm("41216001", "Prostate"))


def of_volume(folder: Path, rule: Rule = VOLUMES, task: Task = TASK) -> list[MadeObject]:
    files = write(folder, series(1))
    return make_objects(task, rule, answer_volume(rule, files), files, folder)


def of_frames(folder: Path) -> list[MadeObject]:
    rule = Rule(name="us", model="trus_prostate", task=RuleTask.FRAMES)
    files = write(folder, [loop()])
    return make_objects(TASK, rule, Answer(PROVENANCE, (answer_frames(files[0]),)), files, folder)


def of_images(folder: Path) -> list[MadeObject]:
    rule = Rule(name="kind", model="mednist", task=RuleTask.CLASSIFICATION)
    files = write(folder, series(1)[:2])
    found = tuple(
        Classification(("Hand", "Head CT"), (0.1, 0.9), False, novelty) for novelty in (0.2, 1.5)
    )
    return make_objects(TASK, rule, Answer(PROVENANCE, found), files, folder)


def of_labels(folder: Path) -> list[MadeObject]:
    """Return the report of a radiograph with two findings, and of one with none."""
    rule = Rule(name="kind", model="chest", task=RuleTask.CLASSIFICATION)
    files = write(folder, series(1)[:2])
    found = tuple(
        Classification(("Effusion", "Mass", "Nodule"), (0.9, 0.2, 0.7), True, None, present=present)
        for present in (("Effusion", "Nodule"), ())
    )
    return make_objects(TASK, rule, Answer(PROVENANCE, found), files, folder)


def of_numbers(folder: Path) -> list[MadeObject]:
    """Return the report of two images of a hand, one of a value that is hardly possible."""
    rule = Rule(name="age", model="hand", task=RuleTask.REGRESSION)
    files = write(folder, series(1)[:2])
    found = tuple(
        Regression(
            (
                Estimate("bone age", age, "mo", "months", "too old" if age > 240 else ""),
                Estimate("density", 1.0625e-7, "g/cm3", "gram per cubic centimetre"),
            )
        )
        for age in (106.51234567, 250.0)
    )
    return make_objects(TASK, rule, Answer(PROVENANCE, found), files, folder)


def loop() -> bytes:
    """Return a cine loop as a scanner would write it, as far as a validator looks."""
    dataset = ultrasound(
        cine(),
        SequenceOfUltrasoundRegions=[region()],
        SeriesNumber=1,
        InstanceNumber=1,
        Manufacturer="",
        PatientOrientation="",
        FrameTime=40.0,
        FrameIncrementPointer=Tag("FrameTime"),
    )
    return saved(dataset)


def answer_frames(file: Path) -> FrameResult:
    plane = InputSpec(kinds=(InputKind.DICOM,), size=(8, 8))
    source = dicom_frames.decode(file.read_bytes(), FrameLimits(plane))
    mask = np.zeros((source.grid.count, *source.grid.size), np.uint8)
    mask[1:, 10:20, 8:30] = 1
    masks = PackedMasks.of(mask)
    measures = [measure_frame(each, source.grid) for each in mask]
    found = FrameSegmentation(
        masks,
        source.grid,
        ("background", "prostate"),
        tuple(map(FrameFinding, measures)),
        measure_stack(measures, source.grid),
    )
    return msgspec.structs.replace(
        found.to_result(source),
        model=PROVENANCE.model,
        version=PROVENANCE.version,
        archive_digest=PROVENANCE.archive_digest,
        dicom_seg=dicom_seg_frames.encode(masks, source, [("prostate", _PROSTATE)], PROVENANCE),
    )


MAKERS: list[Callable[[Path], list[MadeObject]]] = [
    *(of_volume, of_frames, of_images, of_labels, of_numbers)
]


def datasets(objects: list[MadeObject]) -> dict[str, Dataset]:
    return {each.kind: dcmread(each.file) for each in objects}


@pytest.mark.parametrize("make", MAKERS)
def test_identifiers_are_of_the_task_and_of_no_other(
    tmp_path: Path, make: Callable[[Path], list[MadeObject]]
) -> None:
    first = [each.sop_uid for each in make(tmp_path / "a")]
    assert len(set(first)) == len(first)
    assert [each.sop_uid for each in make(tmp_path / "b")] == first


def test_a_result_of_a_long_series_is_made_without_the_tables_of_the_standard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = write(tmp_path, series(1))
    answer = answer_volume(VOLUMES, files)

    def loads(*_: object) -> None:
        raise AssertionError("60 MB that a node would keep")

    for name in ("get_module_attribute_map", "get_iod_module_map"):
        monkeypatch.setattr(f"highdicom._standard_utils.{name}", loads)
    assert len(make_objects(TASK, VOLUMES, answer, files, tmp_path)) == 2


def test_another_rule_or_content_has_other_identifiers(tmp_path: Path) -> None:
    objects = of_volume(tmp_path / "a")
    for changed in (
        dataclasses.replace(TASK, rule="other"),
        dataclasses.replace(TASK, content="more"),
        dataclasses.replace(TASK, created=2e9),
    ):
        others = of_volume(tmp_path / "b", VOLUMES, changed)
        assert not {each.sop_uid for each in objects} & {each.sop_uid for each in others}


@pytest.mark.parametrize("make", MAKERS)
def test_every_object_is_of_the_patient_and_says_that_it_is_for_research(
    tmp_path: Path, make: Callable[[Path], list[MadeObject]]
) -> None:
    objects = datasets(make(tmp_path))
    source = dcmread(tmp_path / "000.dcm")
    for dataset in objects.values():
        assert dataset.StudyInstanceUID == source.StudyInstanceUID
        assert dataset.PatientID == source.PatientID
        assert dataset.SeriesInstanceUID != source.SeriesInstanceUID
        assert "research" in dataset.SeriesDescription
        assert dataset.Manufacturer == "medserve"
    assert len({each.SeriesInstanceUID for each in objects.values()}) == len(objects)


def test_report_and_segmentation_speak_of_the_same_segments(tmp_path: Path) -> None:
    objects = of_volume(tmp_path)
    made = datasets(objects)
    seg, report = made["seg"], made["sr"]
    tracked = {str(each.TrackingUID) for each in seg.SegmentSequence}
    text = str(report)
    assert len(tracked) == 2
    assert all(uid in text for uid in tracked)
    assert str(seg.SOPInstanceUID) in text
    assert PROVENANCE.archive_digest.encode() in objects[1].file.read_bytes()
    assert [each.SegmentLabel for each in seg.SegmentSequence] == [
        "anterior 0.02 ml",
        "posterior 0.03 ml",
    ]
    assert report.VerificationFlag == "UNVERIFIED"
    assert report.PreliminaryFlag == "PRELIMINARY"


@pytest.mark.parametrize(("review", "advice"), [(True, "Yes"), (False, "No")])
def test_a_report_says_what_is_known_about_errors(
    tmp_path: Path, review: bool, advice: str
) -> None:
    files = write(tmp_path, series(1))
    answer = answer_volume(VOLUMES, files)
    [found] = answer.found
    assert isinstance(found, SegmentedFile)
    first, second = found.measures
    told = msgspec.structs.replace(first, predicted_dice=0.876, volume_interval_ml=(0.5, 1.5))
    found = dataclasses.replace(found, measures=(told, second), review=review)
    answer = dataclasses.replace(answer, found=(found,))
    report = datasets(make_objects(TASK, VOLUMES, answer, files, tmp_path))["sr"]
    groups = report.ContentSequence[-1].ContentSequence
    numbers, looks = [], []
    for group in groups:
        content = group.ContentSequence
        items = [(each.ConceptNameCodeSequence[0].CodeValue, each) for each in content]
        numbers.append({name: float(each.MeasuredValueSequence[0].NumericValue)
                        for name, each in items if each.ValueType == "NUM"})  # fmt: skip
        looks += [each.ConceptCodeSequence[0].CodeMeaning for name, each in items
                  if name == "REVIEW"]  # fmt: skip
    assert looks == [advice] * 2
    own = {"PREDICTED_DICE": 0.876, "VOLUME_LOW": 0.5, "VOLUME_HIGH": 1.5}
    assert own.items() <= numbers[0].items()
    assert not set(own) & set(numbers[1])
    [scheme] = report.CodingSchemeIdentificationSequence  # says whose the private codes are
    assert scheme.CodingSchemeDesignator == "99MEDSERVE"


def test_a_report_has_a_group_for_each_label_that_is_present_and_says_where_none_is(
    tmp_path: Path,
) -> None:
    report = datasets(of_labels(tmp_path))["sr"]
    found = []
    for group in report.ContentSequence[-1].ContentSequence:
        told: dict[str, object] = {}
        for each in group.ContentSequence:
            name = each.ConceptNameCodeSequence[0].CodeMeaning
            if each.ValueType == "NUM":
                told[name] = float(each.MeasuredValueSequence[0].NumericValue)
            elif each.ValueType == "CODE":
                told[name] = each.ConceptCodeSequence[0].CodeMeaning
            elif each.ValueType == "UIDREF":
                told["track"] = each.UID
        found.append(told)
    assert [each["Finding"] for each in found] == [
        "Effusion", "Nodule", "None of the labels of the model",
    ]  # fmt: skip
    assert [each.get("Probability of the class") for each in found] == [0.9, 0.7, None]
    assert len({each["track"] for each in found}) == 3
    assert all(each["A person should look at the image"] == "Yes" for each in found)


def test_a_report_has_each_number_in_its_unit(tmp_path: Path) -> None:
    report = datasets(of_numbers(tmp_path))["sr"]
    numbers, looks = [], []
    for group in report.ContentSequence[-1].ContentSequence:
        for each in group.ContentSequence:
            if each.ValueType == "NUM":
                measured = each.MeasuredValueSequence[0]
                unit = measured.MeasurementUnitsCodeSequence[0]
                name = each.ConceptNameCodeSequence[0]
                assert unit.CodingSchemeDesignator == "UCUM"
                numbers.append(
                    (name.CodeMeaning, float(measured.NumericValue), unit.CodeValue,
                     unit.CodeMeaning)
                )  # fmt: skip
            elif each.ValueType == "CODE":
                looks.append(each.ConceptCodeSequence[0].CodeMeaning)
    assert numbers == [
        ("bone age", 106.5123, "mo", "months"),
        ("density", 1.0625e-7, "g/cm3", "gram per cubic centimetre"),
        ("bone age", 250.0, "mo", "months"),
        ("density", 1.0625e-7, "g/cm3", "gram per cubic centimetre"),
    ]
    assert looks == ["No", "Yes"]


def test_a_picture_shows_the_contour_and_every_frame(tmp_path: Path) -> None:
    picture = datasets(of_frames(tmp_path))["sc"]
    pixels = picture.pixel_array
    assert pixels.shape == (*cine().shape, 3)
    colourful = (pixels.max(-1) != pixels.min(-1))[:, :26]  # above the line of text
    assert not colourful[0].any()
    assert colourful[3, 10:20, 8:30].all()
    assert not colourful[3, 22:].any()


def test_headers_that_are_not_conformant_are_left_empty(tmp_path: Path) -> None:
    header = dcmread(write(tmp_path, series(1)[:1])[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        header.SpecificCharacterSet = ["", "ISO 2022 IR 87"]
        header.PatientName = "Yamada^Tarou=山田^太郎"
        header.PatientSex, header.PatientBirthDate = "X", "19700230"
        header.AccessionNumber, header.StudyID = "A" * 20, "7"
        del header.PatientID
        found = evidence_of(dcmread(io.BytesIO(as_bytes(header))))
    assert (found.SpecificCharacterSet, str(found.PatientName)) == (
        "ISO_IR 192",
        "Yamada^Tarou=山田^太郎",
    )
    empty = ("PatientSex", "PatientBirthDate", "AccessionNumber", "PatientID")
    assert [found[name].value or "" for name in empty] == [""] * 4
    assert found.StudyID == "7"


@pytest.mark.pacs
@pytest.mark.parametrize("make", MAKERS)
def test_a_validator_finds_no_error(
    tmp_path: Path, make: Callable[[Path], list[MadeObject]]
) -> None:
    if shutil.which("dciodvfy") is None:
        pytest.skip("needs dciodvfy; apt-get install dicom3tools")
    for each in make(tmp_path / "in"):
        path = tmp_path / f"{each.kind}.dcm"
        path.write_bytes(each.file.read_bytes())
        done = subprocess.run(
            ["dciodvfy", "-new", str(path)], capture_output=True, text=True, errors="replace"
        )
        lines = (done.stdout + done.stderr).splitlines()
        assert [line for line in lines if line.startswith("Error")] == [], each.kind


@pytest.mark.pacs
@pytest.mark.parametrize("kind", [Kind.SEG, Kind.LABELMAP])
def test_an_independent_reader_finds_segments_and_volumes(tmp_path: Path, kind: Kind) -> None:
    if not (_BIN / "segimage2itkimage").exists():
        pytest.skip("needs dcmqi; pip install dcmqi")
    rule = msgspec.structs.replace(VOLUMES, results=(kind, Kind.SR))
    for each in of_volume(tmp_path / "in", rule):
        (tmp_path / f"{each.kind}.dcm").write_bytes(each.file.read_bytes())
    out = tmp_path / "out"
    out.mkdir()
    source = ("--inputDICOM", tmp_path / f"{kind}.dcm")
    run("segimage2itkimage", *source, "--outputDirectory", out, "--outputType", "nii")
    voxels = [nifti.decode(path.read_bytes()).array for path in out.glob("*.nii.gz")]
    found = [int((array == label).sum()) for array in voxels for label in (1, 2)]
    assert sorted(filter(None, found)) == [12, 16]
    run("tid1500reader", "--inputDICOM", tmp_path / "sr.dcm", "--outputMetadata", out / "sr.json")
    measured = json.loads((out / "sr.json").read_text())["Measurements"]
    values = [float(each["measurementItems"][0]["value"]) for each in measured]
    voxel_ml = 0.8 * 1.1 * 2.3 / 1000
    assert values == pytest.approx([12 * voxel_ml, 16 * voxel_ml], abs=1e-3)


def run(program: str, *arguments: object) -> None:
    command = [str(_BIN / program), *map(str, arguments)]
    subprocess.run(command, check=True, capture_output=True)
