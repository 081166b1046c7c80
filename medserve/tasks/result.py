"""The results of a call: values that handlers write as JSON and clients read back.

Files travel in them as base64, which msgspec writes and reads by itself.
"""

from __future__ import annotations

import base64
import enum
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from typing import Any, ClassVar, Self, TypeVar

import msgspec

from medserve.errors import (
    AuthenticationError,
    InvalidRequestError,
    MedserveError,
    ServerFailedError,
    ServerUnreachableError,
    UnknownModelError,
    error_from_code,
)

_Kind = TypeVar("_Kind")

__all__ = [
    "Doubt",
    "DoubtReason",
    "Provenance",
    "Result",
    "Value",
    "as_html",
    "concerns_all",
    "error_of",
    "read_answer",
]


class Value(msgspec.Struct, frozen=True):
    """Base of what stands in a result; `spoken` names it in errors."""

    spoken: ClassVar[str] = "a value"

    def to_json(self) -> dict[str, Any]:
        """Return the value as the members of a JSON object."""
        content: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(self))
        return content

    @classmethod
    def from_json(cls, content: object) -> Self:
        """Read it back; ServerFailedError where it is something else."""
        try:
            return msgspec.convert(content, cls)
        except msgspec.ValidationError as error:
            raise _no(cls, content) from error


class Provenance(Value, frozen=True):
    """The archive that answered."""

    spoken: ClassVar[str] = "the name of an archive"

    model: str = ""
    version: str = ""
    archive_digest: str = ""  # "sha256:…" over the archive's manifest


class DoubtReason(enum.StrEnum):
    """What about an input or an answer lies outside of the training data, or is uncertain."""

    SIZE = "size"  # extent in millimetres
    INTENSITIES = "intensities"  # histogram of what the network saw
    TEXTURE = "texture"  # as of noise, or as after strong smoothing
    LAYOUT = "layout"  # bright and dark lie elsewhere: inverted, mirrored, another part
    EMPTY = "empty"  # nothing was found at all
    LABEL_VOLUME = "label_volume"  # of the mask: larger or smaller than any reference
    LABEL_AREA = "label_area"  # the same of a frame
    PREDICTED_DICE = "predicted_dice"  # the scores of a mask promise little


_OF_MASKS = (
    *(DoubtReason.LABEL_VOLUME, DoubtReason.LABEL_AREA),
    *(DoubtReason.EMPTY, DoubtReason.PREDICTED_DICE),
)


class Doubt(Value, frozen=True):
    """Why a person should look at an answer.

    Attributes:
        reason: What is out of the ordinary.
        message: The value found, and the range that training saw or the limit.
    """

    spoken: ClassVar[str] = "a reason for a review"

    reason: DoubtReason
    message: str

    @property
    def is_about_input(self) -> bool:
        """Whether the input, and not the answer alone, is unlike the training data."""
        return self.reason not in _OF_MASKS


class Result(Value, frozen=True, kw_only=True, omit_defaults=True):
    """Base of the results of tasks; a handler leaves the three members to the envelope."""

    model: str = ""
    version: str = ""
    archive_digest: str = ""

    @property
    def provenance(self) -> Provenance:
        """The archive that answered."""
        return Provenance(self.model, self.version, self.archive_digest)

    def table(self) -> Iterator[Sequence[str]]:
        """Yield what a person reads first, line by line, the heading before all others."""
        return iter(())

    def pictures(self) -> Iterator[bytes]:
        """Yield the pictures that the result holds, as PNG."""
        return iter(())

    def _repr_html_(self) -> str:
        """Return the result as a notebook shows it."""
        return as_html(f"{self.model} {self.version}", self.table(), self.pictures())

    def encode(self) -> bytes:
        """Return the result as JSON."""
        return msgspec.json.encode(self)

    @classmethod
    def decode(cls, answer: bytes) -> Self:
        """Read the JSON answer of a model.

        Raises:
            MedserveError: the error that the answer holds.
            ServerFailedError: the answer is something else.
        """
        head = read_answer(answer, _Head)
        if head.error is not None:
            raise error_of(head.error)
        try:
            return msgspec.json.decode(answer, type=cls)
        except msgspec.ValidationError as error:
            raise _no(cls, read_answer(answer, dict[str, Any])) from error

    def without_files(self) -> dict[str, Any]:
        """Return the members of a JSON object, but neither files nor the archive's names."""
        content = self.to_json()
        own = {name for name in self.__struct_fields__ if isinstance(getattr(self, name), bytes)}
        own |= set(Provenance.__struct_fields__)
        return {key: value for key, value in content.items() if key not in own}


class _Head(msgspec.Struct, frozen=True):
    """What every answer may hold."""

    error: Any = None


def as_html(title: str, table: Iterable[Sequence[str]], pictures: Iterable[bytes]) -> str:
    """Return a table, its heading first, and pictures as HTML that a notebook shows."""
    cells = (
        "".join(f"<{tag}>{escape(text)}</{tag}>" for text in line)
        for tag, line in zip(_heading_first(), table, strict=False)
    )
    rows = "".join(f"<tr>{line}</tr>" for line in cells)
    style = "max-width:100%;max-height:32em"  # a picture of a large frame fits the notebook, too
    encoded = (base64.b64encode(each).decode() for each in pictures)
    shown = "".join(
        f'<img alt="" style="{style}" src="data:image/png;base64,{each}">' for each in encoded
    )
    return f'<p style="font-weight:600">{escape(title)}</p><table>{rows}</table>{shown}'


def _heading_first() -> Iterator[str]:
    yield "th"
    while True:
        yield "td"


def read_answer(answer: bytes, kind: type[_Kind]) -> _Kind:
    """Read a JSON answer of any model; ServerFailedError where it is something else."""
    try:
        return msgspec.json.decode(answer, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ServerFailedError(
            f"expected a JSON object from the model, got {len(answer)} bytes of something else"
        ) from error


def error_of(content: object) -> MedserveError:
    """Return the error that stands in an answer under `error`."""
    if not isinstance(content, Mapping):
        return ServerFailedError("the model reports an error without saying which")
    return error_from_code(str(content.get("code")), str(content.get("message")))


def concerns_all(error: MedserveError) -> bool:
    """Tell whether every file of a request would fail in the same way."""
    # Exactly InvalidRequestError: its subclass speaks of one file.
    return type(error) is InvalidRequestError or isinstance(
        error, AuthenticationError | ServerUnreachableError | UnknownModelError
    )


def _no(kind: type[Value], content: object) -> ServerFailedError:
    """Tell that an answer has other members; their values may be a patient's."""
    members = sorted(map(str, content)) if isinstance(content, Mapping) else "none"
    return ServerFailedError(f"expected {kind.spoken} from the server, got members {members}")
