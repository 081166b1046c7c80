"""Runs a batch on a Ray cluster: Ray Data lists, reads, holds back and spreads; actors answer.

Every machine sees the batch, the archive and OUT under the same paths, and has medserve with the
extras `serve` and `ray`. Listing and reading are tasks, whose studies wait in Ray's object store
until an actor is free; an actor holds the archive in one worker process. Receipts are those of
every other run, so that a batch may be begun here and ended there.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as arrow
import ray
import ray.data
from ray.data.block import BlockMetadata
from ray.exceptions import RayError

from medserve.archive.trust import Trust
from medserve.batch.asking import Target
from medserve.batch.inputs import Content
from medserve.batch.local import calls_of, of_shard
from medserve.batch.processes import ArchiveAsker
from medserve.batch.receipts import BatchFolder, Receipt
from medserve.batch.studies import Shard, Study, list_studies
from medserve.batch.work import Answering, Became, Reading, Sent
from medserve.errors import ArchiveError, MedserveError, ServerFailedError

__all__ = ["ClusterRun"]

_CALL_BYTES = 4 * 2**20  # of a block, so that actors are fed from the first studies on
_LISTING_CPUS = 0.1  # mostly waits for disks
_ACTOR_CPUS = 0.8  # the rest of a core lists and reads
_CALLS_PER_ACTOR = 3  # one is worked on; the others are read, or write receipts
_SCHEMA = arrow.schema(
    [
        ("names", arrow.list_(arrow.string())),  # of the images of a case; "" of a single one
        ("contents", arrow.list_(arrow.large_binary())),
        ("draft", arrow.binary()),
        ("became", arrow.string()),
    ]
)


@dataclass(frozen=True)
class ClusterRun:
    """How a batch is run on a cluster.

    Attributes:
        archive: The archive that answers.
        batch: A manifest or a folder.
        out: The folder of the batch.
        target: The model of the archive.
        options: What is asked for every study.
        shard: The part of the batch.
        actors: How many; None: as many as the cluster has cores for.
        per_call: How many studies one call may take.
        timeout_s: For one call; None: what the archive allows.
        trust: By whose keys the archive has to be signed, on every machine of the cluster.
    """

    archive: Path
    batch: Path
    out: Path
    target: Target
    options: Mapping[str, Any] = field(default_factory=dict)
    shard: Shard = field(default_factory=Shard)
    actors: int | None = None
    per_call: int = 1
    timeout_s: float | None = None
    trust: Trust | None = None

    def run(self) -> Iterator[Counter[Became]]:
        """Answer the studies; gives what became of some of them, as it becomes known.

        Raises:
            MedserveError: what no study is to blame for; those answered so far are in place.
        """
        _connect()
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.target_max_block_size = _CALL_BYTES
        cores = ray.cluster_resources().get("CPU", 1)  # type: ignore[no-untyped-call]
        most = self.actors or max(1, int(cores))
        pool = ray.data.ActorPoolStrategy(
            size=most,  # a pool from one on stays there: Ray wants 1.75 calls for each place
            max_tasks_in_flight_per_actor=_CALLS_PER_ACTOR + 1,
            max_concurrent_calls_per_actor=_CALLS_PER_ACTOR,
            enable_true_multi_threading=True,
        )
        answered = ray.data.read_datasource(
            _Reader(self), num_cpus=_LISTING_CPUS, override_num_blocks=2 * most
        ).map_batches(
            _Actor,
            fn_constructor_kwargs={"run": self},
            compute=pool,
            num_cpus=_ACTOR_CPUS,
            batch_size=self.per_call,
            batch_format="pyarrow",
        )
        try:
            for batch in answered.iter_batches(batch_size=None, batch_format="pyarrow"):
                yield Counter(Became(each) for each in batch.column("became").to_pylist())
        except RayError as error:
            raise _own_error(error) from error

    def studies(self, part: int, parts: int) -> Iterator[Study]:
        """Give the studies of one of the parts in which they are listed."""
        own = Shard(self.shard.index + self.shard.count * part, self.shard.count * parts)
        target = self.target
        studies = list_studies(self.batch, target.task, channels=target.channels, without=self.out)
        return of_shard(studies, own)

    def read(self, part: int, parts: int) -> Iterator[arrow.Table]:
        """Give the studies of one part with their bytes, as tables of a call each."""
        reading = Reading(BatchFolder(self.out), self.target, self.options)
        became: Counter[Became] = Counter()
        begun = (reading.begin(study) for study in self.studies(part, parts))
        for call in calls_of(begun, became, self.per_call, _CALL_BYTES):
            yield arrow.Table.from_pylist([_row(sent) for sent in call], _SCHEMA)
        yield arrow.Table.from_pylist([{"became": each} for each in became.elements()], _SCHEMA)


def _row(sent: Sent) -> dict[str, Any]:
    images = {"": sent.content} if isinstance(sent.content, bytes) else sent.content
    draft = msgspec.json.encode(sent.draft)
    return {"names": [*images], "contents": [*images.values()], "draft": draft}


def _content(row: Mapping[str, Any]) -> Content:
    images: dict[str, bytes] = dict(zip(row["names"], row["contents"], strict=True))
    return images.get("", images)


class _Reader(ray.data.Datasource):
    """Lists and reads the studies of a batch in parts, each in a task of its own."""

    def __init__(self, run: ClusterRun) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._run = run

    def estimate_inmemory_data_size(self) -> int | None:
        """Say that nobody knows before the studies are read."""
        return None

    def get_read_tasks(self, parallelism: int, *_: Any, **__: Any) -> list[ray.data.ReadTask]:
        """Return a task for each part."""
        run, unknown = self._run, BlockMetadata(None, None, None)
        return [
            ray.data.ReadTask(_part_of(run, part, parallelism), unknown, _SCHEMA)
            for part in range(parallelism)
        ]


def _part_of(run: ClusterRun, part: int, parts: int) -> Callable[[], Iterable[arrow.Table]]:
    return lambda: run.read(part, parts)


class _Actor:
    """Holds the archive and answers blocks of studies, a few at a time."""

    def __init__(self, run: ClusterRun) -> None:
        self._folder = BatchFolder(run.out)
        self._asker = ArchiveAsker(
            run.archive, workers=1, threads=1, timeout_s=run.timeout_s, trust=run.trust
        )
        if self._asker.target != run.target:
            self._asker.close()
            raise ArchiveError(
                f"{run.archive} was replaced while the batch was running; all answers so far are "
                "those of the archive that was there at its begin. Put that one back to go on, or "
                "run the same command again, which asks the new one about every study"
            )
        self._answering = Answering(self._folder, self._asker)

    def __call__(self, rows: arrow.Table) -> arrow.Table:
        """Answer the studies of a call; the rows of others pass through."""
        became: list[str | None] = rows.column("became").to_pylist()
        asked: list[tuple[int, Sent]] = []
        for place, row in enumerate(rows.drop_columns(["became"]).to_pylist()):
            if became[place] is not None:
                continue
            draft = msgspec.json.decode(row["draft"], type=Receipt)
            if self._is_done(draft):
                became[place] = Became.ANSWERED
            else:
                asked.append((place, Sent(Study(draft.id, draft.source), _content(row), draft)))
        found = self._answering.finish([sent for _, sent in asked])
        for (place, _), outcome in zip(asked, found, strict=True):
            became[place] = outcome
        return arrow.table({"became": arrow.array(became, arrow.string())})

    def _is_done(self, draft: Receipt) -> bool:
        """Tell whether an actor that was lost had answered the study before; Ray asks again."""
        found = self._folder.receipt(draft.key)
        return (
            found is not None
            and found.started_at == draft.started_at
            and found.status == "ok"
            and self._folder.holds_files(found)
        )


def _connect() -> None:
    """Join the cluster of RAY_ADDRESS, or start one on this machine."""
    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # tells nobody what runs here
    dashboard = None if os.environ.get("RAY_ADDRESS") else False
    ray.init(include_dashboard=dashboard, log_to_driver=False, logging_level=logging.ERROR)
    logging.getLogger("ray.data").setLevel(logging.ERROR)


def _own_error(error: BaseException) -> MedserveError:
    """Return the error of medserve that is the cause of Ray's."""
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, MedserveError):
            return found
        found = getattr(found, "cause", None) or found.__cause__
    text = (str(error).strip() or type(error).__name__).splitlines()[-1]
    if text.startswith("medserve."):  # the error of an actor that Ray had started anew
        return ServerFailedError(text.partition(": ")[2])
    return ServerFailedError(f"Ray ended the run: {text}")
