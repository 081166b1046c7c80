"""Rules of several inputs: series of one study that one model sees together."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from medserve.dicom.ask import Answer
from medserve.dicom.completeness import StudySeries, judge
from medserve.dicom.dry_run import dry_run
from medserve.dicom.headers import read_facts
from medserve.dicom.node import Node, NodeSettings
from medserve.dicom.peers import Destination, read_destination
from medserve.dicom.receive import ReceiverSettings
from medserve.dicom.rules import Rule, Rules
from medserve.dicom.send import Sender
from medserve.dicom.spool import Image, Spool
from medserve.imaging.geometry import Geometry
from medserve.imaging.volume import Volume
from medserve.settings import Address
from tests.dicom.node_process import StandIn
from tests.dicom.series import write
from tests.volume_phantoms import as_bytes, dicom_slices, ramp

TEXT = """
[[rule]]
name = "tumour"
model = "tumour"
task = "volumes"
modality = ["MR"]
images = [5, 400]
quiet_s = 0
[rule.inputs.T1]
series_description = ["t1*"]
[rule.inputs.FLAIR]
series_description = ["*flair*"]
"""
SHAPE = (8, 7, 5)


def files(description: str, number: int, shift_mm: float = 0.0, slices: int = 5) -> list[bytes]:
    """Return a series of a study, the same for all."""
    affine = np.diag((0.8, 1.1, 2.3, 1.0))
    affine[0, 3] = shift_mm
    plain = ramp(Geometry((*SHAPE[:2], slices), affine))
    volume = Volume(plain.array + number, plain.geometry)
    found = []
    for place, dataset in enumerate(dicom_slices(volume, series=f"2.25.{number}")):
        dataset.PatientName, dataset.PatientID = "Secret^Name", "S1-1"
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID = "2.25.1", f"2.25.1.{number}"
        dataset.FrameOfReferenceUID = "2.25.2"
        dataset.SeriesDescription = description
        dataset.SOPInstanceUID = f"2.25.1.{number}.{place + 1}"
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        found.append(as_bytes(dataset))
    return found


T1, FLAIR = files("T1 MPRAGE", 1), files("ax FLAIR", 2)
GAP = files("ax FLAIR", 2, slices=7)
del GAP[5]


@pytest.fixture
def rules(tmp_path: Path) -> Rules:
    path = tmp_path / "rules.toml"
    path.write_text(TEXT)
    return Rules.read(path)


def count(archive: Destination, study: str, series: str) -> int | None:
    return None


def judged(
    rules: Rules, folder: Path, *each_series: Sequence[bytes], arriving: int | None = None
) -> str:
    study = []
    for number, content in enumerate(each_series):
        paths = write(folder / str(number), content)
        images = [Image(read_facts(path), path) for path in paths]
        study.append(StudySeries(number, "", images, number == arriving))
    [found] = judge(rules, study[0].images, "", count, study)
    assert found.series == tuple(range(len(study)))
    return found.reason


@pytest.mark.parametrize("turned", [False, True])
def test_the_series_of_all_inputs_together_are_complete(
    rules: Rules, tmp_path: Path, turned: bool
) -> None:
    assert judged(rules, tmp_path, *((FLAIR, T1) if turned else (T1, FLAIR))) == ""


@pytest.mark.parametrize(
    ("others", "reason"),
    [
        ([], "input FLAIR: expected one series, got 0"),
        ([FLAIR, files("FLAIR again", 3)], "input FLAIR: expected one series, got 2"),
        ([FLAIR[:2] + FLAIR[3:]], "input FLAIR: expected 5 to 400 images, got 4"),
        ([GAP], "input FLAIR: .*1 slices are missing"),
        ([files("FLAIR", 2, shift_mm=0.5)], "input FLAIR: expected the grid of T1"),
        ([files("FLAIR", 2, slices=6)], "input FLAIR: expected the grid of T1"),
    ],
    ids=["missing", "twice", "too few", "gap", "moved", "longer"],
)  # fmt: skip
def test_what_does_not_make_one_case_is_told_by_its_input(
    rules: Rules, tmp_path: Path, others: list[list[bytes]], reason: str
) -> None:
    told = judged(rules, tmp_path, T1, *others)
    assert re.search(reason, told), told
    assert "Secret" not in told


def test_a_series_that_is_still_coming_is_waited_for(rules: Rules, tmp_path: Path) -> None:
    assert "still coming" in judged(rules, tmp_path, T1, FLAIR, arriving=1)


def test_a_dry_run_shows_the_inputs_of_a_study_once(rules: Rules, tmp_path: Path) -> None:
    for name, content in (("a", T1), ("b", FLAIR), ("c", files("localizer", 3))):
        write(tmp_path / "in" / name, content)
    rows = dry_run(rules, tmp_path / "in", "").rows
    assert [(row.series, row.images, row.rule, row.verdict) for row in rows] == [
        (1, 10, "tumour", "complete"),
        (3, 5, "", "no rule is for it"),
    ]


class _Model(StandIn):
    """Answers about the first input, and remembers what it was asked."""

    asked: list[dict[str, set[str]]]

    def ask(self, rule: Rule, files: Sequence[Path], inputs: Sequence[str] = ()) -> Answer:
        found: dict[str, set[str]] = {}
        for file, name in zip(files, inputs, strict=True):
            found.setdefault(name, set()).add(read_facts(file).series_uid)
        self.asked.append(found)
        first = [file for file, name in zip(files, inputs, strict=True) if name == "T1"]
        return super().ask(rule, first)


@pytest.fixture
def model(tmp_path: Path) -> _Model:
    stand_in = _Model(tmp_path)
    stand_in.asked = []
    return stand_in


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    opened = Spool(tmp_path / "state")
    yield opened
    opened.close()


@pytest.fixture
def node(rules: Rules, spool: Spool, model: _Model) -> Node:
    receiver = ReceiverSettings("NODE", Address("127.0.0.1", 11112))
    settings = NodeSettings(receiver, (read_destination("PACS@127.0.0.1:104"),))
    return Node(settings, rules, spool, model, Sender("NODE"))


def store(spool: Spool, content: Sequence[bytes]) -> None:
    for number, each in enumerate(content):
        path = spool.receiving / str(number)
        path.write_bytes(each)
        spool.receive(path, read_facts(path), "SENDER")


def states(spool: Spool) -> list[tuple[str, int]]:
    found = ("incomplete", "waiting", "held", "answered", "replaced")
    return [(each.state, len(each.images)) for each in spool.tasks(*found)]


def test_a_node_asks_once_about_all_series_whatever_comes_first(
    node: Node, spool: Spool, model: _Model
) -> None:
    store(spool, FLAIR)
    node.judge()
    assert states(spool) == [("incomplete", 5)]
    store(spool, T1)
    node.judge()
    assert states(spool) == [("replaced", 5), ("waiting", 10)]
    assert node.answer()
    assert not node.answer()
    assert model.asked == [{"T1": {"2.25.1.1"}, "FLAIR": {"2.25.1.2"}}]
    assert [made.sop_class for made in spool.deliveries("PACS@127.0.0.1:104")]
    node.judge()
    assert len(spool.tasks("answered")) == 1


def test_a_late_slice_of_either_series_makes_a_new_result(
    node: Node, spool: Spool, model: _Model
) -> None:
    late_t1, late_flair = files("T1 MPRAGE", 1, slices=6)[5:], files("ax FLAIR", 2, slices=6)[5:]
    store(spool, T1 + FLAIR)
    node.judge()
    node.answer()
    store(spool, late_flair)
    node.judge()
    assert "the grid of T1" in spool.tasks("incomplete")[0].reason
    store(spool, late_t1)
    node.judge()
    node.answer()
    assert [(state, images) for state, images in states(spool) if state == "answered"] == [
        ("answered", 10),
        ("answered", 12),
    ]


def test_images_of_every_series_stay_as_long_as_a_task_needs_them(
    node: Node, spool: Spool, model: _Model
) -> None:
    store(spool, T1 + FLAIR)
    node.judge()
    assert spool.purge(-1e9, -1e9, 1e9) == 0  # as old as they may be: the task still waits
    node.answer()
    for each in spool.deliveries("PACS@127.0.0.1:104"):
        spool.delivered(each, "sent")
    assert spool.purge(-1e9, -1e9, 1e9) == 2


def test_forgotten_series_count_as_new(node: Node, spool: Spool, model: _Model) -> None:
    store(spool, T1 + FLAIR)
    node.judge()
    for series, _ in spool.study("2.25.1"):
        spool.forget(series.id)
    assert spool.study("2.25.1") == []
    store(spool, T1 + FLAIR)
    node.judge()
    assert states(spool) == [("waiting", 10)]
