"""The reasons for a review in parts, so that a page tells them in its visitor's language.

The message of a reason is an English sentence, written by the code that an archive carries. Its
numbers are read here; the sentence around them stands in `texts/`, under `segment.told.`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from medserve.tasks.result import Doubt, DoubtReason

__all__ = ["told"]

_TO, _BY = "\N{EN DASH}", " \N{MULTIPLICATION SIGN} "
_OF_FRAMES = re.compile(r"(?P<n>\d+) of (?P<all>\d+) frames, the first: ")
_SEEN = r"in the training data (?P<seen>.+)"
_SENTENCES: Mapping[str, tuple[DoubtReason, re.Pattern[str]]] = {
    name: (reason, re.compile(sentence))
    for name, reason, sentence in (
        ("size", DoubtReason.SIZE, rf"(?P<found>.+) mm, {_SEEN} mm"),
        (
            "intensities", DoubtReason.INTENSITIES,
            r"distance (?P<found>\S+) to the mean histogram, in the training data up to "
            r"(?P<seen>\S+)",
        ),
        (
            "not_ultrasound", DoubtReason.INTENSITIES,
            r"(?P<n>\d+) of (?P<all>\d+) frames do not look like ultrasound",
        ),
        (
            "texture", DoubtReason.TEXTURE,
            rf"differences between neighbours of (?P<found>\S+) standard deviations, {_SEEN}",
        ),
        (
            "layout", DoubtReason.LAYOUT,
            r"bright and dark lie elsewhere: correlation (?P<found>\S+) with the mean image, in "
            r"the training data (?P<seen>\S+) or more",
        ),
        ("nothing", DoubtReason.EMPTY, r"none of the labels was found"),
        ("empty", DoubtReason.EMPTY, r".+ was found in none of (?P<all>\d+) frames"),
        (
            "label_volume", DoubtReason.LABEL_VOLUME,
            rf"(?P<label>.+): (?P<found>\S+) ml, {_SEEN} ml",
        ),
        (
            "label_area", DoubtReason.LABEL_AREA,
            rf"(?P<label>.+): (?P<found>\S+) of the frame, {_SEEN}",
        ),
        (
            "predicted_dice", DoubtReason.PREDICTED_DICE,
            r"(?P<label>.+): predicted Dice (?P<found>\S+); below (?P<limit>\S+) are "
            r"(?P<share>\d+) % of cases that training did not see",
        ),
    )
}  # fmt: skip


def told(doubt: Doubt) -> dict[str, Any]:
    """Return a reason as the page's script takes it.

    Returns:
        `reason`; `sentence`, the name of a text, with its `values`, and `frames` with `n` and `all`
        where it is told of a share of them. Of a sentence that is not known, such as that of a
        newer archive, `message` alone.
    """
    of = _OF_FRAMES.match(doubt.message)
    message = doubt.message[of.end() :] if of else doubt.message
    for name, (reason, sentence) in _SENTENCES.items():
        found = sentence.fullmatch(message) if doubt.reason is reason else None
        if found is not None:
            values = {key: _signs(key, value) for key, value in found.groupdict().items()}
            frames = {} if of is None else {"frames": of.groupdict()}
            return {"reason": doubt.reason, "sentence": name, "values": values} | frames
    return {"reason": doubt.reason, "message": doubt.message}


def _signs(key: str, value: str) -> str:
    """Return numbers with signs between them, as every language writes them; a label as it is."""
    return value if key == "label" else value.replace(" to ", _TO).replace(" x ", _BY)
