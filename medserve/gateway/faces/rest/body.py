"""Bodies of HTTP requests, read piece by piece within limits; nothing of them touches a disk."""

from __future__ import annotations

import asyncio
import dataclasses
import re
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Mapping, Sequence
from dataclasses import dataclass

from python_multipart.multipart import parse_options_header
from starlette.requests import ClientDisconnect, Request

from medserve.errors import DeadlineError, InvalidRequestError, PayloadTooLargeError
from medserve.gateway.faces.rest.multipart import MultipartBody
from medserve.tasks.volumes import channel_keys

__all__ = [
    "FormFile",
    "RestLimits",
    "announced_bytes",
    "arriving_bytes",
    "case_files",
    "files",
    "is_form",
    "pieces",
    "whole",
]

_FORM = "multipart/form-data"
# Not a file: what a client sends that took this for a call with JSON, or `curl -d` for an upload.
_NO_FILE = ("application/json", "application/x-www-form-urlencoded", "text/", "multipart/")
_FILE_FIELDS = ("files", "file")
_UNFIT = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")  # also what turns text round
_MAX_NAME = 255
_MAX_TEXT_BYTES = 2**16
_MAX_FIELD = 40
_MAX_DIGITS = 19  # of a stated size
_ENVELOPE_BYTES = 2**16  # of a form: boundaries and the headers of one file


@dataclass(frozen=True)
class RestLimits:
    """What one HTTP request may take."""

    silence_s: float = 30.0  # between two pieces of a body
    upload_s: float = 600.0  # one body from its first to its last byte
    answer_s: float = 300.0  # for the model to answer one file, once it is there
    files: int = 10_000  # in one request to classify

    def within(self, left_s: float) -> RestLimits:
        """Return the same limits for a caller who waits no longer than `left_s`."""
        return dataclasses.replace(self, upload_s=min(self.upload_s, left_s))


@dataclass(frozen=True)
class FormFile:
    """One file of a form.

    Attributes:
        name: What its sender calls it: text to show, never a path.
        field: The name of its field.
    """

    name: str
    field: str
    content: bytes = dataclasses.field(repr=False)


async def whole(request: Request, limit: int, times: RestLimits) -> bytes:
    """The body as one; refuses more than `limit` bytes, announced or while they come."""
    if (announced_bytes(request) or 0) > limit:
        raise _too_large(limit)
    body = bytearray()
    async for piece in pieces(request, times):
        body += piece
        if len(body) > limit:
            raise _too_large(limit)
    return bytes(body)


async def case_files(
    request: Request, limit: int, times: RestLimits, channels: Sequence[str] = ()
) -> dict[str, bytes]:
    """Return the files of one case by their keys in a call.

    They come as one file, which is the body or stands in a form; of a model that sees several
    images also as a file for each, in fields `data.NAME` or named `…_0000`, `…_0001`.

    Args:
        request: With the file or files.
        limit: Bytes of all of them.
        times: Times of one upload.
        channels: Names of the images that make one case; empty where a single file is one.
    """
    if not is_form(request):
        found = {"data": await whole(request, limit, times)}
    else:
        names = [f"data.{name}" for name in channels]
        source = files(request, limit, times, most=max(1, len(channels)), named=names)
        sent = [each async for each in source]
        if sum(len(each.content) for each in sent) > limit:
            raise _too_large(limit)
        found = _by_key(sent, names)
    if not found or not all(found.values()):
        raise InvalidRequestError("expected the bytes of a file, got none")
    return found


def _by_key(sent: Sequence[FormFile], names: Collection[str]) -> dict[str, bytes]:
    in_fields = [each for each in sent if each.field in names]
    if not in_fields:
        keys = channel_keys([each.name for each in sent]) if sent else []
    elif len(in_fields) < len(sent) or len({each.field for each in sent}) < len(sent):
        raise InvalidRequestError(
            f"expected each of the fields {', '.join(names)} once, got another one or one twice"
        )
    else:
        keys = [each.field for each in sent]
    return {key: each.content for key, each in zip(keys, sent, strict=True)}


def announced_bytes(request: Request) -> int | None:
    """The size that the request states for its body; None where it states none.

    Raises:
        InvalidRequestError: it states a size and another way to tell the end of the body.
    """
    stated = request.headers.get("content-length", "")
    if stated and "transfer-encoding" in request.headers:
        raise InvalidRequestError("expected Content-Length or Transfer-Encoding, got both")
    known = stated.isascii() and stated.isdigit() and len(stated) < _MAX_DIGITS
    return int(stated) if known else None


def arriving_bytes(request: Request, limit: int, *, whole: bool = True) -> int:
    """How much memory the body of a request may take while it arrives.

    Args:
        request: With or without a stated size.
        limit: Of what is held at a time.
        whole: Whether all of the body is held, and not a part of it after the other.

    Raises:
        PayloadTooLargeError: more is announced than fits, envelope of the form included.
    """
    announced = announced_bytes(request)
    if announced is None:
        return limit
    if whole and announced > limit + (_ENVELOPE_BYTES if is_form(request) else 0):
        raise _too_large(limit)
    return min(announced, limit)


