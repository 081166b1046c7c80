"""What visitors sent and what was answered: one private folder per job, for a limited time.

A job is known by an unguessable id and belongs to the session that made it; to everybody else it
does not exist. Files lie in the job's folder (mode 700) under their number, never under the name
that a visitor's machine gave them. The index lives in memory: when the process ends, so do the
jobs, and folders of a killed process are taken away by the next one.
"""

from __future__ import annotations

import contextlib
import enum
import logging
import secrets
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medserve.errors import MedserveError
from medserve.gateway.faces.page.limits import PageLimits
from medserve.gateway.faces.page.problems import QuotaError, UnknownJobError
from medserve.tasks.classification import Classification
from medserve.tasks.result import Provenance

__all__ = ["Item", "Job", "Jobs", "Kind", "Status"]

logger = logging.getLogger(__name__)


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


@dataclass
class Item:
    """One file of a job; its bytes lie in the job's folder under `number`."""

    number: int
    name: str  # as the browser gave it: for people's eyes only, never a path
    size_bytes: int
    sha256: str
    outcome: Classification | MedserveError | None = None
    provenance: Provenance | None = None
    correction: str | None = None  # the class that a person chose instead


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
    items: dict[int, Item] = field(default_factory=dict)
    size_bytes: int = 0
    answers: dict[str, Any] = field(default_factory=dict)  # of a segmentation
    options: dict[str, Any] = field(default_factory=dict)  # that it was made with
    users: int = 0  # uploads and calls under way: while there are any, it is not swept

    def path(self, item: Item) -> Path:
        """Where the bytes of a file lie."""
        return self.folder / f"{item.number:06d}"

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

    def create(
        self, kind: Kind, owner: str, model: str, version: str, labels: tuple[str, ...]
    ) -> Job:
        """A new, empty job; QuotaError where its owner has too many."""
        owned = [job for job in self._jobs.values() if job.owner == owner]
        if len(owned) >= self._limits.visitor_jobs:
            idle = [job for job in owned if not job.users and not job.items]
            if not idle:
                raise QuotaError(
                    f"expected at most {self._limits.visitor_jobs} jobs at a time; "
                    "delete one that is no longer needed"
                )
            self.delete(idle[0])
        name = secrets.token_urlsafe(24)
        folder = self._folder / name
        folder.mkdir(mode=0o700)
        job = Job(name, kind, owner, folder, model, version, labels, self._clock())
        self._jobs[name] = job
        return job

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

    def reserve(self, job: Job, size_bytes: int) -> None:
        """Count bytes before they are stored; QuotaError where they are too many."""
        limits = self._limits
        visitor = sum(other.size_bytes for other in self._jobs.values() if other.owner == job.owner)
        for limit, used, whose in (
            (limits.job_bytes, job.size_bytes, "one job"),
            (limits.visitor_bytes, visitor, "one visitor"),
            (limits.total_bytes, self.size_bytes, "all visitors together"),
        ):
            if used + size_bytes > limit:
                raise QuotaError(
                    f"expected at most {limit} bytes of {whose} at a time; delete results that are "
                    "no longer needed, or wait until their time has passed"
                )
        job.size_bytes += size_bytes

    def release(self, job: Job, size_bytes: int) -> None:
        """Take back what was reserved for bytes that are not stored after all."""
        job.size_bytes -= size_bytes

    @property
    def size_bytes(self) -> int:
        """Bytes of all jobs."""
        return sum(job.size_bytes for job in self._jobs.values())

    def delete(self, job: Job) -> None:
        """Remove a job and all that its owner sent."""
        self._jobs.pop(job.id, None)
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(job.folder)

    def sweep(self) -> int:
        """Delete every job whose time has passed; how many there were."""
        over = [job for job in self._jobs.values() if not job.users and not self.left_s(job)]
        for job in over:
            self.delete(job)
        if over:
            logger.info("deleted %d jobs after their retention time", len(over))
        return len(over)
