"""Objects in a body of multipart/related (PS3.18 8.6.1.2), on their way to the disk and from it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path

from pydicom.filereader import read_file_meta_info
from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError

from medserve.dicom.intake import IncomingFile
from medserve.errors import InvalidRequestError, MedserveError, PayloadTooLargeError

__all__ = ["DICOM", "Parts", "UnsupportedMediaError", "as_parts", "syntax_of"]

DICOM = "application/dicom"
_MOST_PARTS = 100_000
_BLOCK_BYTES = 2**18


class UnsupportedMediaError(MedserveError):
    """The body is not of a kind that is stored."""

    code = "UNSUPPORTED_MEDIA_TYPE"
    grpc_status = "INVALID_ARGUMENT"
    http_status = 415


class Parts:
    """A body as it comes in: each part becomes a file, and nothing of it stays in memory.

    Args:
        boundary: Of the body's content type.
        folder: Where the files are written.
    """

    def __init__(self, boundary: bytes, folder: Path) -> None:
        self.complete: deque[IncomingFile] = deque()
        self._folder, self._count = folder, 0
        self._file: IncomingFile | None = None
        self._header = [b"", b""]  # name and value; the parser bounds their length
        self._kind = b""
        self._is_over = False
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._begin,
                    "on_header_field": lambda data, start, end: self._add(0, data[start:end]),
                    "on_header_value": lambda data, start, end: self._add(1, data[start:end]),
                    "on_header_end": self._end_header,
                    "on_headers_finished": self._open,
                    "on_part_data": self._write,
                    "on_part_end": self._end_part,
                    "on_end": self._end,
                },
            )
        except FormParserError:
            raise _malformed() from None

    def feed(self, piece: bytes) -> None:
        """Take the next bytes of the body; whole parts are in `complete` afterwards.

        Raises:
            UnsupportedMediaError: a part is no DICOM object by its own content type.
            PayloadTooLargeError: there are too many parts.
            InvalidRequestError: the body is malformed.
        """
        try:
            self._parser.write(piece)
        except FormParserError:
            raise _malformed() from None

    def finish(self) -> None:
        """Refuse a body that ends before its last boundary."""
        if not self._is_over:
            raise InvalidRequestError(
                "expected a body up to its last boundary, got a part of it; send it again"
            )

    def refuse(self, error: OSError) -> None:
        """Keep no more of the part that is coming in."""
        if self._file is not None:
            self._file.fail(error)

    def close(self) -> None:
        """Delete what is not complete, or was not taken."""
        for file in (*self.complete, *([] if self._file is None else [self._file])):
            file.close()

    def _begin(self) -> None:
        self._count += 1
        if self._count > _MOST_PARTS:
            raise PayloadTooLargeError(
                f"expected at most {_MOST_PARTS} parts in one request, got more; send several"
            )
        self._kind = b""

    def _add(self, place: int, data: bytes) -> None:
        self._header[place] += data

    def _end_header(self) -> None:
        if self._header[0].lower() == b"content-type":
            self._kind = self._header[1].partition(b";")[0].strip().lower()
        self._header = [b"", b""]

    def _open(self) -> None:
        if self._kind != DICOM.encode():
            raise UnsupportedMediaError(
                f"expected parts of {DICOM}, got one of another content type"
            )
        self._file = IncomingFile(self._folder)

    def _write(self, data: bytes, start: int, end: int) -> None:
        assert self._file is not None  # headers come before data
        self._file.write(data[start:end])

    def _end_part(self) -> None:
        if self._file is not None:
            self.complete.append(self._file)
            self._file = None

    def _end(self) -> None:
        self._is_over = True


def as_parts(paths: Sequence[Path], boundary: str) -> Iterator[bytes]:
    """Yield the objects as they are stored, each as a part of the body.

    An object that is deleted meanwhile breaks the body off, so that nobody takes it for whole.
    """
    for path in paths:
        with path.open("rb") as file:
            head = f"--{boundary}\r\nContent-Type: {DICOM}; transfer-syntax={syntax_of(path)}"
            yield f"{head}\r\n\r\n".encode()
            while block := file.read(_BLOCK_BYTES):
                yield block
        yield b"\r\n"
    yield f"--{boundary}--\r\n".encode()


def syntax_of(path: Path) -> str:
    """Return the transfer syntax of a stored object."""
    return str(read_file_meta_info(path).get("TransferSyntaxUID", ""))


def _malformed() -> InvalidRequestError:
    return InvalidRequestError("expected a body of multipart/related with its parts, got another")
