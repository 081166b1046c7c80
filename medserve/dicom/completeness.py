"""Whether a series is complete: DICOM has no element that says so.

A rule waits until no image has come for its quiet time, and then asks for proof: as many images as
it states, one patient and study, for volumes a grid without gaps, and, where an archive can be
asked, the number of images that the archive has. A rule of several inputs asks it of the series of
each, and that all lie on one grid.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from medserve.dicom.headers import read_header
from medserve.dicom.peers import Destination, read_destination
from medserve.dicom.rules import Rule, Rules, RuleTask
from medserve.dicom.spool import Image
from medserve.errors import InvalidImageError, InvalidRequestError
from medserve.imaging.codecs.dicom_series import geometry_of
from medserve.imaging.geometry import Geometry

__all__ = ["Count", "StudySeries", "Verdict", "judge", "quiet_s"]

Count = Callable[[Destination, str, str], int | None]


@dataclass(frozen=True)
class Verdict:
    """What one rule says of the images of a series.

    Attributes:
        images: The SOP Instance UIDs of those that it is for.
        reason: Why they are not complete; "" where they are.
        series: The number of the series that they are of; all of them, the first one known first.
            Empty of a rule without inputs, which knows one series alone.
    """

    rule: str
    images: tuple[str, ...]
    reason: str
    series: tuple[int, ...] = ()


@dataclass(frozen=True)
class StudySeries:
    """One of the series of a study.

    Attributes:
        number: A later one has a larger number.
        calling: Who sent it.
        is_arriving: Whether images of it may still come, as far as its quiet time tells.
    """

    number: int
    calling: str
    images: Sequence[Image]
    is_arriving: bool = False


def quiet_s(rules: Rules, images: Sequence[Image], calling: str) -> float:
    """Return how long no image may have come before the series is judged: the longest time."""
    fitting = [rule for rule in rules if any(rule.fits(each.facts, calling) for each in images)]
    return max((rule.quiet_s for rule in fitting), default=0.0)


def judge(
    rules: Rules,
    images: Sequence[Image],
    calling: str,
    count: Count,
    study: Sequence[StudySeries] = (),
) -> list[Verdict]:
    """Return what each rule says that is for at least one image.

    Args:
        rules: The rules of the node.
        images: All images of one series.
        calling: Who sent them.
        count: Asks an archive how many images of a study and series it has; None where it does
            not say.
        study: All series of the study, that of `images` among them; rules of several inputs look
            at them.
    """
    verdicts = []
    for rule in rules:
        chosen = [each for each in images if rule.fits(each.facts, calling)]
        if chosen and rule.inputs:
            verdicts.append(_judge_inputs(rule, study, count))
        elif chosen:
            reason = _missing(rule, chosen, len(images), count)
            verdicts.append(Verdict(rule.name, _uids(chosen), reason))
    return verdicts


def _uids(images: Sequence[Image]) -> tuple[str, ...]:
    return tuple(sorted(each.facts.sop_uid for each in images))


def _judge_inputs(rule: Rule, study: Sequence[StudySeries], count: Count) -> Verdict:
    """Return what a rule of several inputs says of the series of a study."""
    chosen = {each.number: [image for image in each.images if rule.fits(image.facts, each.calling)]
              for each in sorted(study, key=lambda each: each.number)}  # fmt: skip
    fitting = [number for number, images in chosen.items() if images]
    reason = ""
    if any(each.is_arriving for each in study if each.number in fitting):
        reason = "images of another input are still coming"
    of_input: dict[str, list[Image]] = {}
    for name in rule.inputs:
        parts = [
            (each, images)
            for each in study
            if (images := [
                image for image in chosen[each.number] if rule.input_of(image.facts) == name
            ])
        ]  # fmt: skip
        if len(parts) != 1:
            reason = reason or f"input {name}: expected one series, got {len(parts)}"
            continue
        [(series, of_input[name])] = parts
        if not reason and (why := _missing(rule, of_input[name], len(series.images), count)):
            reason = f"input {name}: {why}"
    everything = [image for number in fitting for image in chosen[number]]
    reason = reason or _differing(rule, of_input)
    return Verdict(rule.name, _uids(everything), reason, tuple(fitting))


def _differing(rule: Rule, of_input: dict[str, list[Image]]) -> str:
    """Return how the series of the inputs, each complete, do not belong together."""
    if len({each.facts.identity for images in of_input.values() for each in images}) > 1:
        return "expected all inputs of one patient, got several under one study"
    first, *others = ((name, _grid(rule, images)) for name, images in of_input.items())
    for name, grid in others:
        if not grid.matches(first[1]):
            return (
                f"input {name}: expected the grid of {first[0]} (shape, spacing, place), got "
                f"another one; bring the series onto one grid first"
            )
    return ""


def _grid(rule: Rule, images: Sequence[Image]) -> Geometry:
    headers = [read_header(each.path) for each in images if each.path is not None]
    return geometry_of(headers, rule.options.get("select"))


def _missing(rule: Rule, chosen: Sequence[Image], of_series: int, count: Count) -> str:
    """Return why the images are not complete, "" where they are; no element is quoted."""
    fewest, most = rule.images
    if not fewest <= len(chosen) <= most:
        return f"expected {fewest} to {most} images, got {len(chosen)}"
    if gone := sum(each.path is None for each in chosen):
        return f"{gone} images were deleted after an earlier result; send the whole series again"
    size_mb = sum(each.path.stat().st_size for each in chosen if each.path is not None) / 1e6
    if size_mb > rule.max_mb:
        return f"expected at most {rule.max_mb:g} MB of images (max_mb), got {size_mb:.1f}"
    if len({each.facts.identity for each in chosen}) > 1:
        return "expected images of one patient and study, got several under one series"
    if rule.query is not None:
        facts = chosen[0].facts
        known = count(read_destination(rule.query), facts.study_uid, facts.series_uid)
        if known is None:
            return "the archive did not say how many images the series has"
        if known > of_series:
            return f"expected {known} images, as the archive has, got {of_series}"
    if rule.task is RuleTask.VOLUMES:
        try:
            _grid(rule, chosen)
        except (InvalidImageError, InvalidRequestError) as error:
            return error.message
        except FileNotFoundError:
            return "an image has vanished from the state folder; send the series again"
    return ""
