"""Who may see a job, and how long it is there."""

from __future__ import annotations

import asyncio
import itertools
import json
import shutil
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from medserve.errors import ServerBusyError
from medserve.gateway.faces.page import PageLimits, app
from medserve.gateway.faces.page.jobs import (
    Item,
    Job,
    Jobs,
    Kind,
    QuotaError,
    Slots,
    UnknownJobError,
    drop_file,
    whole_file,
)
from medserve.tasks.classification import Classification
from medserve.tasks.result import Provenance
from tests.web.visiting import PACK, begin, gateway, pack, send, visiting

LABELS = ("dark", "bright")


class Clock:
    """Seconds by hand."""

    now = 0.0

    def __call__(self) -> float:
        """What time it is."""
        return self.now


def make(folder: Path, clock: Clock | None = None, **limits: float) -> Jobs:
    return Jobs(folder, PageLimits(**limits), clock or Clock())  # type: ignore[arg-type]


def test_another_visitor_finds_nothing_under_the_id_of_a_job() -> None:
    async def run() -> None:
        async with visiting(gateway(), visitors=3) as (_, [owner, other, stranger]):
            job = await begin(owner)
            await send(owner, job, {"a.png": b"ok dark"})
            await begin(other)  # has a session of their own
            for visitor in (other, stranger):
                for path in (
                    job, f"{job}/results.csv", f"{job}/results.json", f"{job}/results.zip",
                    f"{job}/files/0/thumbnail", f"{job}/volume", f"{job}/mask.nii.gz",
                    job.replace("/jobs/", "/classify/"),
                ):  # fmt: skip
                    assert (await visitor.get(path)).status_code == 404, path
                sent = await visitor.post(
                    f"{job}/files", content=pack({"b": b"ok dark"}), headers=PACK
                )
                changed = await visitor.post(f"{job}/classes", json={"classes": {"0": "bright"}})
                deleted = await visitor.delete(job)
                assert [each.status_code for each in (sent, changed, deleted)] == [404] * 3
            found = (await owner.get(job)).json()["files"]
            assert [(file["name"], file["correction"]) for file in found] == [("a.png", None)]

    asyncio.run(run())


def test_ids_cannot_be_guessed_and_folders_are_closed_to_others(tmp_path: Path) -> None:
    jobs = make(tmp_path)
    made = [jobs.create(Kind.CLASSIFY, str(n), "m", "1", LABELS) for n in range(50)]
    assert len({job.id for job in made}) == 50
    assert min(len(job.id) for job in made) >= 32
    assert {job.folder.stat().st_mode & 0o777 for job in made} == {0o700}


def test_a_job_is_deleted_after_its_time_unless_it_is_used(tmp_path: Path) -> None:
    clock = Clock()
    jobs = make(tmp_path, clock, retention_s=100)
    used = jobs.create(Kind.CLASSIFY, "a", "m", "1", LABELS)
    idle = jobs.create(Kind.CLASSIFY, "a", "m", "1", LABELS)
    clock.now = 60
    jobs.get(used.id, "a")
    clock.now = 120
    assert jobs.sweep() == 1
    assert (used.folder.exists(), idle.folder.exists()) == (True, False)
    with pytest.raises(UnknownJobError):
        jobs.get(idle.id, "a")


def test_a_job_with_an_upload_under_way_outlives_its_time(tmp_path: Path) -> None:
    clock = Clock()
    jobs = make(tmp_path, clock, retention_s=100)
    job = jobs.create(Kind.CLASSIFY, "a", "m", "1", LABELS)
    job.users = 1
    clock.now = 1000
    assert jobs.sweep() == 0
    job.users = 0
    assert jobs.sweep() == 1


