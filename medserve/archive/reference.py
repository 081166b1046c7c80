"""The answers that a model gives on held-out data: against them drift is told, see `docs`.

An archive may carry `reference.json`: for each signal of an answer (the probability of a class, the
volume of a structure) its quantiles over inputs that the model was not trained on. They are sorted
signal by signal and have no names; of fewer inputs than quantiles they are the values themselves.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Literal

import msgspec
import numpy as np

from medserve.errors import ArchiveError

__all__ = [
    "FEWEST_OF_A_CLASS",
    "REFERENCE",
    "HeldOut",
    "Observed",
    "Reference",
    "read_answer_items",
]

REFERENCE = "reference.json"
_QUANTILES = 200  # of a signal; finer steps change no test
FEWEST_OF_A_CLASS = 20  # inputs of a class; fewer say nothing about it


class _Grid(msgspec.Struct, frozen=True):
    rows: int
    columns: int


class _Frame(msgspec.Struct, frozen=True):
    status: str
    pixels: int = 0


class _Stack(msgspec.Struct, frozen=True):
    volume_ml: float | None = None
    frames_found: int = 0


class _Structure(msgspec.Struct, frozen=True):
    label: str
    stack: _Stack


class _Estimate(msgspec.Struct, frozen=True):
    name: str
    value: float


class Observed(msgspec.Struct, frozen=True):
    """What is watched of one answer; other members of its JSON are passed over.

    Attributes:
        status: "ok", or "error".
        label: The class that was found.
        probability: Of that class.
        present: The labels that are present, of a model whose labels are independent; else None.
        probabilities: Of each label.
        novelty: Distance to the training data over its limit.
        review: Whether a person should look.
        unlike_training: Whether the input is unlike the training data.
        values: The numbers that are told of an image.
        volumes_ml: Volume of each structure of a volume.
    """

    status: str = "ok"
    label: str = ""
    probability: float | None = None
    present: tuple[str, ...] | None = None
    probabilities: Mapping[str, float] = msgspec.field(default_factory=dict)
    novelty: float | None = None
    review: bool = False
    unlike_training: bool = False
    values: tuple[_Estimate, ...] = ()
    volumes_ml: Mapping[str, float] = msgspec.field(default_factory=dict)
    grid: _Grid | None = None
    frames: tuple[_Frame, ...] = ()
    stack: _Stack | None = None
    structures: tuple[_Structure, ...] = ()

    def signals(self) -> Iterator[tuple[str, float]]:
        """Yield name and value of what is compared with held-out data.

        A class is compared within its own kind, so that a day with one class alone is no drift.
        Of independent labels the probability of each is a signal of its own.
        """
        if self.present is not None:
            for label, probability in self.probabilities.items():
                yield f"probability of {label}", probability
            if self.novelty is not None:
                yield "novelty", self.novelty
            return
        if self.probability is not None:
            yield "probability", self.probability
            if self.novelty is not None:
                yield "novelty", self.novelty
            return
        for each in self.values:
            yield f"value of {each.name}", each.value
        yield "review", float(self.review)
        yield "unlike", float(self.unlike_training)
        for label, volume_ml in self.volumes_ml.items():
            yield f"ml of {label}", volume_ml
        found = [frame.pixels for frame in self.frames if frame.status == "ok"]
        if self.grid is not None and found:
            yield "area", sum(found) / (len(found) * self.grid.rows * self.grid.columns)


class _Answer(Observed, frozen=True):
    """An answer as it is sent: of one input, or of a packed call."""

    items: tuple[Observed, ...] | None = None
    event: str = ""  # of a part that is streamed before the answer


class HeldOut(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One signal over the held-out inputs of one class.

    Attributes:
        count: How many inputs.
        quantiles: Rising, at levels that lie evenly between 0 and 1.
    """

    count: Annotated[int, msgspec.Meta(ge=1)]
    quantiles: tuple[float, ...]

    def place(self, value: float) -> float:
        """Return the share of inputs below a value, those that equal it counted half; in [0, 1]."""
        below = bisect_left(self.quantiles, value) + bisect_right(self.quantiles, value)
        return below / (2 * len(self.quantiles))

    @property
    def tolerance(self) -> float:
        """How far the mean place of inputs of this kind may lie from 1/2: two standard errors.

        The places of n inputs are uniform; their mean has the variance 1 / (12 n).
        """
        return 2 / math.sqrt(12 * self.count)


class Reference(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The distribution of every signal over held-out inputs.

    Attributes:
        format: 1.
        network: SHA-256 of the `model.onnx` that gave the answers.
        inputs: How many.
        signals: Name -> class ("" where the model finds none) -> its held-out values.
    """

    format: Literal[1]
    network: str
    inputs: int
    signals: dict[str, dict[str, HeldOut]]

    @classmethod
    def of(cls, network: str, answers: Iterable[Observed]) -> Reference:
        """Sketch the answers to held-out inputs; classes that are too rare are left out."""
        values: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
        count = 0
        for answer in answers:
            count += 1
            for name, value in answer.signals():
                values[name, answer.label].append(value)
        signals: defaultdict[str, dict[str, HeldOut]] = defaultdict(dict)
        for (name, label), found in sorted(values.items()):
            if len(found) >= FEWEST_OF_A_CLASS:
                signals[name][label] = HeldOut(len(found), _quantiles(found))
        return cls(1, network, count, dict(signals))

    @classmethod
    def decode(cls, content: bytes, source: str) -> Reference:
        """Read the file; ArchiveError names `source` where it cannot be used."""
        try:
            found = msgspec.json.decode(content, type=cls)
        except (msgspec.DecodeError, RecursionError) as error:
            raise ArchiveError(f"{source}: {REFERENCE} cannot be used: {error}") from error
        for each in (each for classes in found.signals.values() for each in classes.values()):
            if not each.quantiles or list(each.quantiles) != sorted(each.quantiles):
                raise ArchiveError(f"{source}: {REFERENCE}: expected rising quantiles")
        return found

    def encode(self) -> bytes:
        """Return the content of the file."""
        return msgspec.json.encode(self) + b"\n"


def read_answer_items(answer: bytes) -> Sequence[Observed]:
    """Return what is watched of an answer: one entry an input that was answered.

    None of an answer that is no JSON, or an error, and of what is streamed before it.
    """
    if not answer.startswith(b"{"):
        return ()
    try:
        found = _DECODER.decode(answer)
    except (msgspec.DecodeError, RecursionError):
        return ()
    if found.event:
        return ()
    return [each for each in (found.items or (found,)) if each.status == "ok"]


def _quantiles(values: Sequence[float]) -> tuple[float, ...]:
    count = min(len(values), _QUANTILES)
    levels = (np.arange(count) + 0.5) / count
    found = np.quantile(values, levels, method="inverted_cdf")
    return tuple(float(f"{each:.6g}") for each in found)


_DECODER = msgspec.json.Decoder(_Answer)
