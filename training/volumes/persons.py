"""Which volumes show one person, where a data set does not say so but numbers them side by side.

    python -m training.volumes.persons --data-dir data/Task04_Hippocampus

Both sides of a body, or two visits, often stand under successive numbers. Volumes of one person
look more alike than those of strangers, and strangers are not more alike for being neighbours in a
list. So the likeness of neighbours, with an odd number first and with an even one, is compared with
that of all others; where one kind stands out, `subjects.csv` is written beside the volumes, which
every split then respects.
"""

from __future__ import annotations

import itertools
import logging
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import numpy.typing as npt

import models
from medserve.errors import ConfigError
from medserve.imaging.geometry import Shape
from medserve.inference.volume_pipeline import VolumePipeline
from training.core.config import Setting, run
from training.core.files import require_folder, write_rows
from training.core.means import bootstrap_interval
from training.volumes.data import LoadedCase, find_cases, load_cases
from training.volumes.exemplar import centred

__all__ = ["Likeness", "PersonsConfig", "compare_neighbours", "likeness", "main", "write_subjects"]

_log = logging.getLogger(__name__)

_AROUND = 0.6  # of the window's sides: the labelled body and what is next to it
_LEAST_PAIRS = 8  # fewer say nothing about how a set is numbered
_FIRST = ("even", "odd")


@dataclass(frozen=True)
class PersonsConfig:
    """Find volumes of one person among successive numbers and write subjects.csv."""

    data_dir: Annotated[
        Path, Setting("folder with dataset.json, or with the folders images and masks")
    ] = Path("data/Task04_Hippocampus")
    room: Annotated[str, Setting("room whose model-config.yaml states grid and intensities")] = (
        "segmentation_3d"
    )


@dataclass(frozen=True)
class Likeness:
    """How alike the volumes of some pairs are.

    Attributes:
        pairs: Indices of the cases, the lower number first.
        mean: Of the correlations, from -1 to 1.
        interval: 95 % interval of that mean, by bootstrap over the first volumes.
    """

    pairs: tuple[tuple[int, int], ...]
    mean: float
    interval: tuple[float, float]

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.mean:.3f} ({low:.3f} to {high:.3f}), {len(self.pairs)} pairs"


def main(config: PersonsConfig) -> None:
    """Compare neighbours, and write `subjects.csv` where they are of one person."""
    pipeline = VolumePipeline(models.spec(config.room))
    cases = find_cases(require_folder(config.data_dir, "--data-dir"))
    names = [case.name for case in cases]
    groups = compare_neighbours(names, likeness(load_cases(cases, pipeline), pipeline.window.size))
    for name, group in groups.items():
        _log.info("correlation of %s: %s", name, group)
    others = groups["all others"]
    found = [
        group for name, group in groups.items()
        if name != "all others" and group.interval[0] > others.interval[1]
    ]  # fmt: skip
    if len(found) != 1:
        _log.info("no sign of pairs of one person: nothing is written")
        return
    path = config.data_dir / "subjects.csv"
    write_subjects(path, names, found[0].pairs)
    _log.info("%d pairs of one person: %s", len(found[0].pairs), path)


def likeness(cases: Sequence[LoadedCase], window: Shape) -> npt.NDArray[np.float32]:
    """Correlation (n, n) of intensities around the labels' centre, over all pairs of cases."""
    i, j, k = (round(_AROUND * side) for side in window)
    views = np.stack([_around(case, (i, j, k)) for case in cases])
    views -= views.mean(axis=1, keepdims=True)
    views /= np.linalg.norm(views, axis=1, keepdims=True)
    product: npt.NDArray[np.float32] = views @ views.T
    return product


def compare_neighbours(
    names: Sequence[str], correlation: npt.NDArray[np.float32]
) -> dict[str, Likeness]:
    """Likeness of neighbours with an odd number first, with an even one, and of all others.

    Raises:
        ConfigError: a name without a number, or too few neighbours to compare.
    """
    numbers = [_number(name) for name in names]
    index = {number: n for n, number in enumerate(numbers)}
    pairs: dict[str, list[tuple[int, int]]] = {"odd": [], "even": [], "others": []}
    for one, other in itertools.combinations(sorted(index), 2):
        kind = _FIRST[one % 2] if other == one + 1 else "others"
        pairs[kind].append((index[one], index[other]))
    for kind in _FIRST:
        if len(pairs[kind]) < _LEAST_PAIRS:
            raise ConfigError(
                f"expected at least {_LEAST_PAIRS} pairs of successive numbers whose first is "
                f"{kind}, got {len(pairs[kind])}; too few to say how the volumes are numbered"
            )
    return {
        "neighbours, odd first": _likeness(pairs["odd"], correlation),
        "neighbours, even first": _likeness(pairs["even"], correlation),
        "all others": _likeness(pairs["others"], correlation),
    }


def write_subjects(path: Path, names: Sequence[str], pairs: Sequence[tuple[int, int]]) -> None:
    """One row `name,subject` for each case; a person bears the name of the first volume."""
    first = {names[later]: names[earlier] for earlier, later in pairs}
    write_rows(path, ("name", "subject"), ((name, first.get(name, name)) for name in names))


def _around(case: LoadedCase, shape: Shape) -> npt.NDArray[np.float32]:
    start = centred(case.mask.numpy(), shape)
    image = case.image[0].numpy()
    padded = np.pad(image, [(side, side) for side in shape])
    box = tuple(
        slice(first + side, first + 2 * side) for first, side in zip(start, shape, strict=True)
    )
    return np.ascontiguousarray(padded[box]).ravel()


def _number(name: str) -> int:
    found = re.search(r"(\d+)$", name)
    if found is None:
        raise ConfigError(f"expected names that end in a number, got {name}")
    return int(found[1])


def _likeness(pairs: Sequence[tuple[int, int]], correlation: npt.NDArray[np.float32]) -> Likeness:
    values = np.array([correlation[pair] for pair in pairs], dtype=np.float64)
    interval = bootstrap_interval(values, [str(first) for first, _ in pairs])
    return Likeness(tuple(pairs), float(values.mean()), interval)


if __name__ == "__main__":
    sys.exit(run(main, PersonsConfig))
