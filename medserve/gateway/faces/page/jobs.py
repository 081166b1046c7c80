"""What visitors sent and what was answered: one private folder per job, for a limited time.

A job is known by an unguessable id and belongs to the session that made it; to everybody else it
does not exist. Files lie in the job's folder (mode 700) under their number, never under the name
that a visitor's machine gave them. The index lives in memory: when the process ends, so do the
jobs, and folders of a killed process are taken away by the next one.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import logging
import os
import secrets
import shutil
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from medserve.errors import (
    ConfigError,
    InvalidRequestError,
    MedserveError,
    PayloadTooLargeError,
)
from medserve.gateway.core.admission import ByteBudget, CallPlaces
from medserve.spec.values import ValueSpec
from medserve.tasks.classification import Classification
from medserve.tasks.regression import Regression
from medserve.tasks.result import Provenance

__all__ = [
    "Item",
    "Job",
    "Jobs",
    "Kind",
    "PageLimits",
    "QuotaError",
    "Slots",
    "Status",
    "UnknownJobError",
    "drop_file",
    "whole_file",
]

# The file itself is at fault; any other error says nothing about the file.
_OF_THE_FILE = (InvalidRequestError, PayloadTooLargeError)

_DECODED_AT_ONCE = 2  # volumes
# What one file takes in memory, and each class of its answer beside the letters of its name.
_ITEM_BYTES = 1024
_CLASS_BYTES = 96
_VALUE_BYTES = 512  # with the longest texts that a specification has
_GONE = "gone-"  # begins the name of a folder that is being removed

logger = logging.getLogger(__name__)


class UnknownJobError(MedserveError):
    """No such job, or none of this visitor: the two cannot be told apart from outside."""

    code = "UNKNOWN_JOB"
    grpc_status = "NOT_FOUND"
    http_status = 404


class QuotaError(MedserveError):
    """The visitor, or all of them together, stored as much as the page takes."""

    code = "QUOTA"
    grpc_status = "RESOURCE_EXHAUSTED"
    http_status = 429


@dataclass(frozen=True)
class PageLimits:
    """Sizes and times; what a visitor sends stays on disk no longer than `retention_s`."""

    retention_s: float = 3600.0  # after the last time that its owner touched a job
    upload_bytes: int = 63 * 2**20  # at once; below the largest message of the gateway
    pack_files: int = 64  # files in one upload of a classification
    series_files: int = 4000  # slices of one DICOM series
    job_files: int = 10_000
    job_bytes: int = 2 * 2**30
    visitor_bytes: int = 4 * 2**30
    total_bytes: int = 16 * 2**30
    index_bytes: int = 128 * 2**20  # of memory, for what is known of all files; half by holder
    visitor_jobs: int = 100
    holder_jobs: int = 500  # of all sessions behind one token or address
    total_jobs: int = 5000
    upload_s: float = 600.0  # one upload from its first to its last byte
    silence_s: float = 30.0  # between two pieces of an upload
    answer_s: float = 300.0  # one call of a model
    calls_in_flight: int = 8  # of the whole page; one visitor has at most half of them
    uploads_in_flight: int = 32

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value <= 0:
                raise ConfigError(f"PageLimits.{name}: expected more than 0, got {value}")


class Kind(enum.StrEnum):
    """What a job is for."""

    CLASSIFY = "classify"
    SEGMENT = "segment"


class Status(enum.StrEnum):
    """What became of one file."""

    OK = "ok"
    REVIEW = "review"  # unsure: a person should look
    UNLIKE = "unlike"  # unlike the training data: its class means little
    ERROR = "error"  # the file is at fault
    FAILED = "failed"  # the service is at fault: worth another try
    WAITING = "waiting"  # stored, not answered yet
    MISSING = "missing"  # announced, and has not arrived


@dataclass
class Item:
    """One file of a job; its bytes lie in the job's folder under `number`."""

    number: int
    name: str  # as the browser gave it: for people's eyes only, never a path
    size_bytes: int
    sha256: str | None  # None: it has not arrived
    outcome: Classification | Regression | MedserveError | None = None
    provenance: Provenance | None = None
    correction: str | None = None  # the class, or labels as one text, that a person chose instead
    corrected_by: str = ""  # name of their token; empty where nobody has to say
    corrected_at: str = ""  # time in UTC
    modified_s: int | None = None  # when the file was last changed, in seconds since 1970

    @property
    def status(self) -> Status:
        """What became of the file, whatever a person made of it."""
        outcome = self.outcome
        if self.sha256 is None:
            return Status.MISSING
        if outcome is None:
            return Status.WAITING
        if isinstance(outcome, _OF_THE_FILE):
            return Status.ERROR
        if isinstance(outcome, MedserveError):
            return Status.FAILED
        if isinstance(outcome, Classification) and outcome.unlike_training:
            return Status.UNLIKE
        return Status.REVIEW if outcome.review else Status.OK

    @property
    def answered(self) -> bool:
        """Return whether the service has said what it makes of the file."""
        return self.status not in (Status.MISSING, Status.WAITING, Status.FAILED)

    def described(self) -> dict[str, Any]:
        """Return the file as the page shows it."""
        outcome = self.outcome
        content: dict[str, Any] = {
            "number": self.number,
            "name": self.name,
            "size": self.size_bytes,
            "sha256": self.sha256,
            "modified": self.modified_s,
            "status": self.status,
            "correction": self.correction,
        }
        if isinstance(outcome, Classification):
            if outcome.present is None:
                content |= {
                    "label": outcome.label,
                    "label_id": outcome.label_id,
                    "probability": outcome.probability,
                }
            else:
                content["present"] = list(outcome.present)
            content["probabilities"] = list(outcome.probabilities)
            if outcome.novelty is not None:
                content["novelty"] = outcome.novelty
        elif isinstance(outcome, Regression):
            content["values"] = [each.to_json() | {"shown": each.shown} for each in outcome.values]
        elif isinstance(outcome, MedserveError):
            content["error"] = {"code": outcome.code, "message": outcome.message}
        return content