def is_form(request: Request) -> bool:
    """Whether the files come in a form; InvalidRequestError where the body is no file at all."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == _FORM:
        return True
    if kind.startswith(_NO_FILE):
        raise InvalidRequestError(
            "expected a file as application/octet-stream, or files as multipart/form-data, got "
            "another content type"
        )
    return False


async def files(
    request: Request,
    limit: int,
    times: RestLimits,
    most: int = 0,
    named: Collection[str] = (),
    texts: dict[str, str] | None = None,
) -> AsyncGenerator[FormFile, None]:
    """The files of a form, each as soon as it is there.

    Args:
        request: A form; see `is_form`.
        limit: Bytes of one file.
        times: Times, and the number of files where `most` does not give it.
        most: The number of parts.
        named: Fields that may hold a file beside `file` and `files`.
        texts: Fields that may come beside the files; their values are written into it.
    """
    _, options = parse_options_header(request.headers["content-type"])
    boundary = options.get(b"boundary", b"")
    if not boundary:
        raise InvalidRequestError("expected a boundary in the content type of the form, got none")
    form = _Form(boundary, limit, most or times.files, named, texts or {})
    async for piece in pieces(request, times):
        form.feed(piece)
        while form.complete:
            yield form.complete.popleft()
    form.finish()


async def pieces(request: Request, times: RestLimits) -> AsyncIterator[bytes]:
    """The body as it comes, from a sender who keeps sending."""
    end = time.monotonic() + times.upload_s
    source = aiter(request.stream())
    while True:
        left_s = min(times.silence_s, end - time.monotonic())
        try:
            async with asyncio.timeout(left_s):
                piece = await anext(source, None)
        except TimeoutError:
            raise DeadlineError(
                f"expected the next bytes within {times.silence_s:g} s and all within "
                f"{times.upload_s:g} s, got too few; send less at once"
            ) from None
        except ClientDisconnect:
            raise InvalidRequestError("expected the whole body, got a part of it") from None
        if piece is None:
            return
        yield piece


class _Form(MultipartBody):
    """A form while it comes in; holds one unfinished file. Whole files are in `complete`."""

    def __init__(
        self,
        boundary: bytes,
        limit: int,
        most: int,
        named: Collection[str],
        texts: dict[str, str],
    ) -> None:
        self.complete: deque[FormFile] = deque()
        self._limit, self._texts = limit, texts
        self._fields = {each.encode(): each for each in (*_FILE_FIELDS, *named)}
        self._text = ""  # the field of the part, where it is none of a file
        self._name = self._field = ""
        self._content = bytearray()
        super().__init__(boundary, most, "a form as multipart/form-data")

    def begin(self, headers: Mapping[bytes, bytes]) -> None:
        """Begin a file, or a text that may stand beside the files."""
        self._content = bytearray()
        _, options = parse_options_header(headers.get(b"content-disposition", b""))
        field_name = options.get(b"name", b"")
        text = field_name.decode("latin-1")
        self._text = text if text in self._texts and b"filename" not in options else ""
        if self._text:
            return
        if field_name not in self._fields:
            names = [each for each in self._fields.values() if each not in _FILE_FIELDS]
            raise InvalidRequestError(
                "expected only files in the form, each in a field named "
                f"{' or '.join(['files', *names])}; got a field named "
                f"{_shown(field_name)[:_MAX_FIELD]!r}; options are parameters of the address"
            )
        self._field = self._fields[field_name]
        if b"filename" not in options:
            raise InvalidRequestError(
                f"expected a file in the field {self._field}, got a text; send it with a "
                f"file name, as `curl -F {self._field}=@PATH` does"
            )
        self._name = _shown(options[b"filename"])

    def write(self, data: bytes) -> None:
        """Take more of it, up to the limit."""
        self._content += data
        limit = min(self._limit, _MAX_TEXT_BYTES) if self._text else self._limit
        if len(self._content) > limit:
            raise _too_large(limit)

    def end(self) -> None:
        """Give the file or the text to whoever reads the form."""
        if self._text:
            self._texts[self._text] = self._content.decode("utf-8", "replace")
        else:
            self.complete.append(FormFile(self._name, self._field, bytes(self._content)))
        self._content = bytearray()


def _shown(name: bytes) -> str:
    """What a sender calls a file, fit to be shown: its last part, without control characters."""
    text = name.decode("utf-8", "replace").replace("\\", "/").rpartition("/")[2]
    return _UNFIT.sub("", text)[:_MAX_NAME]


def _too_large(limit: int) -> PayloadTooLargeError:
    return PayloadTooLargeError(
        f"expected a file of at most {limit} bytes, got more; send a smaller one"
    )
