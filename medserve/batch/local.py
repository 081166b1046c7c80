"""Runs a batch on this machine: threads read, ask and write, a few studies ahead of each other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

from medserve.batch.studies import Shard, Study, study_key
from medserve.batch.work import Answering, Became, Reading, Sent
from medserve.errors import ConfigError

__all__ = ["LocalRun", "calls_of", "of_shard"]


@dataclass(frozen=True)
class LocalRun:
    """How a batch is run here.

    Attributes:
        reading: What happens to a study before it is sent.
        answering: What happens then.
        threads: How many calls are under way.
        per_call: How many studies one call may take.
        call_bytes: How many bytes; a larger study is a call of its own.
    """

    reading: Reading
    answering: Answering
    threads: int
    per_call: int = 1
    call_bytes: int = 4 * 2**20

    def run(self, studies: Iterable[Study]) -> Iterator[Counter[Became]]:
        """Answer studies; gives what became of some of them, as it becomes known.

        Raises:
            MedserveError: what no study is to blame for; those answered so far are in place.
        """
        groups = _groups(studies, self.per_call)
        flying: set[Future[Counter[Became]]] = set()
        pool = ThreadPoolExecutor(self.threads, "medserve-batch")
        try:
            for group in groups:
                flying.add(pool.submit(self._work, group))
                if len(flying) >= 2 * self.threads:
                    done, flying = wait(flying, return_when=FIRST_COMPLETED)
                    yield from (each.result() for each in done)
            while flying:
                done, flying = wait(flying, return_when=FIRST_COMPLETED)
                yield from (each.result() for each in done)
        except BaseException:
            self.answering.end()
            raise
        finally:
            pool.shutdown(cancel_futures=True)

    def _work(self, group: Sequence[Study]) -> Counter[Became]:
        became: Counter[Became] = Counter()
        begun = (self.reading.begin(study) for study in group)
        for call in calls_of(begun, became, self.per_call, self.call_bytes):
            became.update(self.answering.finish(call))
        return became


def calls_of(
    begun: Iterable[Sent | Became], became: Counter[Became], per_call: int, call_bytes: int
) -> Iterator[list[Sent]]:
    """Give the studies that are to be sent, as calls; those that are not are counted."""
    call: list[Sent] = []
    size = 0
    for each in begun:
        if isinstance(each, Became):
            became[each] += 1
            continue
        if call and (len(call) == per_call or size + each.draft.size_bytes > call_bytes):
            yield call
            call, size = [], 0
        call.append(each)
        size += each.draft.size_bytes
    if call:
        yield call


def of_shard(studies: Iterable[Study], shard: Shard) -> Iterator[Study]:
    """Give the studies of one shard.

    Raises:
        ConfigError: two of them have the same id, so that one would replace the other.
    """
    seen: set[int] = set()
    for study in studies:
        key = study_key(study.id)
        if not shard.has(key):
            continue
        number = int(key[:16], 16)
        if number in seen:
            raise ConfigError(
                "expected an id of its own for each study, got one twice (the second time with "
                f"the source {study.source!r}); mend the column `id` of the manifest"
            )
        seen.add(number)
        yield study


def _groups(studies: Iterable[Study], size: int) -> Iterator[list[Study]]:
    group: list[Study] = []
    for study in studies:
        group.append(study)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group
