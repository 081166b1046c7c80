"""Splits: by subject, whole, even and repeatable."""

from __future__ import annotations

from pathlib import Path

import pytest

from medserve.errors import ConfigError
from training.core.split import read_split, write_split
from training.volumes.data import Case, split_cases


@pytest.fixture
def cases(tmp_path: Path) -> list[Case]:
    """40 cases of 32 subjects: eight have two; every fourth file is large."""
    made = []
    for n in range(40):
        path = tmp_path / f"case_{n:02d}.nii"
        path.write_bytes(b"x" * (5000 + n if n % 4 == 0 else 100 + n))
        made.append(Case(path.stem, (path,), path, subject=f"subject_{n % 32:02d}"))
    return made


def test_no_subject_is_in_two_parts(cases: list[Case]) -> None:
    subject_of = {case.name: case.subject for case in cases}
    split = split_cases(cases, folds=5, test_share=0.2)
    groups = [{subject_of[name] for name in names} for names in (split.test, *split.folds)]
    assert sum(map(len, groups)) == 32
    assert len(set().union(*groups)) == 32


def test_every_case_is_in_exactly_one_part_of_every_fold(cases: list[Case]) -> None:
    split = split_cases(cases, folds=4, test_share=0.25)
    for fold in range(4):
        parts = split.parts(fold)
        names = [name for part in parts.values() for name in part]
        assert sorted(names) == [case.name for case in cases]
        assert parts["test"] == split.test


def test_every_case_but_the_tests_validates_once(cases: list[Case]) -> None:
    split = split_cases(cases, folds=4, test_share=0.25)
    validated = sorted(name for fold in range(4) for name in split.parts(fold)["validation"])
    assert sorted([*validated, *split.test]) == [case.name for case in cases]


def test_every_part_has_its_share_of_large_files(cases: list[Case]) -> None:
    large = {case.name for case in cases if case.images[0].stat().st_size > 1000}
    split = split_cases(cases, folds=3, test_share=0.25)
    for names in (split.test, *split.folds):
        assert 0.1 <= len(large & set(names)) / len(names) <= 0.4


def test_the_split_depends_on_the_seed_and_not_on_the_order(cases: list[Case]) -> None:
    split = split_cases(cases, 5, 0.2, seed=3)
    assert split_cases(cases[::-1], 5, 0.2, seed=3) == split
    assert split_cases(cases, 5, 0.2, seed=4) != split


def test_the_test_part_is_the_same_however_many_folds(cases: list[Case]) -> None:
    assert split_cases(cases, 3, 0.2).test == split_cases(cases, 7, 0.2).test


def test_what_is_written_is_read_back(cases: list[Case], tmp_path: Path) -> None:
    split = split_cases(cases, 4, 0.2)
    write_split(tmp_path / "new" / "split.csv", split)
    assert read_split(tmp_path / "new" / "split.csv") == split


def test_too_few_subjects_are_refused(cases: list[Case]) -> None:
    with pytest.raises(ConfigError, match=r"--folds: expected 2 to 4, .* got 5"):
        split_cases(cases[:4], 5, 0.0)


def test_a_fold_that_is_not_there_is_refused(cases: list[Case]) -> None:
    with pytest.raises(ConfigError, match="expected a fold from 0 to 3, got 4"):
        split_cases(cases, 4, 0.2).parts(4)


@pytest.mark.parametrize("text", ["", "name,fold\na,0\n", "name,part,fold\na,train,x\n"])
def test_another_file_is_no_split(tmp_path: Path, text: str) -> None:
    (tmp_path / "split.csv").write_text(text)
    if not text:
        (tmp_path / "split.csv").unlink()
    with pytest.raises(ConfigError, match="columns name,part,fold"):
        read_split(tmp_path / "split.csv")