def test_a_visitor_with_too_many_jobs_loses_an_empty_one_but_none_with_files(
    tmp_path: Path,
) -> None:
    jobs = make(tmp_path, visitor_jobs=2)
    full = jobs.create(Kind.CLASSIFY, "a", "m", "1", LABELS)
    full.users = 1
    empty = jobs.create(Kind.CLASSIFY, "a", "m", "1", LABELS)
    third = jobs.create(Kind.CLASSIFY, "a", "m", "1", LABELS)
    assert {job.id for job in jobs.owned("a")} == {full.id, third.id}
    assert not empty.folder.exists()
    third.users = 1
    with pytest.raises(QuotaError, match="delete one"):
        jobs.create(Kind.CLASSIFY, "a", "m", "1", LABELS)
    jobs.create(Kind.CLASSIFY, "b", "m", "1", LABELS)


def test_the_page_takes_all_files_away_when_it_ends() -> None:
    async def run() -> Path:
        async with visiting(gateway()) as (site, [client]):
            await send(client, await begin(client), {"a.png": b"ok dark"})
            [job] = site.jobs._jobs.values()
            return job.folder

    assert not asyncio.run(run()).exists()


def test_jobs_of_one_holder_and_of_all_are_bounded(tmp_path: Path) -> None:
    jobs = make(tmp_path, visitor_jobs=2, holder_jobs=4, total_jobs=6)
    for number in range(20):  # a new session each, and no file
        jobs.create(Kind.CLASSIFY, f"session {number}", "m", "1", LABELS, "203.0.113.9")
    assert len(jobs._jobs) == 4
    for number in range(4):
        jobs.create(Kind.CLASSIFY, f"other {number}", "m", "1", LABELS, f"198.51.100.{number}")
    assert len(jobs._jobs) == 6
    assert sum(1 for _ in tmp_path.iterdir()) == 6


def test_names_of_files_are_bounded_by_the_memory_that_they_take(tmp_path: Path) -> None:
    jobs = make(tmp_path, index_bytes=2**22)
    for number, holder in enumerate(("203.0.113.9", "198.51.100.7", "198.51.100.8")):
        for length in itertools.cycle((1, 1024)):
            session = f"session {number} {length}"
            job = jobs.create(Kind.CLASSIFY, session, "m", "1", LABELS, holder)
            try:
                jobs.reserve(job, 0, ["\N{CLINKING BEER MUGS}" * length] * 50)
            except QuotaError:
                break
        kept = [each for each in jobs._jobs.values() if each.holder == holder]
        assert sum(each.index_bytes for each in kept) <= 2**21
        assert (sum(each.index_bytes for each in kept) > 2**20) == (number < 2)
    assert 2**21 < sum(each.index_bytes for each in jobs._jobs.values()) <= 2**22
    for each in list(jobs._jobs.values()):
        jobs.delete(each)
    job = jobs.create(Kind.CLASSIFY, "a", "m", "1", LABELS, "203.0.113.9")
    jobs.reserve(job, 0, ["a"] * 500)


@pytest.mark.cpu
def test_an_answered_file_takes_no_more_memory_than_is_counted_for_it(tmp_path: Path) -> None:
    labels = tuple(f"class number {number}" for number in range(40))
    job = make(tmp_path).create(Kind.CLASSIFY, "a", "m", "1", labels)
    answer = json.dumps(
        {"probabilities": dict.fromkeys(labels, 0.1), "review": False, "novelty": 0.5}
    )
    names = [f"{number} {'ä' * (number % 100)}" for number in range(2000)]
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for number, name in enumerate(names):
            item = Item(number, "".join(name), 10**6 + number, f"{number:064}", modified_s=10**9)
            item.outcome = Classification.from_json(json.loads(answer))
            item.provenance = Provenance(f"m{number}", f"v{number}", f"{number:064}")
            job.items[number] = item
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before <= job.memory_of(names)


def test_uploads_of_one_holder_leave_places_for_others(tmp_path: Path) -> None:
    async def run() -> None:
        jobs, slots = make(tmp_path), Slots(PageLimits(uploads_in_flight=2))
        mine = jobs.create(Kind.CLASSIFY, "a", "m", "1", LABELS, "203.0.113.9")
        other = jobs.create(Kind.CLASSIFY, "b", "m", "1", LABELS, "198.51.100.7")
        async with slots.upload(mine):
            with pytest.raises(ServerBusyError):
                async with slots.upload(mine):
                    pass
            async with slots.upload(other):
                assert other.users == 1

    asyncio.run(run())


