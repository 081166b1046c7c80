"""`medserve predict` with a model of volumes."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydicom.uid import MediaStorageDirectoryStorage

from medserve.cli.show.files import find_cases
from tests.cli.conftest import Medserve
from tests.client.fake_gateway import FakeGateway, serving
from tests.client.segmenting import by_size, volumes_model
from tests.phantoms import dicom_bytes, dicom_dataset, disc, saved


@pytest.fixture
def fake() -> Iterator[FakeGateway]:
    with serving(FakeGateway(volumes_model(), answer=by_size)) as server:
        yield server


@pytest.fixture
def cases(tmp_path: Path) -> Path:
    folder = tmp_path / "cases"
    (folder / "series").mkdir(parents=True)
    (folder / "one.nii.gz").write_bytes(b"x" * 100)
    (folder / "two.nii").write_bytes(b"x" * 50)
    for place in range(3):
        (folder / "series" / f"IM{place}").write_bytes(bytes(128) + b"DICM")
    return folder


def test_masks_pictures_and_a_table_are_written(
    medserve: Medserve, fake: FakeGateway, cases: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run = medserve("predict", "mednist", cases, "--out", out, "--address", fake.address)
    assert run.code == 0
    assert sorted(path.name for path in out.iterdir()) == [
        *("one_mask.nii.gz", "one_overlay.png", "series_mask.nii.gz", "series_overlay.png"),
        *("two_mask.nii.gz", "two_overlay.png", "volumes.csv"),
    ]
    assert (out / "one_mask.nii.gz").read_bytes()[:2] == b"\x1f\x8b"
    rows = run.out.splitlines()
    assert "anterior ml" in rows[0]
    assert "posterior ml" in rows[0]
    assert "0.200" in rows[1]
    assert "reaches the edge: posterior" in rows[1]
    with (out / "volumes.csv").open(newline="") as file:
        written = list(csv.DictReader(file))
    assert [Path(row["path"]).name for row in written[::2]] == ["one.nii.gz", "two.nii", "series"]
    assert [row["label"] for row in written[:2]] == ["anterior", "posterior"]
    assert float(written[0]["volume_ml"]) == pytest.approx(0.2)


def test_what_is_unlike_the_training_data_is_told_on_the_line_and_in_the_table(
    medserve: Medserve, fake: FakeGateway, cases: Path, tmp_path: Path
) -> None:
    (cases / "two.nii").write_bytes(b"unlike" * 10)
    arguments = ("--out", tmp_path / "out", "--address", fake.address)
    run = medserve("predict", "mednist", cases, *arguments)
    assert run.code == 0
    assert "review, texture: differences of 1.15 standard deviations" in " ".join(run.out.split())
    with (tmp_path / "out" / "volumes.csv").open(newline="") as file:
        written = list(csv.DictReader(file))
    assert [row["review"] for row in written[::2]] == ["False", "True", "False"]
    assert written[2]["doubts"] == "texture: differences of 1.15 standard deviations"


@pytest.mark.parametrize(
    ("form", "names", "asked"),
    [
        (
            "dicom-seg",
            ["one_mask.dcm", "one_overlay.png"],
            {"format": "dicom-seg", "overlay": True},
        ),
        (
            "dicom-labelmap",
            ["one_mask.dcm", "one_overlay.png"],
            {"format": "dicom-labelmap", "overlay": True},
        ),
        ("png", ["one_overlay.png"], {"overlay": True}),
        ("json", ["one.json"], {}),
    ],
)
def test_formats_write_what_they_name(
    form: str,
    names: list[str],
    asked: dict[str, object],
    medserve: Medserve,
    fake: FakeGateway,
    cases: Path,
    tmp_path: Path,
) -> None:
    out = tmp_path / "out"
    arguments = ("--out", out, "--format", form, "--address", fake.address)
    assert medserve("predict", "mednist", cases / "one.nii.gz", *arguments).code == 0
    assert sorted(path.name for path in out.iterdir()) == [*names, "volumes.csv"]
    assert json.loads(fake.requests[-1].inputs["params"]) == {"output": "json", **asked}
    if form == "json":
        record = json.loads((out / "one.json").read_text())
        assert record["volumes_ml"]["anterior"] == pytest.approx(0.2)
        assert "mask_nifti" not in record


def test_uncertainty_is_a_file_of_its_own(
    medserve: Medserve, fake: FakeGateway, cases: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    arguments = ("--uncertainty", "--out", out, "--address", fake.address)
    assert medserve("predict", "mednist", cases / "two.nii", *arguments).code == 0
    assert (out / "two_uncertainty.nii.gz").read_bytes() == b"ENTROPY"


def test_options_reach_the_model(medserve: Medserve, fake: FakeGateway, cases: Path) -> None:
    arguments = ("--no-flips", "--channel", 2, "--spacing-mm", "1,1,2.5", "--address", fake.address)
    assert medserve("predict", "mednist", cases / "two.nii", *arguments).code == 0
    assert json.loads(fake.requests[-1].inputs["params"]) == {
        "output": "json",
        "flips": False,
        "channel": 2,
        "spacing_mm": [1.0, 1.0, 2.5],
    }


def test_nothing_is_overwritten_unless_that_is_wanted(
    medserve: Medserve, fake: FakeGateway, cases: Path, tmp_path: Path
) -> None:
    arguments = ("predict", "mednist", cases, "--out", tmp_path / "out", "--address", fake.address)
    assert medserve(*arguments).code == 0
    sent = len(fake.requests)
    run = medserve(*arguments)
    assert run.code == 2
    assert "--overwrite" in run.err
    assert len(fake.requests) == sent
    assert medserve(*arguments, "--overwrite").code == 0


def test_a_broken_case_is_told_and_costs_no_other(
    medserve: Medserve, fake: FakeGateway, cases: Path, tmp_path: Path
) -> None:
    (cases / "a.nii").write_bytes(b"broken")
    out = tmp_path / "out"
    run = medserve("predict", "mednist", cases, "--out", out, "--address", fake.address)
    assert run.code == 1
    assert "INVALID_IMAGE" in run.out.splitlines()[1]
    assert len(list(out.glob("*_mask.nii.gz"))) == 3
    with (out / "volumes.csv").open(newline="") as file:
        first = next(csv.DictReader(file))
    assert first["error"].startswith("INVALID_IMAGE: ")


def test_json_has_one_line_per_case(medserve: Medserve, fake: FakeGateway, cases: Path) -> None:
    (cases / "a.nii").write_bytes(b"broken")
    run = medserve("predict", "mednist", cases, "--json", "--address", fake.address)
    bad, good, *_ = (json.loads(line) for line in run.out.splitlines())
    assert (run.code, bad["status"], good["status"]) == (1, "error", "ok")
    assert bad["error"]["code"] == "INVALID_IMAGE"
    assert good["volumes_ml"].keys() == {"anterior", "posterior"}
    assert good["measures"][0]["voxels"] == 100
    assert good["model"] == "mednist"


def test_cases_of_one_name_get_numbers(
    medserve: Medserve, fake: FakeGateway, tmp_path: Path
) -> None:
    for folder in ("a", "b"):
        (tmp_path / "in" / folder).mkdir(parents=True)
        (tmp_path / "in" / folder / "scan.nii.gz").write_bytes(b"x" * 10)
    out = tmp_path / "out"
    run = medserve(
        *("predict", "mednist", tmp_path / "in", "--format", "json"),
        *("--out", out, "--address", fake.address),
    )
    assert run.code == 0
    assert sorted(path.name for path in out.glob("*.json")) == ["scan-2.json", "scan.json"]


def test_a_path_that_is_none_is_wrong_usage(
    medserve: Medserve, fake: FakeGateway, tmp_path: Path
) -> None:
    run = medserve("predict", "mednist", tmp_path / "missing.nii", "--address", fake.address)
    assert run.code == 2
    assert "missing.nii" in run.err


def test_a_series_is_one_case_with_all_below_it_and_a_dicomdir_is_none(tmp_path: Path) -> None:
    directory = dicom_dataset(disc())
    directory.SOPClassUID = MediaStorageDirectoryStorage
    series = tmp_path / "DICOM" / "ST00" / "SE00"
    (series / "more").mkdir(parents=True)
    (tmp_path / "DICOMDIR").write_bytes(saved(directory))
    (series / "IM0000").write_bytes(b"")  # empty, and the first of its folder
    (series / "IM0001").write_bytes(dicom_bytes(disc()))
    (series / "more" / "IM0002").write_bytes(dicom_bytes(disc()))
    (tmp_path / "other.nii").write_bytes(b"x")
    assert [case.path for case in find_cases([tmp_path])] == [tmp_path / "other.nii", series]
