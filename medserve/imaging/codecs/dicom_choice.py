"""Choose one of several series and acquisitions in DICOM images, or refuse them with a list.

A caller names the one that is wanted in the option `select`, as KEY=VALUE separated by commas; the
error lists what there is in the same words. Numbers of acquisitions and the like count only where
slices of several interleave or repeat: a table that moves step by step counts on from place to
place. Where images repeat at every place and differ in nothing else, their times order them into
phases.

Of text only code strings are shown, whose elements PS3.15 table E.1-1 does not list among those
that may identify a person.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NoReturn

import numpy as np
from pydicom import Dataset

from medserve.errors import InvalidImageError, InvalidRequestError
from medserve.imaging.codecs.dicom_planes import Plane
from medserve.imaging.codecs.dicom_traits import MOMENTS, TRAITS, written

__all__ = ["Choice", "one_acquisition", "one_phase", "one_series"]

_SERIES, _PHASE = "series", "phase"
_KEYS = (_SERIES, *(trait.key for trait in TRAITS), _PHASE)
_SAME_PLACE_MM = 1e-3
_MOST_LISTED = 8
_CODE_STRING = re.compile(r"[A-Za-z0-9_ ./+-]{1,64}")
_Values = tuple[str, ...]


@dataclass(frozen=True)
class Choice:
    """What a caller wants of several acquisitions: values by key of `select`."""

    wanted: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str | None) -> Choice:
        """Read `series=5,echo_time=30`; None chooses nothing.

        Raises:
            InvalidRequestError: another form, or a key that is not known.
        """
        wanted: dict[str, str] = {}
        for part in [] if text is None else text.split(","):
            key, _, value = (each.strip() for each in part.partition("="))
            if key not in _KEYS or key in wanted or not value:
                raise InvalidRequestError(
                    "params: select: expected KEY=VALUE, several separated by commas, with each "
                    f"key once and out of {', '.join(_KEYS)}; got something else"
                )
            wanted[key] = _comparable(value)
        return cls(wanted)

    def takes_series_of(self, dataset: Dataset) -> bool:
        """Tell whether an object belongs to the wanted series, by its number or its UID."""
        wanted = self.wanted.get(_SERIES)
        stated = (_series_number(dataset), str(dataset.get("SeriesInstanceUID")))
        return wanted is None or wanted in stated


def one_series(datasets: Sequence[Dataset], others: Sequence[Dataset]) -> None:
    """Refuse images of several series, and a choice that takes none.

    Args:
        datasets: Images that the choice takes.
        others: Headers of those that it does not.

    Raises:
        InvalidRequestError: the choice takes none of several series.
        InvalidImageError: it takes several.
    """
    if not datasets and others:
        raise InvalidRequestError(
            f"params: select: expected a series out of {_listed_series(others)}; got another"
        )
    if len({each.get("SeriesInstanceUID") for each in datasets}) > 1:
        count = len({each.get("SeriesInstanceUID") for each in datasets})
        raise InvalidImageError(
            f"expected one series, got {count}: {_listed_series(datasets)}; send one alone, or "
            "choose one with the option select, as series=NUMBER or series=UID"
        )


def one_acquisition(planes: Sequence[Plane], choice: Choice) -> list[Plane]:
    """Return the planes that the choice takes.

    Raises:
        InvalidRequestError: no plane has a value that is wanted.
        InvalidImageError: they are of several acquisitions; the error lists them.
    """
    kept = list(planes)
    for place, trait in enumerate(TRAITS):
        wanted = choice.wanted.get(trait.key)
        if wanted is None:
            continue
        found: Counter[_Values] = Counter((plane.traits[place],) for plane in kept)
        kept = [plane for plane in kept if _comparable(plane.traits[place] or "none") == wanted]
        if not kept:
            raise InvalidRequestError(
                f"params: select: expected one of {', '.join(_listed(found, [trait.key]))}; got "
                "a value that no slice has"
            )
    _refuse_several(kept, [place for place, trait in enumerate(TRAITS) if not trait.in_turn])
    return kept


def one_phase(planes: Sequence[Plane], choice: Choice) -> list[Plane]:
    """Return the planes of one moment, of planes sorted along their normal.

    Raises:
        InvalidRequestError: the wanted phase is none of those there are.
        InvalidImageError: there are several acquisitions or moments; the error lists them.
    """
    turns = [place for place, trait in enumerate(TRAITS) if trait.in_turn]
    _refuse_several(planes, [place for place in turns if _interleave(planes, place)])
    phases = _phases(planes)
    wanted = choice.wanted.get(_PHASE)
    if wanted is None:
        if len(phases) > 1:
            found: Counter[_Values] = Counter(
                {(str(n + 1),): len(phase) for n, phase in enumerate(phases)}
            )
            _refuse(found, [_PHASE], "time")
        return list(planes)
    if not wanted.isdecimal() or not 1 <= int(wanted) <= len(phases):
        raise InvalidRequestError(
            f"params: select: expected a phase from 1 to {len(phases)}, which is how many times "
            "these images repeat at every place; got another"
        )
    return phases[int(wanted) - 1]


def _phases(planes: Sequence[Plane]) -> list[list[Plane]]:
    """Order images that repeat at every place by time; all of them where that cannot be done."""
    places: list[list[Plane]] = []
    for plane in planes:
        if places and plane.normal @ (plane.position - places[-1][0].position) < _SAME_PLACE_MM:
            places[-1].append(plane)
        else:
            places.append([plane])
    if len({len(place) for place in places}) == 1:
        for moment in range(len(MOMENTS)):
            times = [[plane.moments[moment] for plane in place] for place in places]
            if np.isfinite(times).all() and all(len(set(each)) == len(each) for each in times):
                order = np.argsort(times, axis=1).T
                return [
                    [place[n] for place, n in zip(places, phase, strict=True)] for phase in order
                ]
    return [list(planes)]


def _interleave(planes: Sequence[Plane], place: int) -> bool:
    """Tell whether slices of one value of a trait lie between those of another."""
    values = [plane.traits[place] for plane in planes]
    runs = 1 + sum(a != b for a, b in itertools.pairwise(values))
    return runs > len(set(values))


def _refuse_several(planes: Sequence[Plane], places: Sequence[int]) -> None:
    """Refuse planes whose traits differ, by the fewest of them that tell all apart."""
    differing: list[int] = []
    found: Counter[_Values] = Counter(((),) * len(planes))
    for place in places:
        finer = Counter(tuple(plane.traits[n] for n in (*differing, place)) for plane in planes)
        if len(finer) > len(found):
            differing.append(place)
            found = finer
    if differing:
        spoken = " and ".join(TRAITS[place].spoken for place in differing)
        _refuse(found, [TRAITS[place].key for place in differing], spoken)


def _refuse(found: Counter[_Values], keys: Sequence[str], spoken: str) -> NoReturn:
    listed = _listed(found, keys)
    raise InvalidImageError(
        f"expected one acquisition, got {len(found)} that differ in {spoken}: "
        f"{', '.join(listed)}; send the images of one alone, or choose one with the option "
        f"select, such as {listed[0].partition(' (')[0]}"
    )


def _listed(found: Counter[_Values], keys: Sequence[str]) -> list[str]:
    """Return each combination as it is written in `select`, with how many slices it has."""
    ordered = sorted(found.items(), key=lambda each: [_order(part) for part in each[0]])
    listed = [
        ",".join(f"{key}={_shown(part)}" for key, part in zip(keys, values, strict=True))
        + f" ({count} slices)"
        for values, count in ordered[:_MOST_LISTED]
    ]
    more = len(found) - _MOST_LISTED
    return [*listed, f"{more} more"] if more > 0 else listed


def _listed_series(datasets: Sequence[Dataset]) -> str:
    images = Counter(str(each.get("SeriesInstanceUID")) for each in datasets)
    numbers = {str(each.get("SeriesInstanceUID")): _series_number(each) for each in datasets}
    ordered = sorted(images, key=lambda uid: _order(numbers[uid]))
    shown = [f"series={_shown(numbers[uid])} ({images[uid]} images)" for uid in ordered]
    more = [f"{len(shown) - _MOST_LISTED} more"] if len(shown) > _MOST_LISTED else []
    return ", ".join(shown[:_MOST_LISTED] + more)


def _series_number(dataset: Dataset) -> str:
    return _comparable(written(dataset.get("SeriesNumber")))


def _comparable(text: str) -> str:
    """Return numbers as headers' are written, and words in lower case."""
    text = text.strip().lower().replace("\\", "/")
    try:
        return str(int(text)) if text.isdecimal() else f"{float(text):.5g}"
    except ValueError:
        return text


def _order(text: str) -> tuple[float, str]:
    try:
        return float(text), ""
    except ValueError:
        return float("inf"), text


def _shown(text: str) -> str:
    if not text:
        return "none"
    return text if _CODE_STRING.fullmatch(text) else "another"
