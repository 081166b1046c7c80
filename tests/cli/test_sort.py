"""`medserve sort`: where copies go, and what survives an interruption."""

from __future__ import annotations

import csv
import hashlib
import os
from pathlib import Path

import pytest

from medserve.cli import sort
from medserve.errors import ServerFailedError, ServerUnreachableError
from medserve.results import sorted_folders
from tests.cli.conftest import Medserve
from tests.client.fake_gateway import (
    LABELS,
    FakeGateway,
    classification,
    passing,
    refusing,
    served_model,
    serving,
)


def tree(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "manifest.csv"
    }


def manifest(out: Path) -> list[dict[str, str]]:
    with (out / "manifest.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    (folder / "ward").mkdir(parents=True)
    (folder / "a.png").write_bytes(b"Hand 1")
    (folder / "b.png").write_bytes(b"CXR?")  # unsure
    (folder / "c.png").write_bytes(b"HeadCT!")  # unlike the training data
    (folder / "d.txt").write_bytes(b"broken")
    (folder / "ward" / "a.png").write_bytes(b"Hand 2")  # same name, other content
    return folder


def test_each_file_lands_where_its_answer_says(
    medserve: Medserve, fake: FakeGateway, mixed: Path, tmp_path: Path
) -> None:
    before = tree(mixed)
    run = medserve("sort", mixed, "--out", tmp_path / "out", "--address", fake.address)
    assert run.code == 1  # one file is no image
    assert tree(tmp_path / "out") == {
        "Hand/a.png": b"Hand 1",
        "Hand/a-2.png": b"Hand 2",
        "_review/b.png": b"CXR?",
        "_review/c.png": b"HeadCT!",
        "_errors/d.txt": b"broken",
    }
    assert tree(mixed) == before


def test_manifest_tells_it_for_each_file(
    medserve: Medserve, fake: FakeGateway, mixed: Path, tmp_path: Path
) -> None:
    medserve("sort", mixed, "--out", tmp_path / "out", "--address", fake.address)
    rows = {row["source"]: row for row in manifest(tmp_path / "out")}
    assert len(rows) == 5
    hand = rows["ward/a.png"]
    assert (hand["stored"], hand["status"], hand["class"]) == ("Hand/a-2.png", "ok", "Hand")
    assert (hand["class_id"], hand["probability"]) == ("4", "0.980000")
    assert (hand["model"], hand["version"]) == ("mednist", "1.0")
    assert hand["sha256"] == hashlib.sha256(b"Hand 2").hexdigest()
    assert rows["b.png"]["status"] == "review"
    assert rows["d.txt"]["error"].startswith("INVALID_IMAGE: ")
    assert rows["d.txt"]["class"] == ""


def test_summary_counts_files_per_folder(
    medserve: Medserve, fake: FakeGateway, mixed: Path, tmp_path: Path
) -> None:
    run = medserve("sort", mixed, "--out", tmp_path / "out", "--address", fake.address)
    counts = {line.split()[0]: line.split()[1] for line in run.out.splitlines()[1:] if line.strip()}
    assert counts["Hand"] == "2"
    assert counts["_review"] == "2"
    assert counts["_errors"] == "1"
    assert counts["all"] == "5"


def test_second_run_asks_nothing_and_changes_nothing(
    medserve: Medserve, fake: FakeGateway, mixed: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    medserve("sort", mixed, "--out", out, "--address", fake.address)
    before, rows = tree(out), manifest(out)
    fake.requests.clear()
    run = medserve("sort", mixed, "--out", out, "--address", fake.address)
    assert run.code == 1  # the broken file still is one
    assert "sorted before" in run.out
    assert not fake.requests
    assert (tree(out), manifest(out)) == (before, rows)


def test_run_that_lost_the_server_goes_on_later(
    medserve: Medserve, fake: FakeGateway, tmp_path: Path
) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    for place in range(100):
        (folder / f"{place:03}.png").write_bytes(f"{LABELS[place % 6]} {place}".encode())
    fake.hooks = [passing, refusing(ServerUnreachableError("the engine does not answer"))]
    lost = medserve("sort", folder, "--out", out, "--address", fake.address)
    assert lost.code == 2
    assert len(lost.err.strip().splitlines()) == 1
    fake.hooks = [passing]
    again = medserve("sort", folder, "--out", out, "--address", fake.address)
    assert again.code == 0
    assert len(manifest(out)) == 100
    assert sorted(tree(out).values()) == sorted(tree(folder).values())


def test_file_without_an_answer_stays_for_the_next_run(
    medserve: Medserve, fake: FakeGateway, mixed: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    fake.hooks = [refusing(ServerFailedError("the model's worker died"))]
    run = medserve("sort", mixed, "--out", out, "--address", fake.address)
    assert run.code == 1
    assert "run again" in run.out
    assert "5 x the model's worker died" in run.err
    assert tree(out) == {}
    fake.hooks = [passing]
    medserve("sort", mixed, "--out", out, "--address", fake.address)
    assert len(tree(out)) == 5


def test_file_too_large_for_any_call_is_left_alone(
    medserve: Medserve,
    fake: FakeGateway,
    mixed: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sort, "_LARGEST_BYTES", 100)
    (mixed / "film.dcm").write_bytes(bytes(101))
    run = medserve("sort", mixed, "--out", tmp_path / "out", "--address", fake.address)
    assert "too large" in run.out
    assert len(tree(tmp_path / "out")) == 5


def test_copy_without_its_row_is_recognised(
    medserve: Medserve, fake: FakeGateway, mixed: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    (out / "Hand").mkdir(parents=True)
    (out / "Hand" / "a.png").write_bytes(b"Hand 1")  # a run ended between copy and manifest
    medserve("sort", mixed, "--out", out, "--address", fake.address)
    assert sorted(path.name for path in (out / "Hand").iterdir()) == ["a-2.png", "a.png"]


def test_row_torn_by_a_crash_counts_as_not_done(
    medserve: Medserve, fake: FakeGateway, mixed: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    medserve("sort", mixed, "--out", out, "--address", fake.address)
    whole = (out / "manifest.csv").read_bytes()
    (out / "manifest.csv").write_bytes(whole[:-30])
    medserve("sort", mixed, "--out", out, "--address", fake.address)
    assert {row["source"] for row in manifest(out) if row["error"] is not None} == {
        row["source"] for row in csv.DictReader(whole.decode().splitlines())
    }
    assert len(tree(out)) == 5


def test_file_that_is_in_the_way_is_kept(
    medserve: Medserve, fake: FakeGateway, mixed: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    (out / "Hand").mkdir(parents=True)
    (out / "Hand" / "a.png").write_bytes(b"precious")
    (out / "Hand" / "a-2.png").symlink_to(tmp_path / "nowhere")
    medserve("sort", mixed, "--out", out, "--address", fake.address)
    assert (out / "Hand" / "a.png").read_bytes() == b"precious"
    assert (out / "Hand" / "a-2.png").is_symlink()
    assert (out / "Hand" / "a-3.png").read_bytes() == b"Hand 1"
    assert (out / "Hand" / "a-4.png").read_bytes() == b"Hand 2"


def test_twins_of_name_and_content_share_one_copy(
    medserve: Medserve, fake: FakeGateway, tmp_path: Path
) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    (folder / "ward").mkdir(parents=True)
    for name in ("x.png", "ward/x.png", "y.png"):
        (folder / name).write_bytes(b"Hand")
    medserve("sort", folder, "--out", out, "--address", fake.address)
    assert tree(out) == {"Hand/x.png": b"Hand", "Hand/y.png": b"Hand"}
    stored = {row["source"]: row["stored"] for row in manifest(out)}
    assert stored["x.png"] == stored["ward/x.png"] == "Hand/x.png"


def test_changed_file_is_sorted_again(
    medserve: Medserve, fake: FakeGateway, mixed: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    medserve("sort", mixed, "--out", out, "--address", fake.address)
    (mixed / "a.png").write_bytes(b"CXR now")
    medserve("sort", mixed, "--out", out, "--address", fake.address)
    assert tree(out)["CXR/a.png"] == b"CXR now"
    assert tree(out)["Hand/a.png"] == b"Hand 1"


def test_review_limit_of_the_caller_replaces_that_of_the_model(
    medserve: Medserve, fake: FakeGateway, mixed: Path, tmp_path: Path
) -> None:
    strict, lax = tmp_path / "strict", tmp_path / "lax"
    address = ("--address", fake.address)
    medserve("sort", mixed, "--out", strict, "--review-below", 0.99, *address)
    assert set(tree(strict)) == {
        *("_review/a.png", "_review/a-2.png", "_review/b.png", "_review/c.png", "_errors/d.txt"),
    }
    medserve("sort", mixed, "--out", lax, "--review-below", 0.5, *address)
    assert "CXR/b.png" in tree(lax)
    assert "_review/c.png" in tree(lax)  # unlike the training data all the same


def test_out_below_the_sorted_folder_is_not_sorted_itself(
    medserve: Medserve, fake: FakeGateway, mixed: Path
) -> None:
    out = mixed / "sorted"
    address = ("--address", fake.address)
    medserve("sort", mixed, "--out", out, *address)
    assert len(tree(out)) == 5
    medserve("sort", mixed, "--out", out, *address)
    assert len(tree(out)) == 5


@pytest.mark.parametrize("out", [".", ".."])
def test_out_that_holds_the_sorted_folder_is_refused(
    out: str, medserve: Medserve, fake: FakeGateway, mixed: Path
) -> None:
    run = medserve("sort", mixed, "--out", mixed / out, "--address", fake.address)
    assert run.code == 2
    assert "--out" in run.err


@pytest.mark.loopback
def test_folder_sorted_by_another_model_is_refused(
    medserve: Medserve, mixed: Path, tmp_path: Path
) -> None:
    with serving(FakeGateway((served_model(), served_model("blood_cell")))) as fake:
        address = ("--address", fake.address)
        medserve("sort", mixed, "--out", tmp_path / "out", *address)
        run = medserve("sort", mixed, "--out", tmp_path / "out", "--model", "blood_cell", *address)
    assert run.code == 2
    assert "another --out" in run.err


def test_foreign_manifest_is_refused_and_kept(
    medserve: Medserve, fake: FakeGateway, mixed: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "manifest.csv").write_text("name,age\nx,3\n")
    run = medserve("sort", mixed, "--out", out, "--address", fake.address)
    assert run.code == 2
    assert (out / "manifest.csv").read_text() == "name,age\nx,3\n"


@pytest.mark.loopback
def test_empty_folder_is_sorted_at_once(medserve: Medserve, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    run = medserve("sort", tmp_path / "in", "--out", tmp_path / "out", "--address", "127.0.0.1:9")
    assert run.code == 0
    assert run.out.splitlines()[-2].split() == ["all", "0"]


@pytest.mark.parametrize(
    "label",
    [
        *("../Hand", "/etc", "..", ".", "", "_review", ".hidden", "a/b", "a\\b", "a\0b", "a\nb"),
        *("CON", "nul.txt", "Hand ", "Hand.", "=cmd", "x" * 81, "C:"),
    ],
)
def test_label_that_is_no_plain_folder_name_is_refused(label: str) -> None:
    with pytest.raises(ServerFailedError, match="name a folder"):
        sorted_folders.folder_name(label)


@pytest.mark.parametrize("label", [*LABELS, "Ery blast (late)", "Größe", "B-cell", "immature.1"])
def test_ordinary_label_names_its_folder(label: str) -> None:
    assert sorted_folders.folder_name(label) == label


def test_hostile_label_writes_nothing_outside_the_folder(
    medserve: Medserve, fake: FakeGateway, mixed: Path, tmp_path: Path
) -> None:
    evil = classification("Hand") | {"probabilities": {"../../evil": 1.0}, "review": False}
    fake.answer = lambda payload: evil
    run = medserve("sort", mixed, "--out", tmp_path / "deep" / "out", "--address", fake.address)
    assert run.code == 1
    assert tree(tmp_path / "deep") == {}
    assert not (tmp_path / "evil").exists()


def test_hostile_file_names_are_kept_and_listed(
    medserve: Medserve, fake: FakeGateway, tmp_path: Path
) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    names = ["=cmd().png", "-rf.png", "a\nb.png", 'ü,".png', os.fsdecode(b"\xff.png")]
    for place, name in enumerate(names):
        (folder / name).write_bytes(f"Hand {place}".encode())
    assert medserve("sort", folder, "--out", out, "--address", fake.address).code == 0
    assert {path.name for path in (out / "Hand").iterdir()} == set(names)
    text = (out / "manifest.csv").read_text(encoding="utf-8", errors="surrogateescape")
    assert "./=cmd().png" in text
    again = medserve("sort", folder, "--out", out, "--address", fake.address)
    assert again.out.count("sorted before") == 1
    assert len(list((out / "Hand").iterdir())) == len(names)


def test_file_system_without_hard_links_works_too(
    medserve: Medserve,
    fake: FakeGateway,
    mixed: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def no_links(source: Path, target: Path) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("os.link", no_links)
    medserve("sort", mixed, "--out", tmp_path / "out", "--address", fake.address)
    assert len(tree(tmp_path / "out")) == 5


def test_disk_that_cannot_be_written_is_one_line(
    medserve: Medserve, fake: FakeGateway, mixed: Path, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "Hand").write_bytes(b"a file, not a folder")
    run = medserve("sort", mixed, "--out", tmp_path / "out", "--address", fake.address)
    assert run.code == 2
    assert len(run.err.strip().splitlines()) == 1
