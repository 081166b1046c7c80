"""Classification: one class for each image or, of labels that are independent, those present."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Self, TypeVar

import msgspec
from msgspec import Meta

from medserve.errors import (
    InvalidRequestError,
    MedserveError,
    PayloadTooLargeError,
    ServerFailedError,
)
from medserve.spec import ModelSpec
from medserve.tasks.options import Options
from medserve.tasks.result import Provenance, Value, as_html, concerns_all, error_of, read_answer

__all__ = [
    "EXPLAINED_PER_CALL",
    "Classification",
    "ClassificationOptions",
    "Explanation",
    "Packed",
    "as_finding",
    "ask_in_halves",
    "read_finding",
    "read_packed",
]

_Image = TypeVar("_Image")
_Outcome = TypeVar("_Outcome")

# Each costs as much as a large batch of plain images, so a call may not ask for many.
EXPLAINED_PER_CALL = 8
_SHOWN = 5  # classes in a notebook
_NO_LABEL = "none"  # present; the specification keeps the name, and semicolons, out of such labels


class ClassificationOptions(Options, frozen=True, kw_only=True):
    """What a caller may ask of a classifier."""

    top_k: Annotated[
        Annotated[int, Meta(ge=1)] | None,
        Meta(description="Classes in `top`, most probable first."),
    ] = None
    explain: Annotated[
        bool,
        Meta(
            description="Also a heat map of what each class rests on; takes 131 rows of the "
            "network for an image instead of one."
        ),
    ] = False

    @classmethod
    def bounds(cls, spec: ModelSpec) -> Mapping[str, Mapping[str, Any]]:
        """Let no more classes be asked for than the model has."""
        return {"top_k": {"most": len(spec.labels)}}

    def filled(self, spec: ModelSpec) -> Self:
        """Fill the number of classes that the model shows."""
        top_k = min(spec.classifier.top_k, len(spec.labels)) if self.top_k is None else self.top_k
        return msgspec.structs.replace(self, top_k=top_k)


class Explanation(Value, frozen=True):
    """How much each place of an image speaks for one class.

    Attributes:
        label: The class that is explained.
        without_warmest: Its probability with the quarter of the image covered that speaks most
            for it.
        without_coolest: The same with the quarter that speaks least. Where the two are alike the
            map tells nothing.
        full_colour: What a pixel of full colour adds to its log-odds, in nats.
        heatmap_png: Picture of the input's own size, clear where nothing speaks; see
            `medserve.results.files.heatmap`.
        method: How it was found.
    """

    spoken: ClassVar[str] = "an explanation"

    label: str
    without_warmest: float
    without_coolest: float
    full_colour: float
    heatmap_png: bytes
    method: str = "occlusion"

    def __repr__(self) -> str:
        return f"Explanation({self.label!r})"  # pixels belong into no log line


@dataclass(frozen=True)
class Classification:
    """One image's class, or the labels that are present, with probabilities in label order.

    Attributes:
        labels: Class names; the index is the label id.
        probabilities: One per label, in [0, 1]; of exclusive classes they are calibrated and sum
            to 1, of independent ones each stands for itself.
        review: Probability below the limit that the model card states: let a person look.
        novelty: Distance to the training data over its limit; above 1 the image is unlike it. None
            where the model cannot tell, as imported ones.
        explanation: What the class, or one of the labels, rests on, where it was asked for.
        present: The labels that are present, in label order, where classes are independent; None
            where they exclude each other.
    """

    labels: tuple[str, ...]
    probabilities: tuple[float, ...]
    review: bool
    novelty: float | None
    explanation: Explanation | None = None
    present: tuple[str, ...] | None = None

    @property
    def label_id(self) -> int:
        """Index of the class; -1 where classes are independent, of which `present` tells."""
        if self.present is not None:
            return -1
        return max(range(len(self.labels)), key=self.probabilities.__getitem__)

    @property
    def label(self) -> str:
        """Name of the class, the most probable one; empty where classes are independent."""
        return "" if self.present is not None else self.labels[self.label_id]

    @property
    def probability(self) -> float:
        """Probability of the class; not a number (NaN) where classes are independent."""
        return math.nan if self.present is not None else self.probabilities[self.label_id]

    @property
    def finding(self) -> str:
        """The answer in one text: the class, or the labels that are present (see `as_finding`)."""
        return self.label if self.present is None else as_finding(self.present)

    @property
    def found(self) -> tuple[tuple[str, float], ...]:
        """The class, or the labels that are present in label order, with their probabilities."""
        names = (self.label,) if self.present is None else self.present
        shares = dict(zip(self.labels, self.probabilities, strict=True))
        return tuple((name, shares[name]) for name in names)

    def is_unsure(self, limit: float) -> bool:
        """Return whether the class, or any label that is present, is less probable than a limit."""
        return any(probability < limit for _, probability in self.found)

    @property
    def unlike_training(self) -> bool:
        """Whether the image is unlike the training data, so that its class means little."""
        return self.novelty is not None and self.novelty > 1.0

    def top(self, k: int) -> list[tuple[str, float]]:
        """The k most probable labels with their probabilities, most probable first."""
        order = sorted(range(len(self.labels)), key=lambda i: -self.probabilities[i])
        return [(self.labels[i], self.probabilities[i]) for i in order[:k]]

    def _repr_html_(self) -> str:
        """Return the classification as a notebook shows it, with the heat map where it has one."""
        lines = [("class", "probability")]
        lines += [(label, f"{probability:.4f}") for label, probability in self.top(_SHOWN)]
        doubts = [(self.review, "let a person look"), (self.unlike_training, "unlike training")]
        notes = ", ".join(text for is_so, text in doubts if is_so)
        title = f"{self.finding}{f' ({notes})' if notes else ''}"
        pictures = () if self.explanation is None else (self.explanation.heatmap_png,)
        return as_html(title, lines, pictures)

    def to_json(self, top_k: int = 3) -> dict[str, Any]:
        """The members of a JSON answer for one image; some only where there is one."""
        novelty = {} if self.novelty is None else {"novelty": self.novelty}
        explained = {} if self.explanation is None else {"explanation": self.explanation.to_json()}
        answer: dict[str, Any]
        if self.present is None:
            answer = {
                "label": self.label,
                "label_id": self.label_id,
                "probability": self.probability,
            }
        else:
            answer = {"present": list(self.present)}
        return {
            **answer,
            "probabilities": dict(zip(self.labels, self.probabilities, strict=True)),
            "top": [{"label": label, "probability": p} for label, p in self.top(top_k)],
            "review": self.review,
            **novelty,
            "unlike_training": self.unlike_training,
            **explained,
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Classification:
        """Read an answer back; ServerFailedError where it is not a classification."""
        try:
            probabilities: Mapping[str, float] = content["probabilities"]
            explained, novelty = content.get("explanation"), content.get("novelty")
            present = content.get("present")
            if present is not None and not set(present) <= set(probabilities):
                raise ValueError("a label is present that is none of the model's")
            return cls(
                labels=tuple(probabilities),
                probabilities=tuple(float(p) for p in probabilities.values()),
                review=bool(content["review"]),
                novelty=None if novelty is None else float(novelty),
                explanation=None if explained is None else Explanation.from_json(explained),
                present=None if present is None else tuple(present),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ServerFailedError(
                f"expected a classification from the server, got members {sorted(content)}"
            ) from error


def as_finding(present: Sequence[str]) -> str:
    """Return the labels that are present as one text, as `Effusion; Mass`, or `none`."""
    return "; ".join(present) or _NO_LABEL


def read_finding(text: str, labels: Sequence[str]) -> tuple[str, ...]:
    """Return the labels that a text such as `Effusion; Mass` or `none` names, in label order.

    Raises:
        InvalidRequestError: it names another one.
    """
    names = {each.strip() for each in text.split(";")}
    if names == {_NO_LABEL}:
        return ()
    if not names <= set(labels):
        raise InvalidRequestError(
            "expected labels of this model, separated by semicolons, or 'none', got another text"
        )
    return tuple(label for label in labels if label in names)


@dataclass(frozen=True)
class Packed:
    """The answer to a call with several images.

    Attributes:
        provenance: The archive that answered.
        outcomes: The members of each image's answer in the order of the call, or its error.
    """

    provenance: Provenance
    outcomes: tuple[dict[str, Any] | MedserveError, ...]


def read_packed(answer: bytes, count: int) -> Packed:
    """Read the JSON answer to a call with `count` images.

    Raises:
        MedserveError: the error that the answer holds, which concerns the whole call.
        ServerFailedError: the answer is no list of items.
    """
    content = read_answer(answer, dict[str, Any])
    if "error" in content:
        raise error_of(content["error"])
    items = content.get("items")
    if not isinstance(items, list) or not all(isinstance(each, Mapping) for each in items):
        raise ServerFailedError(
            f"expected a list of items in the answer, got members {sorted(content)}; does this "
            "model classify?"
        )
    by_place = {each.get("index"): each for each in items}
    outcomes = tuple(_outcome(by_place.get(place)) for place in range(count))
    return Packed(Provenance.from_json(_provenance(content)), outcomes)


def _outcome(item: Mapping[str, Any] | None) -> dict[str, Any] | MedserveError:
    if item is None:
        return ServerFailedError("the model's answer leaves this image out")
    if item.get("status") != "ok":
        return error_of(item.get("error"))
    return {key: value for key, value in item.items() if key not in ("index", "status")}


def _provenance(content: Mapping[str, Any]) -> dict[str, str]:
    return {name: str(content.get(name, "")) for name in Provenance.__struct_fields__}


async def ask_in_halves(
    images: Sequence[_Image], ask: Callable[[Sequence[_Image]], Awaitable[Sequence[_Outcome]]]
) -> list[_Outcome | MedserveError]:
    """Return one outcome an image; a call that is too large is made again as two of half the size.

    Raises:
        MedserveError: an error that concerns every image.
    """
    try:
        return list(await ask(images))
    except PayloadTooLargeError as error:
        if len(images) == 1:
            return [error]
        middle = len(images) // 2
        return await ask_in_halves(images[:middle], ask) + await ask_in_halves(images[middle:], ask)
    except MedserveError as error:
        if concerns_all(error):
            raise
        return [error for _ in images]
