"""Who is trained on, validated and tested: by patient, each part with small and large structures.

The test part is drawn first and is the same for every fold; the rest is dealt out to folds, and
one training validates on one of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from medserve.errors import ConfigError
from training.segmentation.split import Split
from training.ultrasound.data import FrameCase
from training.ultrasound.manifest import read_grey

__all__ = ["mask_shares", "split_frames"]


def split_frames(
    cases: Sequence[FrameCase],
    shares: Mapping[str, float],
    folds: int,
    test_share: float,
    seed: int = 0,
) -> Split:
    """Deal patients out: no patient is in two parts, no part has only small structures.

    Args:
        cases: Frames.
        shares: Name of a frame -> share of its pixels inside the structure.
        folds: Parts of what is not tested.
        test_share: Of the patients.
        seed: Of the draw; names, patients, shares and seed decide it.

    Raises:
        ConfigError: fewer patients than parts.
    """
    names_of: dict[str, list[str]] = {}
    for case in sorted(cases, key=lambda each: each.name):
        names_of.setdefault(case.patient, []).append(case.name)
    largest = {each: max(shares[name] for name in names_of[each]) for each in names_of}
    ordered = sorted(names_of, key=lambda patient: (largest[patient], patient))
    generator = np.random.default_rng(seed)
    count = round(test_share * len(ordered))
    if folds < 2 or len(ordered) - count < folds:
        raise ConfigError(
            f"expected at least 2 folds and a patient for each, got {folds} folds for "
            f"{len(ordered) - count} patients"
        )
    test = (
        {str(generator.choice(stratum)) for stratum in np.array_split(ordered, count)}
        if count
        else set[str]()
    )
    rest = [patient for patient in ordered if patient not in test]
    dealt: list[list[str]] = [[] for _ in range(folds)]
    for start in range(0, len(rest), folds):
        stratum = rest[start : start + folds]
        for patient, fold in zip(stratum, generator.permutation(folds), strict=False):
            dealt[fold] += names_of[patient]
    return Split(
        tuple(sorted(name for patient in test for name in names_of[patient])),
        tuple(tuple(sorted(names)) for names in dealt),
    )


def mask_shares(cases: Sequence[FrameCase]) -> dict[str, float]:
    """Name of a frame -> share of its pixels inside the structure."""
    return {case.name: float(np.mean(read_grey(case.mask) > 0)) for case in cases}
