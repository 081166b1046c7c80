r"""Receiving files: a pack is one line of JSON that lists them, then their bytes in that order.

    [{"number": 0, "name": "hand.png", "size": 1628}, …]\n<1628 bytes>…

A browser builds it from its files without reading them (`new Blob([line, ...files])`); it is
checked against the limits before and while it arrives, and no part of it is held in memory.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import json
import secrets
import shutil
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path

from starlette.requests import ClientDisconnect, Request

from medserve.errors import InvalidRequestError, MedserveError, PayloadTooLargeError
from medserve.gateway.faces.page.jobs import (
    Item,
    Job,
    Jobs,
    PageLimits,
    QuotaError,
    UnknownJobError,
)

__all__ = ["CONTENT_TYPE", "Allowance", "announce", "receive"]

CONTENT_TYPE = "application/vnd.medserve.pack"
_HEADER_BYTES = 2**20
_NAME_LETTERS = 1024


class SlowUploadError(MedserveError):
    """An upload went silent or took too long."""

    code = "SLOW_UPLOAD"
    grpc_status = "DEADLINE_EXCEEDED"
    http_status = 408


@dataclass(frozen=True)
class Allowance:
    """What one upload may carry."""

    files: int
    bytes: int


@dataclass(frozen=True)
class _Entry:
    number: int
    name: str
    size: int
    modified_s: int | None

    def item(self, sha256: str | None) -> Item:
        """Return the file that the list announces; None stands for bytes that are not there."""
        return Item(self.number, self.name, self.size, sha256, modified_s=self.modified_s)


async def receive(
    request: Request, job: Job, jobs: Jobs, limits: PageLimits, allowance: Allowance
) -> list[Item]:
    """Store the files of one upload; all of them or, where anything is wrong, none.

    A number that is there already is not stored again: an upload may be repeated.

    Raises:
        InvalidRequestError: no pack, or not the bytes that its first line promises.
        PayloadTooLargeError: too many files, or one that is too large.
        QuotaError: no room for them.
        SlowUploadError: the sender went silent.
    """
    if request.headers.get("content-type") != CONTENT_TYPE:
        raise InvalidRequestError(f"expected an upload as {CONTENT_TYPE}, got another content type")
    try:
        async with asyncio.timeout(limits.upload_s), aclosing(_pieces(request, limits)) as pieces:
            return await _store(_Body(pieces), job, jobs, limits, allowance)
    except TimeoutError:
        raise SlowUploadError(
            f"expected an upload within {limits.upload_s:g} s and no pause above "
            f"{limits.silence_s:g} s; check the network and send it again"
        ) from None
    except ClientDisconnect:
        raise InvalidRequestError("the sender hung up before the upload was complete") from None


async def _pieces(request: Request, limits: PageLimits) -> AsyncGenerator[bytes, None]:
    async with aclosing(request.stream()) as stream:
        while True:
            try:
                async with asyncio.timeout(limits.silence_s):
                    piece = await anext(stream)
            except StopAsyncIteration:
                return
            yield piece


class _Body:
    """The bytes of a request, taken line by line or by count."""

    def __init__(self, pieces: AsyncIterator[bytes]) -> None:
        self._pieces = pieces
        self._rest = b""

    async def line(self) -> bytes:
        """Up to the first line feed."""
        while b"\n" not in self._rest:
            piece = await self._next()
            if not piece or len(self._rest) > _HEADER_BYTES:
                raise InvalidRequestError("expected a list of files in the first line, got none")
            self._rest += piece
        line, _, self._rest = self._rest.partition(b"\n")
        return line

    async def take(self, count: int) -> AsyncGenerator[bytes, None]:
        """Exactly `count` bytes, in pieces."""
        while count:
            piece = self._rest or await self._next()
            if not piece:
                raise InvalidRequestError("expected as many bytes as the list says, got fewer")
            now, self._rest = piece[:count], piece[count:]
            count -= len(now)
            yield now

    async def end(self) -> None:
        """Nothing may follow."""
        if self._rest or await self._next():
            raise InvalidRequestError("expected as many bytes as the list says, got more")

    async def _next(self) -> bytes:
        """The next piece; empty at the end."""
        async for piece in self._pieces:
            if piece:
                return piece
        return b""


async def _store(
    body: _Body, job: Job, jobs: Jobs, limits: PageLimits, allowance: Allowance
) -> list[Item]:
    entries = _entries(await body.line(), allowance)
    fresh = {entry.number: entry.size for entry in entries if entry.number not in job.items}
    if len(job.items) + len(fresh) > limits.job_files:
        raise QuotaError(f"expected at most {limits.job_files} files in one job; start another")
    known = job.numbers
    noted = {each.number: each.name for each in entries if each.number not in known}
    jobs.reserve(job, sum(fresh.values()), noted.values())
    parts = job.folder / f"part-{secrets.token_hex(8)}"  # nobody else writes there
    try:
        parts.mkdir(mode=0o700)
        arrived = [await _store_one(body, parts, entry) for entry in entries]
        await body.end()
        for item in arrived:
            if item.number in job.items:
                continue  # the same upload, sent twice at a time
            (parts / str(item.number)).rename(job.path(item))
            job.items[item.number] = item
            del fresh[item.number]
            if job.missing.pop(item.number, None) is None:
                del noted[item.number]
    except BaseException as error:
        if isinstance(error, FileNotFoundError):
            raise UnknownJobError("the job was deleted while files arrived") from None
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise QuotaError("the server has no room for these files; try again later") from None
        raise
    finally:  # what is left did not arrive, or was counted for another upload
        job.count(-sum(fresh.values()))
        job.index_bytes -= job.memory_of(noted.values())
        shutil.rmtree(parts, ignore_errors=True)
    return [job.items[item.number] for item in arrived]


async def _store_one(body: _Body, folder: Path, entry: _Entry) -> Item:
    digest = hashlib.sha256()
    with (folder / str(entry.number)).open("wb") as file:  # the page cache takes it: no thread
        async with aclosing(body.take(entry.size)) as pieces:
            async for piece in pieces:
                digest.update(piece)
                file.write(piece)
    return entry.item(digest.hexdigest())


def announce(job: Job, jobs: Jobs, limits: PageLimits, listed: object) -> None:
    """Note the files that a visitor is about to send, so that a job knows what is missing.

    Raises:
        InvalidRequestError: No list of number, name and size.
        QuotaError: More files than one job takes, or no room for their names.
    """
    entries = _listed(listed)
    known = job.numbers
    fresh = {each.number: each.item(None) for each in entries if each.number not in known}
    if len(known) + len(fresh) > limits.job_files:
        raise QuotaError(f"expected at most {limits.job_files} files in one job; start another")
    jobs.reserve(job, 0, (item.name for item in fresh.values()))
    job.missing.update(fresh)


def _entries(line: bytes, allowance: Allowance) -> list[_Entry]:
    try:
        listed = json.loads(line)
    except (ValueError, RecursionError):
        listed = None
    entries = _listed(listed)
    if not entries or len({entry.number for entry in entries}) != len(entries):
        raise InvalidRequestError("expected different numbers, one for each file")
    if len(entries) > allowance.files:
        raise PayloadTooLargeError(
            f"expected at most {allowance.files} files in one upload, got {len(entries)}"
        )
    if (size := sum(entry.size for entry in entries)) > allowance.bytes:
        raise PayloadTooLargeError(f"expected at most {allowance.bytes} bytes at once, got {size}")
    return entries


def _listed(content: object) -> list[_Entry]:
    try:
        if not isinstance(content, list):
            raise TypeError
        return [_entry(each) for each in content]
    except (ValueError, TypeError, KeyError):
        raise InvalidRequestError(
            "expected a JSON list of number, name and size, got something else"
        ) from None


def _entry(content: object) -> _Entry:
    if not isinstance(content, dict):
        raise TypeError
    number, name, size = content["number"], content["name"], content["size"]
    if not (type(number) is int and type(size) is int and isinstance(name, str)):
        raise TypeError
    modified_s = content.get("modified")
    if modified_s is not None and type(modified_s) is not int:
        raise TypeError
    if not (0 <= number < 10**6 and 0 <= size < 2**63 and abs(modified_s or 0) < 2**63):
        raise ValueError
    readable = name[:_NAME_LETTERS].encode("utf-8", "replace").decode()  # no lone surrogates
    return _Entry(number, readable, size, modified_s)
