"""Bodies of several parts (RFC 2046 5.1), read piece by piece: what forms and DICOMweb share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError

from medserve.errors import InvalidRequestError, PayloadTooLargeError

__all__ = ["MultipartBody"]


class MultipartBody(ABC):
    """A body while it comes in; a subclass says what becomes of each part.

    Args:
        boundary: Of the body's content type.
        most: Parts in one body.
        kind: What the body is, for errors.
    """

    def __init__(self, boundary: bytes, most: int, kind: str) -> None:
        self._most, self._kind_of_body, self._count = most, kind, 0
        self._header = [b"", b""]  # name and value; the parser bounds their length
        self._headers: dict[bytes, bytes] = {}
        self._is_over = False
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._on_begin,
                    "on_header_field": lambda data, start, end: self._add(0, data[start:end]),
                    "on_header_value": lambda data, start, end: self._add(1, data[start:end]),
                    "on_header_end": self._on_header,
                    "on_headers_finished": lambda: self.begin(self._headers),
                    "on_part_data": lambda data, start, end: self.write(data[start:end]),
                    "on_part_end": self.end,
                    "on_end": self._on_end,
                },
            )
        except FormParserError:
            raise self._malformed() from None

    def feed(self, piece: bytes) -> None:
        """Take the next bytes of the body.

        Raises:
            PayloadTooLargeError: there are too many parts.
            InvalidRequestError: the body is malformed.
            MedserveError: what the subclass refuses.
        """
        try:
            self._parser.write(piece)
        except FormParserError:
            raise self._malformed() from None

    def finish(self) -> None:
        """Refuse a body that ends before its last boundary."""
        if not self._is_over:
            raise InvalidRequestError(
                f"expected {self._kind_of_body} up to its last boundary, got a part of it; send it "
                "again"
            )

    @abstractmethod
    def begin(self, headers: Mapping[bytes, bytes]) -> None:
        """Begin a part with these headers, whose names are in lower case."""

    @abstractmethod
    def write(self, data: bytes) -> None:
        """Take the next bytes of the part."""

    @abstractmethod
    def end(self) -> None:
        """End the part."""

    def _on_begin(self) -> None:
        self._count += 1
        if self._count > self._most:
            raise PayloadTooLargeError(
                f"expected at most {self._most} files in one request, got more; send several"
            )
        self._headers = {}

    def _add(self, place: int, data: bytes) -> None:
        self._header[place] += data

    def _on_header(self) -> None:
        name, value = self._header
        self._headers[name.lower()] = value
        self._header = [b"", b""]

    def _on_end(self) -> None:
        self._is_over = True

    def _malformed(self) -> InvalidRequestError:
        return InvalidRequestError(f"expected {self._kind_of_body}, got something else")
