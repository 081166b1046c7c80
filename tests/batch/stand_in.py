"""An asker whose answers follow from the bytes, so that the right table of a batch is known."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medserve.batch.asking import Answer, Outcome, Target
from medserve.batch.inputs import Content
from medserve.batch.local import LocalRun, of_shard
from medserve.batch.receipts import BatchFolder, BatchHead
from medserve.batch.studies import Shard, list_studies
from medserve.batch.work import Answering, Became, Reading
from medserve.errors import InvalidImageError, MedserveError
from medserve.spec import Task
from medserve.tasks.result import Provenance

__all__ = ["DIGEST", "StandIn", "answer_to", "joined", "run_batch", "write_studies"]

DIGEST = "sha256:" + "1" * 64


@dataclass
class StandIn:
    """Answers every input; what begins with `broken` is refused.

    Attributes:
        asked: Every input, in the order of the questions.
        errors: The next calls fail with these; None lets a call through.
        poison: An input that fails every call in which it is.
    """

    task: Task = Task.VOLUMES
    digest: str = DIGEST
    channels: tuple[str, ...] = ()
    asked: list[bytes] = field(default_factory=list)
    errors: list[MedserveError | None] = field(default_factory=list)
    poison: tuple[bytes, MedserveError] | None = None

    @property
    def target(self) -> Target:
        """The model that it stands for."""
        return Target("stand_in", "1.0", self.digest, self.task, self.channels)

    def ask(self, inputs: Sequence[Content], params: Mapping[str, Any]) -> Sequence[Outcome]:
        """Answer from the bytes alone."""
        self.asked += map(joined, inputs)
        if self.errors and (error := self.errors.pop(0)) is not None:
            raise error
        if self.poison is not None and self.poison[0] in inputs:
            raise self.poison[1]
        return [answer_to(joined(content), self.target) for content in inputs]

    def close(self) -> None:
        """Nothing is open."""


def joined(content: Content) -> bytes:
    """Return what is sent as one piece: of several images each behind its name."""
    if isinstance(content, bytes):
        return content
    return b"; ".join(name.encode() + b": " + image for name, image in content.items())


def answer_to(content: bytes, target: Target) -> Outcome:
    if content.startswith(b"broken"):
        return InvalidImageError("expected a volume, got something else; send a volume")
    number = int(hashlib.sha256(content).hexdigest()[:4], 16) / 1000
    return Answer(
        {"volumes_ml": {"gland": number}, "review": number > 60, "doubts": []},
        {"mask.nii.gz": b"mask of " + content},
        Provenance(target.model, target.version, target.archive_digest),
    )


def write_studies(folder: Path, count: int) -> Path:
    folder.mkdir()
    for number in range(count):
        (folder / f"{number:04d}.nii.gz").write_bytes(f"study {number}".encode())
    return folder


def run_batch(
    source: Path,
    out: Path,
    asker: Any,
    shard: Shard | None = None,
    *,
    options: Mapping[str, Any] | None = None,
    patience_s: float = 0.0,
    per_call: int = 1,
) -> dict[Became, int]:
    """Run a batch as the command does, and return how many studies became what."""
    folder = BatchFolder(out)
    task = asker.target.task
    folder.open(BatchHead(model=asker.target.model, task=task))
    local = LocalRun(
        Reading(folder, asker.target, options or {}),
        Answering(folder, asker, patience_s),
        threads=2,
        per_call=per_call,
    )
    studies = of_shard(
        list_studies(source, task, channels=asker.target.channels, without=out), shard or Shard()
    )
    counts: dict[Became, int] = {}
    for each in _flat(local.run(studies)):
        counts[each] = counts.get(each, 0) + 1
    return counts


def _flat(became: Iterator[Any]) -> Iterator[Became]:
    for each in became:
        yield from each.elements()
