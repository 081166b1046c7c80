"""Objects in a body of multipart/related (PS3.18 8.6.1.2), on their way to the disk and from it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from pydicom.filereader import read_file_meta_info

from medserve.dicom.intake import IncomingFile
from medserve.errors import MedserveError
from medserve.gateway.faces.rest.multipart import MultipartBody

__all__ = ["DICOM", "Parts", "UnsupportedMediaError", "as_parts", "syntax_of"]

DICOM = "application/dicom"
_MOST_PARTS = 100_000
_BLOCK_BYTES = 2**18


class UnsupportedMediaError(MedserveError):
    """The body is not of a kind that is stored."""

    code = "UNSUPPORTED_MEDIA_TYPE"
    grpc_status = "INVALID_ARGUMENT"
    http_status = 415


class Parts(MultipartBody):
    """A body as it comes in: each part becomes a file, and nothing of it stays in memory.

    Whole parts are in `complete`. A part that is no DICOM object by its own content type is an
    UnsupportedMediaError.

    Args:
        boundary: Of the body's content type.
        folder: Where the files are written.
    """

    def __init__(self, boundary: bytes, folder: Path) -> None:
        self.complete: deque[IncomingFile] = deque()
        self._folder = folder
        self._file: IncomingFile | None = None
        super().__init__(boundary, _MOST_PARTS, "a body of multipart/related with its parts")

    def refuse(self, error: OSError) -> None:
        """Keep no more of the part that is coming in."""
        if self._file is not None:
            self._file.fail(error)

    def close(self) -> None:
        """Delete what is not complete, or was not taken."""
        for file in (*self.complete, *([] if self._file is None else [self._file])):
            file.close()

    def begin(self, headers: Mapping[bytes, bytes]) -> None:
        """Open the file of an object."""
        kind = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
        if kind != DICOM.encode():
            raise UnsupportedMediaError(
                f"expected parts of {DICOM}, got one of another content type"
            )
        self._file = IncomingFile(self._folder)

    def write(self, data: bytes) -> None:
        """Write to it."""
        assert self._file is not None  # headers come before data
        self._file.write(data)

    def end(self) -> None:
        """Let it be taken."""
        if self._file is not None:
            self.complete.append(self._file)
            self._file = None


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
