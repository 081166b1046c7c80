"""The command against a gateway and against archives."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from tests.archives import packaged_fixture
from tests.cli.conftest import Medserve, medserve
from tests.client.conftest import fake
from tests.client.fake_gateway import FakeGateway
from tests.tiny_room import bright_tile
from tests.tiny_volume_room import phantom

__all__ = ["fake", "medserve"]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(40):
        (folder / f"{number}.png").write_bytes(b"Hand?" if number % 2 else b"CXR")
    return folder


def rows(out: Path) -> list[dict[str, str]]:
    with (out / "results.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_batch_is_answered_and_told(
    medserve: Medserve, fake: FakeGateway, images: Path, tmp_path: Path
) -> None:
    flags = ("--model", "mednist", "--server", fake.address, "--out", tmp_path / "out")
    run = medserve("batch", images, *flags)
    assert (run.code, run.err) == (0, "")
    assert "40 answered, 0 failed" in run.out
    found = rows(tmp_path / "out")
    assert sorted(row["label"] for row in found) == ["CXR"] * 20 + ["Hand"] * 20
    assert {row["review"] for row in found if row["label"] == "Hand"} == {"True"}
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "Hand with 0.600" in page
    assert 2 <= len(fake.requests) <= 3  # packed
    (images / "new.png").write_bytes(b"<script>")
    run = medserve("batch", images, *flags, "--progress", "json")
    assert run.code == 1
    told = json.loads(run.out.splitlines()[-1])
    assert (told["kept"], told["failed"], told["done"], told["finished"]) == (40, 1, 41, True)
    failed = [row for row in rows(tmp_path / "out") if row["status"] == "error"]
    assert [(row["id"], row["code"]) for row in failed] == [("new.png", "INVALID_IMAGE")]


def test_a_batch_without_studies_says_so(
    medserve: Medserve, fake: FakeGateway, tmp_path: Path
) -> None:
    (tmp_path / "m.csv").write_text("path,id\n", encoding="utf-8")
    flags = ("--model", "mednist", "--server", fake.address, "--out", tmp_path / "out")
    run = medserve("batch", tmp_path / "m.csv", *flags)
    assert run.code == 0
    assert "nothing to do" in run.err
    refused = medserve("batch", tmp_path / "m.csv", *flags, "--timeout", "inf")
    assert refused.code == 2


def test_a_shard_leaves_the_tables_to_the_report(
    medserve: Medserve, fake: FakeGateway, images: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    flags = ("--model", "mednist", "--server", fake.address, "--out", out)
    for shard in ("0/2", "1/2"):
        assert medserve("batch", images, *flags, "--shard", shard).code == 0
    assert not (out / "results.csv").exists()
    assert medserve("batch", "report", out).code == 0
    assert len(rows(out)) == 40


@pytest.mark.loopback
@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (("--server", "127.0.0.1:1", "--model", "m"), "127.0.0.1:1"),
        (("--server", "127.0.0.1:1"), "--model: expected the name"),
        (("--server", "127.0.0.1:1", "--model", "m", "--shard", "4/4"), "expected i/n"),
    ],
    ids=["nobody there", "no model", "no such shard"],
)
def test_what_cannot_work_ends_with_2_in_one_line(
    medserve: Medserve, images: Path, tmp_path: Path, flags: tuple[str, ...], told: str
) -> None:
    run = medserve("batch", images, "--out", tmp_path / "out", *flags)
    assert run.code == 2
    assert run.err.count("\n") == 1
    assert told in run.err


@pytest.mark.archive
@pytest.mark.process
def test_an_archive_answers_without_a_server(medserve: Medserve, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for tile in range(6):
        (tmp_path / "images" / f"{tile}.png").write_bytes(bright_tile(tile))
    archive = packaged_fixture("tiny", tmp_path)
    flags = ("--archive", archive, "--workers", "1", "--out", tmp_path / "out")
    assert medserve("batch", tmp_path / "images", *flags).code == 0
    assert len({row["label"] for row in rows(tmp_path / "out")}) == 6
    refused = medserve("batch", tmp_path / "images", *flags, "--model", "another")
    assert refused.code == 2
    assert "expected tiny, the archive's" in refused.err


@pytest.mark.archive
@pytest.mark.process
def test_volumes_leave_masks_and_millilitres(medserve: Medserve, tmp_path: Path) -> None:
    from medserve.imaging.codecs import nifti

    (tmp_path / "volumes").mkdir()
    (tmp_path / "volumes" / "a.nii.gz").write_bytes(nifti.encode(phantom()))
    (tmp_path / "volumes" / "cut.nii.gz").write_bytes(nifti.encode(phantom())[:200])
    archive = packaged_fixture("tiny_volume", tmp_path)
    flags = ("--archive", archive, "--workers", "1", "--out", tmp_path / "out", "--overlay")
    assert medserve("batch", tmp_path / "volumes", *flags).code == 1
    answered, failed = sorted(rows(tmp_path / "out"), key=lambda row: row["id"])
    assert float(answered["dim_ml"]) > float(answered["bright_ml"]) > 0
    mask, overlay = answered["files"].split()
    assert (tmp_path / "out" / mask).stat().st_size > 0
    assert (tmp_path / "out" / overlay).read_bytes().startswith(b"\x89PNG")
    assert failed["code"] == "INVALID_IMAGE"