@dataclass
class Job:
    """One visitor's files and their answers."""

    id: str
    kind: Kind
    owner: str
    folder: Path
    model: str
    version: str
    labels: tuple[str, ...]
    touched: float
    independent: bool = False  # whether a file has none, one or several of the labels
    values: tuple[ValueSpec, ...] = ()  # the numbers that the model tells, in the place of labels
    holder: str = ""  # by what its visitor is counted: name behind the token, else the address
    items: dict[int, Item] = field(default_factory=dict)
    missing: dict[int, Item] = field(default_factory=dict)  # announced, and have not arrived
    size_bytes: int = 0
    answers: dict[str, Any] = field(default_factory=dict)  # of a segmentation
    sources: dict[str, Path] = field(default_factory=dict)  # of which the answers are
    options: dict[str, Any] = field(default_factory=dict)  # that it was made with
    index_bytes: int = 0  # of memory, for what is known of its files
    users: int = 0  # uploads and calls under way: while there are any, it is not swept
    counting: threading.Lock = field(default_factory=threading.Lock, repr=False)  # of size_bytes

    def count(self, size_bytes: int) -> None:
        """Count bytes that its folder holds more, or fewer; threads that write files do, too."""
        with self.counting:
            self.size_bytes += size_bytes

    @property
    def numbers(self) -> Set[int]:
        """Of every file that was announced or has arrived."""
        return self.items.keys() | self.missing.keys()

    def memory_of(self, names: Iterable[str]) -> int:
        """Return the bytes that files of these names take in the index once they are answered."""
        each = _ITEM_BYTES + sum(_CLASS_BYTES + len(label) for label in self.labels)
        each += len(self.values) * _VALUE_BYTES
        return sum(each + sys.getsizeof(name) for name in names)

    @property
    def case(self) -> str:
        """How a person calls what was sent: its folder, else its first file; empty before."""
        names = [item.name for item in self.files]
        folders = {name.partition("/")[0] for name in names if "/" in name}
        return min(folders) if len(folders) == 1 and len(names) > 1 else next(iter(names), "")

    def path(self, item: Item) -> Path:
        """Where the bytes of a file lie."""
        return self.folder / f"{item.number:06d}"

    @property
    def files(self) -> list[Item]:
        """Every file that was announced or has arrived, by number."""
        return [each for _, each in sorted((self.missing | self.items).items())]

    @property
    def unanswered(self) -> list[Item]:
        """The files that are missing, wait, or failed through no fault of their own."""
        return [item for item in self.files if not item.answered]

    def item(self, number: int) -> Item:
        """A file by its number; UnknownJobError where there is none."""
        try:
            return self.items[number]
        except KeyError:
            raise UnknownJobError("expected a file of this job, got another number") from None


