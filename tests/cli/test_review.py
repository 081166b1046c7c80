"""`medserve review`: the doubtful first, and what a person says of them becomes training data."""

from __future__ import annotations

import csv
import hashlib
import re
from pathlib import Path

import pytest

from tests.cli.conftest import Medserve
from tests.client.fake_gateway import LABELS, FakeGateway


@pytest.fixture
def sorted_folder(medserve: Medserve, fake: FakeGateway, tmp_path: Path) -> Path:
    """Two clear files, an unsure one, an odd one, and one that is no image."""
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    for name, content in (
        ("a.png", b"Hand 1"), ("b.png", b"CXR?"), ("c.png", b"HeadCT!"),
        ("d.png", b"CXR 2"), ("e.txt", b"broken"),
    ):  # fmt: skip
        (source / name).write_bytes(content)
    medserve("sort", source, "--out", out, "--address", fake.address)
    return out


def corrections(folder: Path) -> list[dict[str, str]]:
    with (folder / "corrections.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def listed(out: str) -> list[str]:
    return [line.split()[0] for line in out.splitlines() if re.match(r"\S+\.png", line)]


def test_the_doubtful_come_first_and_what_is_judged_no_more(
    medserve: Medserve, sorted_folder: Path
) -> None:
    run = medserve("review", sorted_folder)
    assert set(listed(run.out)[:2]) == {"_review/b.png", "_review/c.png"}
    assert set(listed(run.out)[2:]) == {"Hand/a.png", "CXR/d.png"}
    assert listed(medserve("review", sorted_folder, "--first", "1").out) == listed(run.out)[:1]
    medserve("review", sorted_folder, "--class", "Hand", "_review/b.png", "_review/c.png")
    assert set(listed(medserve("review", sorted_folder).out)) == {"Hand/a.png", "CXR/d.png"}


def test_a_correction_tells_who_when_and_what_had_answered_but_no_file_name(
    medserve: Medserve, sorted_folder: Path
) -> None:
    run = medserve("review", sorted_folder, "--class", "Hand", "_review/b.png", "--by", "Ada")
    assert (run.code, run.err) == (0, "")
    [row] = corrections(sorted_folder)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", row.pop("corrected_at"))
    assert row.pop("archive_digest").startswith("sha256:")
    assert row == {
        "sha256": hashlib.sha256(b"CXR?").hexdigest(),
        "class": "Hand",
        "predicted_class": "CXR",
        "probability": row["probability"],
        "corrected_by": "Ada",
        "model": "mednist",
        "version": "1.0",
    }
    assert "b.png" not in (sorted_folder / "corrections.csv").read_text()


def test_every_class_of_the_model_is_known_also_one_that_no_file_has(
    medserve: Medserve, sorted_folder: Path
) -> None:
    for label in LABELS:
        run = medserve("review", sorted_folder, "--class", label, "_review/b.png")
        assert (run.code, run.err) == (0, "")
    assert [row["class"] for row in corrections(sorted_folder)] == list(LABELS)


def test_a_later_word_stands_beside_the_earlier_one(
    medserve: Medserve, sorted_folder: Path
) -> None:
    for label in ("Hand", "CXR"):
        medserve("review", sorted_folder, "--class", label, sorted_folder / "_review" / "b.png")
    assert [row["class"] for row in corrections(sorted_folder)] == ["Hand", "CXR"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--class", "Hnad", "_review/b.png"), "There is no class Hnad (did you mean Hand?)"),
        (("--class", "Hand", "_review/z.png"), "There is no file _review/z.png"),
        (("--class", "Hand"), "--class CLASS and FILE… together"),
        (("_review/b.png",), "--class CLASS and FILE… together"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_one_line(
    medserve: Medserve, sorted_folder: Path, arguments: tuple[str, ...], said: str
) -> None:
    run = medserve("review", sorted_folder, *arguments)
    assert run.code == 2
    assert said in run.err
    assert len(run.err.strip().splitlines()) == 1
    assert not (sorted_folder / "corrections.csv").exists()


def test_a_file_that_changed_is_not_judged_under_its_old_digest(
    medserve: Medserve, sorted_folder: Path
) -> None:
    (sorted_folder / "_review" / "b.png").write_bytes(b"another")
    run = medserve("review", sorted_folder, "--class", "Hand", "_review/b.png")
    assert (run.code, "is another file" in run.err) == (2, True)


@pytest.mark.parametrize("name", ["manifest.csv", "corrections.csv"])
def test_a_foreign_table_is_refused_and_kept(
    medserve: Medserve, sorted_folder: Path, name: str
) -> None:
    (sorted_folder / name).write_text("name,age\nx,3\n")
    run = medserve("review", sorted_folder, "--class", "Hand", "_review/b.png")
    assert run.code == 2
    assert "expected the columns" in run.err
    assert (sorted_folder / name).read_text() == "name,age\nx,3\n"
