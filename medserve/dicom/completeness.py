"""Whether a series is complete: DICOM has no element that says so.

A rule waits until no image has come for its quiet time, and then asks for proof: as many images as
it states, one patient and study, for volumes a grid without gaps, and, where an archive can be
asked, the number of images that the archive has.
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

__all__ = ["Count", "Verdict", "judge", "quiet_s"]

Count = Callable[[Destination, str, str], int | None]


@dataclass(frozen=True)
class Verdict:
    """What one rule says of the images of a series.

    Attributes:
        images: The SOP Instance UIDs of those that it is for.
        reason: Why they are not complete; "" where they are.
    """

    rule: str
    images: tuple[str, ...]
    reason: str


def quiet_s(rules: Rules, images: Sequence[Image], calling: str) -> float:
    """Return how long no image may have come before the series is judged: the longest time."""
    fitting = [rule for rule in rules if any(rule.fits(each.facts, calling) for each in images)]
    return max((rule.quiet_s for rule in fitting), default=0.0)


def judge(rules: Rules, images: Sequence[Image], calling: str, count: Count) -> list[Verdict]:
    """Return what each rule says that is for at least one image.

    Args:
        rules: The rules of the node.
        images: All images of one series.
        calling: Who sent them.
        count: Asks an archive how many images of a study and series it has; None where it does
            not say.
    """
    verdicts = []
    for rule in rules:
        chosen = [each for each in images if rule.fits(each.facts, calling)]
        if chosen:
            uids = tuple(sorted(each.facts.sop_uid for each in chosen))
            verdicts.append(Verdict(rule.name, uids, _missing(rule, chosen, len(images), count)))
    return verdicts


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
            headers = [read_header(each.path) for each in chosen if each.path is not None]
            geometry_of(headers, rule.options.get("select"))
        except (InvalidImageError, InvalidRequestError) as error:
            return error.message
        except FileNotFoundError:
            return "an image has vanished from the state folder; send the series again"
    return ""