class Jobs:
    """All jobs of this process, within the limits.

    Args:
        folder: A private folder for this process alone.
        limits: Quotas and retention.
        clock: Seconds that only ever grow.
    """

    def __init__(
        self, folder: Path, limits: PageLimits, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._folder = folder
        self._limits = limits
        self._clock = clock
        self._jobs: dict[str, Job] = {}
        self._left: set[Path] = set()  # folders of forgotten jobs that could not be removed

    def create(
        self,
        kind: Kind,
        owner: str,
        model: str,
        version: str,
        labels: tuple[str, ...],
        holder: str = "",
        independent: bool = False,
        values: tuple[ValueSpec, ...] = (),
    ) -> Job:
        """A new, empty job; QuotaError where its visitor, or all of them, have too many."""
        limits, jobs = self._limits, list(self._jobs.values())
        for limit, found in (
            (limits.visitor_jobs, [job for job in jobs if job.owner == owner]),
            (limits.holder_jobs, [job for job in jobs if job.holder == holder]),
            (limits.total_jobs, jobs),
        ):
            if len(found) >= limit:
                idle = [job for job in found if not job.users and not job.items]
                if not idle:
                    raise QuotaError(
                        f"expected at most {limit} jobs at a time; delete one that is no longer "
                        "needed"
                    )
                self.delete(idle[0])
                break
        name = secrets.token_urlsafe(24)
        folder = self._folder / name
        folder.mkdir(mode=0o700)
        job = Job(
            *(name, kind, owner, folder, model, version, labels, self._clock()),
            *(independent, values, holder),
        )
        self._jobs[name] = job
        return job

    def copy_files(self, source: Job, target: Job) -> None:
        """Give a job the files of another one, without their answers; they lie on disk once.

        Raises:
            QuotaError: Both together are more than the page takes.
        """
        size_bytes = sum(item.size_bytes for item in source.items.values())
        self.reserve(target, size_bytes, (item.name for item in source.files))
        for number, item in source.items.items():
            os.link(source.path(item), target.path(item))
            target.items[number] = Item(
                number, item.name, item.size_bytes, item.sha256, modified_s=item.modified_s
            )
        target.missing.update(source.missing)

    def get(self, name: str, owner: str | None, kind: Kind | None = None) -> Job:
        """The job of that id; UnknownJobError unless it is there and belongs to `owner`."""
        job = self._jobs.get(name)
        if job is None or job.owner != owner or kind not in (None, job.kind):
            raise UnknownJobError("no such job; it may have been deleted or its time has passed")
        job.touched = self._clock()
        return job

    def owned(self, owner: str | None) -> list[Job]:
        """The jobs of one session, newest first."""
        mine = [job for job in self._jobs.values() if owner is not None and job.owner == owner]
        return sorted(mine, key=lambda job: -job.touched)

    def left_s(self, job: Job) -> float:
        """Seconds until the job is deleted, unless it is touched again."""
        return max(0.0, job.touched + self._limits.retention_s - self._clock())

    def reserve(self, job: Job, size_bytes: int, names: Iterable[str] = ()) -> None:
        """Count bytes before they are stored, and names of files; QuotaError where too many.

        What is made of a job's files has a size once it is made, and is counted then: who is about
        to make more reserves nothing, and is refused once the bound is passed.
        """
        limits, jobs, memory = self._limits, self._jobs.values(), job.memory_of(names)
        visitor = sum(other.size_bytes for other in jobs if other.owner == job.owner)
        holder = sum(other.index_bytes for other in jobs if other.holder == job.holder)
        index = sum(other.index_bytes for other in jobs)
        for limit, needed, whose in (
            (limits.job_bytes, job.size_bytes + size_bytes, "bytes of one job"),
            (limits.visitor_bytes, visitor + size_bytes, "bytes of one visitor"),
            (limits.total_bytes, self.size_bytes + size_bytes, "bytes of all visitors together"),
            (limits.index_bytes // 2, holder + memory, "bytes of one visitor's names of files"),
            (limits.index_bytes, index + memory, "bytes of all names of files together"),
        ):
            if needed > limit:
                raise QuotaError(
                    f"expected at most {limit} {whose} at a time; delete results that are "
                    "no longer needed, or wait until their time has passed"
                )
        job.count(size_bytes)
        job.index_bytes += memory

    @property
    def size_bytes(self) -> int:
        """Bytes of all jobs."""
        return sum(job.size_bytes for job in self._jobs.values())

    def delete(self, job: Job) -> None:
        """Remove a job and all that its owner sent."""
        self._jobs.pop(job.id, None)
        self._remove(job.folder)

    def sweep(self) -> int:
        """Delete every job whose time has passed; how many there were."""
        return self.remove(self.over())

    def over(self) -> list[Job]:
        """Forget every job whose time has passed, and return them; their files are there still."""
        over = [job for job in self._jobs.values() if not job.users and not self.left_s(job)]
        for job in over:
            del self._jobs[job.id]
        return over

    def remove(self, over: Sequence[Job]) -> int:
        """Remove the files of forgotten jobs, and what earlier attempts left; how many jobs.

        It touches no index, so it may run in a thread.

        Raises:
            OSError: a folder cannot be removed; the others are, and it is tried again next time.
        """
        failed = None
        gone = self._folder.glob(f"{_GONE}*")
        for folder in {*(job.folder for job in over), *self._left, *gone}:
            try:
                self._remove(folder)
            except OSError as error:
                failed = error
        if failed is not None:
            raise failed
        if over:
            logger.info("deleted %d jobs after their retention time", len(over))
        return len(over)

    def _remove(self, folder: Path) -> None:
        self._left.add(folder)
        _remove(folder)
        self._left.discard(folder)


@contextlib.contextmanager
def whole_file(job: Job, name: str) -> Iterator[BinaryIO]:
    """Open a file of a job to write; it appears under its name when the block ends.

    It takes the place of another, and counts among the bytes of the job. Whoever reads the name at
    the same time gets all of one file.
    """
    path, part = job.folder / name, job.folder / f"part-{secrets.token_hex(8)}"
    try:
        with part.open("xb") as file:
            yield file
        with job.counting:
            grown = _size(part) - _size(path)
            part.rename(path)
            job.size_bytes += grown
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def drop_file(job: Job, name: str) -> None:
    """Delete a file that was made for a job, if it is there."""
    path = job.folder / name
    with job.counting:
        dropped = _size(path)
        path.unlink(missing_ok=True)
        job.size_bytes -= dropped


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _remove(folder: Path) -> None:
    """Remove a folder into which somebody may write at this moment."""
    gone = folder if folder.name.startswith(_GONE) else folder.with_name(_GONE + folder.name)
    with contextlib.suppress(FileNotFoundError):
        folder.rename(gone)  # from now on nothing new can come into it
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(gone)


class Slots:
    """Places for uploads and for calls of models, of all visitors together.

    Attributes:
        decoding: Held while a volume that a visitor sent is decoded outside a call; who holds it
            waits for nothing else.
    """

    def __init__(self, limits: PageLimits) -> None:
        self._uploads = CallPlaces(limits.uploads_in_flight, max(1, limits.uploads_in_flight // 2))
        self._calls = ByteBudget(limits.calls_in_flight)
        self.decoding = asyncio.Semaphore(_DECODED_AT_ONCE)

    @contextlib.asynccontextmanager
    async def upload(self, job: Job) -> AsyncIterator[None]:
        """A place for an upload; ServerBusyError where all, or the holder's half, are taken."""
        with self._uploads.place(job.holder):
            job.users += 1
            try:
                yield
            finally:
                job.users -= 1

    @contextlib.asynccontextmanager
    async def call(self, job: Job) -> AsyncIterator[None]:
        """A place for a call; waits for one, and lets others pass while the holder has half."""
        job.users += 1
        try:
            async with self._calls.reserve(1, job.holder):
                yield
        finally:
            job.users -= 1
