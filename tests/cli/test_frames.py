"""`medserve predict` with a model of frames."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.cli.conftest import Medserve
from tests.client.fake_gateway import FakeGateway, serving
from tests.client.framing import by_frame_size, frames_model


@pytest.fixture
def fake() -> Iterator[FakeGateway]:
    with serving(FakeGateway(frames_model(), answer=by_frame_size)) as server:
        yield server


@pytest.fixture
def frames(tmp_path: Path) -> Path:
    folder = tmp_path / "frames"
    folder.mkdir()
    (folder / "one.png").write_bytes(b"x" * 90)
    (folder / "sweep.dcm").write_bytes(b"loop" + b"x" * 26)
    return folder


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_masks_pictures_and_tables_are_written(
    medserve: Medserve, fake: FakeGateway, frames: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run = medserve("predict", "mednist", frames, "--out", out, "--address", fake.address)
    assert run.code == 1  # one frame of the sweep has no answer
    assert sorted(path.name for path in out.iterdir()) == [
        *("files.csv", "frames.csv", "one_mask.png", "one_overlay.png"),
        *("sweep_mask.nii.gz", "sweep_overlay.png"),
    ]
    mask = np.asarray(Image.open(io.BytesIO((out / "one_mask.png").read_bytes())))
    assert mask.shape == (20, 30)
    assert np.count_nonzero(mask) == 90
    one, sweep = rows(out / "files.csv")
    assert float(one["area_cm2"]) == pytest.approx(90 * 0.06 / 100)
    assert (one["volume_ml"], one["status"]) == ("", "ok")
    assert (sweep["frames"], sweep["frames_found"], sweep["frames_failed"]) == ("3", "2", "1")
    assert float(sweep["length_mm"]) == 10.0
    statuses = [(row["frame"], row["status"]) for row in rows(out / "frames.csv")]
    assert statuses == [("0", "ok"), ("0", "ok"), ("1", "ok"), ("2", "error")]
    table = run.out.splitlines()
    assert "ellipsoid ml" in table[0]
    assert "1/1" in table[1]
    assert "1 without an answer" in table[2]


@pytest.mark.parametrize(
    ("form", "names"),
    [
        ("nifti", ["one_mask.nii.gz", "one_overlay.png", "sweep_mask.nii.gz"]),
        ("dicom-seg", ["one_mask.dcm", "one_overlay.png", "sweep_mask.dcm"]),
        ("png", ["one_mask.png", "one_overlay.png", "sweep_masks"]),
        ("json", ["one.json", "sweep.json"]),
    ],
)
def test_formats_write_what_they_name(
    form: str,
    names: list[str],
    medserve: Medserve,
    fake: FakeGateway,
    frames: Path,
    tmp_path: Path,
) -> None:
    out = tmp_path / "out"
    medserve(
        "predict", "mednist", frames, "--format", form, "--out", out, "--address", fake.address
    )
    written = {path.name for path in out.iterdir()}
    assert written - {"files.csv", "frames.csv", "sweep_overlay.png"} == set(names)
    params = json.loads(fake.requests[-1].inputs["params"])
    assert params.get("format") == ("dicom-seg" if form == "dicom-seg" else None)
    if form == "png":
        masks = sorted((out / "sweep_masks").iterdir())
        assert [path.name for path in masks] == ["0000.png", "0001.png", "0002.png"]
        assert np.count_nonzero(np.asarray(Image.open(io.BytesIO(masks[1].read_bytes())))) == 30


def test_options_reach_the_model(medserve: Medserve, fake: FakeGateway, frames: Path) -> None:
    arguments = ("--spacing-mm", "0.2,0.3", "--step-mm", 5, "--length-mm", 41, "--view", "axial")
    medserve("predict", "mednist", frames / "one.png", *arguments, "--address", fake.address)
    assert json.loads(fake.requests[-1].inputs["params"]) == {
        "output": "json",
        "view": "axial",
        "spacing_mm": [0.2, 0.3],
        "step_mm": 5.0,
        "length_mm": 41.0,
    }


def test_nothing_is_overwritten_unless_that_is_wanted(
    medserve: Medserve, fake: FakeGateway, frames: Path, tmp_path: Path
) -> None:
    arguments = ("predict", "mednist", frames, "--out", tmp_path, "--address", fake.address)
    medserve(*arguments)
    run = medserve(*arguments)
    assert run.code == 2
    assert "--overwrite" in run.err
    assert medserve(*arguments, "--overwrite").code == 1


def test_a_broken_file_is_told_and_costs_no_other(
    medserve: Medserve, fake: FakeGateway, frames: Path, tmp_path: Path
) -> None:
    (frames / "a.png").write_bytes(b"broken")
    (frames / "sweep.dcm").unlink()
    out = tmp_path / "out"
    run = medserve("predict", "mednist", frames, "--out", out, "--address", fake.address)
    assert run.code == 1
    assert "INVALID_IMAGE" in run.out.splitlines()[1]
    first, second = rows(out / "files.csv")
    assert first["error"].startswith("INVALID_IMAGE: ")
    assert second["status"] == "ok"
    assert (out / "one_mask.png").exists()


def test_json_has_one_line_per_file(medserve: Medserve, fake: FakeGateway, frames: Path) -> None:
    (frames / "a.png").write_bytes(b"broken")
    run = medserve("predict", "mednist", frames, "--json", "--address", fake.address)
    bad, one, sweep = (json.loads(line) for line in run.out.splitlines())
    assert (bad["status"], bad["error"]["code"]) == ("error", "INVALID_IMAGE")
    assert one["frames"][0]["pixels"] == 90
    assert [each["status"] for each in sweep["frames"]] == ["ok", "ok", "error"]
    assert "mask_nifti" not in sweep


def test_files_of_one_name_get_numbers(
    medserve: Medserve, fake: FakeGateway, tmp_path: Path
) -> None:
    for folder in ("a", "b"):
        (tmp_path / "in" / folder).mkdir(parents=True)
        (tmp_path / "in" / folder / "frame.png").write_bytes(b"x" * 10)
    out = tmp_path / "out"
    run = medserve("predict", "mednist", tmp_path / "in", "--out", out, "--address", fake.address)
    assert run.code == 0
    assert sorted(path.name for path in out.glob("*_mask.png")) == [
        *("frame-2_mask.png", "frame_mask.png")
    ]
