"""Which cases are trained on, validated and tested: by subject, with small and large ones in each.

The test part is drawn first and is the same for every fold; the rest is dealt out to folds, and
one training validates on one of them.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medserve.errors import ConfigError
from training.core.files import write_rows

__all__ = ["PARTS", "Split", "deal", "read_split", "write_split"]

PARTS = ("train", "validation", "test")


@dataclass(frozen=True)
class Split:
    """Names of cases: the test part, and the folds that the others are dealt to."""

    test: tuple[str, ...]
    folds: tuple[tuple[str, ...], ...]

    def parts(self, fold: int) -> dict[str, tuple[str, ...]]:
        """What is trained on, validated and tested when `fold` is the one left out."""
        if not 0 <= fold < len(self.folds):
            raise ConfigError(f"expected a fold from 0 to {len(self.folds) - 1}, got {fold}")
        train = sorted(name for n, names in enumerate(self.folds) if n != fold for name in names)
        return {"train": tuple(train), "validation": self.folds[fold], "test": self.test}


def deal(
    names_of: Mapping[str, Sequence[str]],
    size_of: Mapping[str, float],
    folds: int,
    test_share: float,
    seed: int = 0,
) -> Split:
    """Deal subjects out whole, so that every part has its share of the small and of the large.

    Args:
        names_of: Subject -> names of its cases; in medicine, a subject is a patient.
        size_of: Subject -> what a part must not have too much of.
        folds: Parts of what is not tested.
        test_share: Of the subjects.
        seed: Of the draw; subjects, sizes and seed decide it, not their order.

    Raises:
        ConfigError: fewer subjects than parts.
    """
    ordered = sorted(names_of, key=lambda subject: (size_of[subject], subject))
    count = round(test_share * len(ordered))
    dealt_out = len(ordered) - count
    if dealt_out < 2:
        raise ConfigError(
            f"expected 2 subjects or more to train and validate on, got {dealt_out} besides "
            f"{count} of the test part; add cases, or give a smaller --test-share"
        )
    if not 2 <= folds <= dealt_out:
        raise ConfigError(
            f"--folds: expected 2 to {dealt_out}, as there are {dealt_out} subjects besides "
            f"{count} of the test part, got {folds}"
        )
    generator = np.random.default_rng(seed)
    strata = np.array_split(ordered, count) if count else []
    test = {str(generator.choice(stratum)) for stratum in strata}
    rest = [subject for subject in ordered if subject not in test]
    dealt: list[list[str]] = [[] for _ in range(folds)]
    for start in range(0, len(rest), folds):
        stratum = rest[start : start + folds]
        for subject, fold in zip(stratum, generator.permutation(folds), strict=False):
            dealt[fold] += names_of[subject]
    return Split(
        tuple(sorted(name for subject in test for name in names_of[subject])),
        tuple(tuple(sorted(names)) for names in dealt),
    )


def write_split(path: Path, split: Split) -> None:
    """Write one row `name,part,fold` for each case; the test part has no fold."""
    rows = [(name, "test", "") for name in split.test]
    rows += [(name, "train", str(n)) for n, names in enumerate(split.folds) for name in names]
    write_rows(path, ("name", "part", "fold"), sorted(rows))


def read_split(path: Path) -> Split:
    """What `write_split` wrote."""
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            rows: list[Mapping[str, str]] = list(csv.DictReader(stream))
        test = tuple(row["name"] for row in rows if row["part"] == "test")
        folds: dict[int, list[str]] = {}
        for row in rows:
            if row["part"] != "test":
                folds.setdefault(int(row["fold"]), []).append(row["name"])
    except (OSError, KeyError, ValueError) as error:
        raise ConfigError(
            f"expected a split with columns name,part,fold at {path}: {error!r}"
        ) from error
    return Split(test, tuple(tuple(folds[n]) for n in sorted(folds)))
