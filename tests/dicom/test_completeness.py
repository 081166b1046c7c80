from __future__ import annotations

from pathlib import Path

import pytest
from pydicom import dcmread

from medserve.dicom.completeness import judge
from medserve.dicom.dry_run import dry_run
from medserve.dicom.headers import read_facts
from medserve.dicom.peers import Destination
from medserve.dicom.rules import Rules
from medserve.dicom.spool import Image
from tests.dicom.series import RULES, series, write


@pytest.fixture
def rules(tmp_path: Path) -> Rules:
    path = tmp_path / "rules.toml"
    path.write_text(RULES.format(quiet_s=0) + 'query = "PACS@host:104"\n')
    return Rules.read(path)


def verdict(rules: Rules, paths: list[Path], known: int | None = 0) -> str:
    def count(archive: Destination, study: str, series: str) -> int | None:
        return known

    [found] = judge(rules, [Image(read_facts(path), path) for path in paths], "", count)
    return found.reason


def test_a_series_without_gaps_is_complete(rules: Rules, tmp_path: Path) -> None:
    assert verdict(rules, write(tmp_path / "s", series(1))) == ""


@pytest.mark.parametrize("gone", range(1, 6))
def test_a_slice_missing_within_is_seen(rules: Rules, tmp_path: Path, gone: int) -> None:
    paths = write(tmp_path / "s", series(1, slices=7))
    assert "1 slices are missing" in verdict(rules, paths[:gone] + paths[gone + 1 :])


@pytest.mark.parametrize("known", [7, None])
def test_slices_missing_at_an_end_are_known_to_the_archive(
    rules: Rules, tmp_path: Path, known: int | None
) -> None:
    paths = write(tmp_path / "s", series(1, slices=7))[:-1]
    assert "archive" in verdict(rules, paths, known)
    assert verdict(rules, paths, 6) == ""


def test_too_few_images_are_not_complete(rules: Rules, tmp_path: Path) -> None:
    assert "got 4" in verdict(rules, write(tmp_path / "s", series(1))[:4])


def test_a_series_over_the_size_of_its_rule_is_refused_with_both_sizes(tmp_path: Path) -> None:
    path = tmp_path / "rules.toml"
    path.write_text(RULES.format(quiet_s=0) + "max_mb = 0.001\n")
    paths = write(tmp_path / "s", series(1))
    size = sum(each.stat().st_size for each in paths)
    assert f"at most 0.001 MB of images (max_mb), got {size / 1e6:.1f}" in verdict(
        Rules.read(path), paths
    )


def test_images_of_two_patients_are_no_series(rules: Rules, tmp_path: Path) -> None:
    paths = write(tmp_path / "s", series(1))
    other = dcmread(paths[2])
    other.PatientName = "Other^Secret"
    other.save_as(paths[2])
    reason = verdict(rules, paths)
    assert "one patient" in reason
    assert "Secret" not in reason


def test_a_dry_run_tells_what_a_node_would_do(rules: Rules, tmp_path: Path) -> None:
    write(tmp_path / "in" / "a", series(1))
    write(tmp_path / "in" / "b", series(2)[:2])
    (tmp_path / "in" / "note.txt").write_text("no image")
    outcome = dry_run(rules, tmp_path / "in", "")
    assert [(row.images, row.verdict[:12]) for row in outcome.rows] == [
        (5, "complete"),
        (2, "not complete"),
    ]
    assert outcome.skipped == 1