def test_calls_of_one_holder_let_those_of_others_pass(tmp_path: Path) -> None:
    async def run() -> None:
        jobs, slots = make(tmp_path), Slots(PageLimits(calls_in_flight=4))
        mine = jobs.create(Kind.CLASSIFY, "a", "m", "1", LABELS, "203.0.113.9")
        other = jobs.create(Kind.CLASSIFY, "b", "m", "1", LABELS, "198.51.100.7")
        begun: list[str] = []

        async def call(job: Job) -> None:
            async with slots.call(job):
                begun.append(job.owner)
                await asyncio.Event().wait()

        calls = [asyncio.create_task(call(job)) for job in (mine, mine, mine, other, other)]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert begun == ["a", "a", "b", "b"]
        for each in calls:
            each.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        assert (mine.users, other.users) == (0, 0)

    asyncio.run(run())


def test_a_file_appears_whole_or_not_at_all_and_counts_once(tmp_path: Path) -> None:
    job = make(tmp_path, Clock()).create(Kind.SEGMENT, "a", "m", "1", LABELS)
    kept = job.folder / "mask.dcm"
    with whole_file(job, kept.name) as file:
        file.write(b"of the first run")
    with kept.open("rb") as reader, whole_file(job, kept.name) as file:
        file.write(b"of")
        file.flush()
        assert kept.read_bytes() == b"of the first run"
        file.write(b" the second run")
        assert reader.read() == b"of the first run"
    with pytest.raises(OSError, match="full"), whole_file(job, kept.name) as file:
        raise OSError("the disk is full")
    assert kept.read_bytes() == b"of the second run"
    assert list(job.folder.iterdir()) == [kept]
    assert job.size_bytes == len(b"of the second run")
    for _ in range(2):
        drop_file(job, kept.name)
        assert (job.size_bytes, list(job.folder.iterdir())) == (0, [])


@pytest.mark.parametrize(("of", "step"), [(shutil, "rmtree"), (Path, "rename")])
def test_a_folder_that_cannot_be_removed_costs_no_other_and_is_tried_again(
    of: Any, step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    jobs = make(tmp_path, clock, retention_s=10)
    for owner in "ab":
        job = jobs.create(Kind.CLASSIFY, owner, "m", "1", LABELS)
        (job.folder / "000000").write_bytes(b"pixels")
    does, failing = getattr(of, step), [True]

    def once(*given: Any) -> Any:
        if failing and failing.pop():
            raise OSError(39, "Directory not empty")
        return does(*given)

    monkeypatch.setattr(of, step, once)
    clock.now = 20.0
    with pytest.raises(OSError, match="not empty"):
        jobs.sweep()
    assert sum(1 for _ in tmp_path.iterdir()) == 1
    jobs.sweep()
    assert list(tmp_path.iterdir()) == []


def test_the_sweeper_outlives_whatever_goes_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    swept, to = asyncio.Event(), gateway()
    shown: list[float] = []

    async def run() -> None:
        loop, calls = asyncio.get_running_loop(), [1, 2]

        def fail(self: Jobs, over: object) -> int:
            calls.pop()
            value = to.metrics.registry.get_sample_value
            shown.append(value("medserve_gateway_page_swept_timestamp_seconds") or 0.0)
            to.metrics.page_swept.set(1)
            if calls:
                raise RuntimeError("dictionary changed size during iteration")
            loop.call_soon_threadsafe(swept.set)
            return 0

        monkeypatch.setattr(app, "_SWEEP_S", 0.0)
        monkeypatch.setattr(Jobs, "remove", fail)
        async with visiting(to):
            await asyncio.wait_for(swept.wait(), 20)

    asyncio.run(run())
    assert shown[0] > 1  # since the start
    assert shown[1] == 1  # what went wrong does not count
