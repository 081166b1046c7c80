"""What a hostile or broken sender meets."""

from __future__ import annotations

import asyncio
import json
import stat
from collections.abc import AsyncIterator, Callable, Set

import pytest

from medserve.gateway.faces.page import PageLimits
from medserve.gateway.faces.page.jobs import Job
from tests.web.visiting import PACK, Visitor, begin, gateway, pack, send, visit, visiting

TRAVERSING = (
    "../../../etc/passwd",
    "/etc/passwd",
    "C:\\Windows\\system32\\drivers\\etc\\hosts",
    "..",
    "",
    "a\0b.png",
    "\ud800.png".encode("utf-8", "surrogatepass").decode("utf-8", "replace"),
    "x" * 5000,
)


def test_names_never_become_paths() -> None:
    async def run() -> None:
        async with visiting(gateway()) as (site, [client]):
            job = await begin(client)
            await send(client, job, {name: b"ok dark" for name in TRAVERSING})
            [kept] = site.jobs._jobs.values()
            assert sorted(path.name for path in kept.folder.iterdir()) == [
                f"{number:06d}" for number in range(len(TRAVERSING))
            ]
            assert stat.S_IMODE(kept.folder.stat().st_mode) == 0o700

    asyncio.run(run())


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"no list at all\n",
        b"[]\n",
        b'{"number": 0}\n',
        b'[{"number": 0, "name": "a", "size": "7"}]\nok dark',
        b'[{"number": -1, "name": "a", "size": 7}]\nok dark',
        b'[{"number": 0, "name": "a", "size": -7}]\nok dark',
        b'[{"number": true, "name": "a", "size": 7}]\nok dark',
        b'[{"number": 0, "name": ["a"], "size": 7}]\nok dark',
        b'[{"number": 0, "name": "a", "size": 70}]\nok dark',
        b'[{"number": 0, "name": "a", "size": 7, "modified": 1%s}]\nok dark' % (b"0" * 4000),
        b'[{"number": 0, "name": "a", "size": 3}]\nok dark',
        b'[{"number": 0, "name": "a", "size": 3}, {"number": 0, "name": "b", "size": 4}]\nok dark',
        b"[" * 100_000 + b"\n",
        b"x" * 3 * 2**20,
    ],
    ids=range(15),
)
def test_a_body_that_is_not_what_it_says_is_refused_and_nothing_of_it_kept(body: bytes) -> None:
    async def run() -> None:
        async with visiting(gateway()) as (site, [client]):
            job = await begin(client)
            response = await client.post(f"{job}/files", content=body, headers=PACK)
            assert response.status_code == 400
            assert response.json()["error"]["code"] == "INVALID_REQUEST"
            [kept] = site.jobs._jobs.values()
            assert (kept.items, kept.size_bytes, list(kept.folder.iterdir())) == ({}, 0, [])

    asyncio.run(run())


@visit()
async def test_a_form_of_another_site_is_no_upload(client: Visitor) -> None:
    job = await begin(client)
    for kind in ("text/plain", "multipart/form-data; boundary=x", "application/json"):
        response = await client.post(
            f"{job}/files", content=pack({"a": b"ok dark"}), headers={"content-type": kind}
        )
        assert response.status_code == 400


def test_more_bytes_than_allowed_are_refused_before_they_come() -> None:
    arrived = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal arrived
        yield json.dumps([{"number": 0, "name": "a", "size": 10**12}]).encode() + b"\n"
        while True:
            arrived += 2**16
            yield bytes(2**16)

    async def run() -> None:
        async with visiting(gateway()) as (_, [client]):
            job = await begin(client)
            response = await client.post(f"{job}/files", content=endless(), headers=PACK)
            assert response.status_code == 413

    asyncio.run(run())
    assert arrived <= 2**18


@pytest.mark.parametrize(
    ("limits", "files"),
    [
        (PageLimits(job_bytes=20), 3),
        (PageLimits(visitor_bytes=20), 3),
        (PageLimits(total_bytes=20), 3),
        (PageLimits(job_files=2), 3),
        (PageLimits(index_bytes=6000), 3),
    ],
)
def test_what_goes_beyond_a_quota_is_refused_and_the_rest_stays(
    limits: PageLimits, files: int
) -> None:
    async def run() -> None:
        async with visiting(gateway(), limits=limits) as (site, [client]):
            job = await begin(client)
            await send(client, job, {"a": b"ok dark", "b": b"ok dark"})
            response = await client.post(
                f"{job}/files", content=pack({"c": b"ok dark"}, first=2), headers=PACK
            )
            assert (response.status_code, response.json()["error"]["code"]) == (429, "QUOTA")
            assert len((await client.get(job)).json()["files"]) == files - 1
            assert site.jobs.size_bytes == 14

    asyncio.run(run())


def test_what_is_known_of_files_is_counted_once_however_they_come() -> None:
    names = {f"{n}.png": b"ok dark" for n in range(4)}
    listed = [{"number": n, "name": name, "size": 7} for n, name in enumerate(names)]

    async def run() -> None:
        async with visiting(gateway()) as (site, [client]):
            job = await begin(client)
            [kept] = site.jobs._jobs.values()

            async def announced() -> AsyncIterator[bytes]:
                whole = pack(names)
                yield whole[:-1]
                assert (await client.post(f"{job}/announcement", json={"files": listed})).is_success
                yield whole[-1:]

            cut = await client.post(f"{job}/files", content=pack(names)[:-1], headers=PACK)
            assert (cut.status_code, kept.index_bytes) == (400, 0)
            sent = (announced(), announced(), pack(names))
            at_once = [client.post(f"{job}/files", content=each, headers=PACK) for each in sent]
            assert all(each.is_success for each in await asyncio.gather(*at_once))
            for _ in range(2):
                await send(client, job, names)
                again = await client.post(f"{job}/announcement", json={"files": listed * 2})
                assert again.is_success
            assert (kept.index_bytes, kept.size_bytes) == (kept.memory_of(names), 28)
            assert not kept.missing

    asyncio.run(run())


def test_the_files_of_a_job_are_gone_through_once_for_a_list_however_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gone_through: list[int] = []
    numbers: Callable[[Job], Set[int]] = vars(Job)["numbers"].fget

    def counted(job: Job) -> Set[int]:
        gone_through.append(len(job.missing))
        return numbers(job)

    monkeypatch.setattr(Job, "numbers", property(counted))

    async def run() -> None:
        async with visiting(gateway()) as (_, [client]):
            job = await begin(client)
            listed = [{"number": n, "name": "", "size": 0} for n in range(500)]
            for _ in range(2):
                path = f"{job}/announcement"
                assert (await client.post(path, json={"files": listed})).is_success

    asyncio.run(run())
    assert gone_through == [0, 500]


@pytest.mark.parametrize("limits", [PageLimits(silence_s=0.05), PageLimits(upload_s=0.05)])
def test_a_sender_that_goes_silent_is_not_waited_for(limits: PageLimits) -> None:
    async def slow() -> AsyncIterator[bytes]:
        yield json.dumps([{"number": 0, "name": "a", "size": 100}]).encode() + b"\n"
        await asyncio.sleep(30)
        yield bytes(100)

    async def run() -> None:
        async with visiting(gateway(), limits=limits) as (site, [client]):
            job = await begin(client)
            response = await client.post(f"{job}/files", content=slow(), headers=PACK)
            assert (response.status_code, response.json()["error"]["code"]) == (408, "SLOW_UPLOAD")
            [kept] = site.jobs._jobs.values()
            assert (kept.size_bytes, list(kept.folder.iterdir()), kept.users) == (0, [], 0)

    asyncio.run(run())


@pytest.mark.parametrize("path", ["/jobs", "/login"])
def test_a_small_request_that_does_not_come_is_not_waited_for(path: str) -> None:
    async def slow() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.Event().wait()

    async def run() -> None:
        async with visiting(gateway(), limits=PageLimits(silence_s=0.05)) as (_, [client]):
            kind = {"content-type": "application/json"}
            response = await client.post(path, content=slow(), headers=kind)
            assert response.json()["error"]["code"] == "DEADLINE_EXCEEDED"

    asyncio.run(run())


def test_slow_senders_cannot_take_every_place_for_ever() -> None:
    limits = PageLimits(uploads_in_flight=1, silence_s=0.3)

    async def slow() -> AsyncIterator[bytes]:
        yield json.dumps([{"number": 0, "name": "a", "size": 100}]).encode() + b"\n"
        await asyncio.sleep(30)

    async def run() -> None:
        async with visiting(gateway(), limits=limits, visitors=2) as (_, [slowly, other]):
            one, two = await begin(slowly), await begin(other)
            holding = asyncio.create_task(slowly.post(f"{one}/files", content=slow(), headers=PACK))
            await asyncio.sleep(0.1)
            busy = await other.post(f"{two}/files", content=pack({"a": b"ok dark"}), headers=PACK)
            assert (busy.status_code, busy.headers["retry-after"]) == (503, "1")
            assert (await holding).status_code == 408
            await send(other, two, {"a": b"ok dark"})

    asyncio.run(run())


def test_the_same_upload_twice_at_a_time_is_stored_once() -> None:
    async def run() -> None:
        async with visiting(gateway()) as (site, [client]):
            job = await begin(client)
            files = {f"{n}.png": b"ok dark" for n in range(8)}
            await asyncio.gather(*(send(client, job, files) for _ in range(4)))
            [kept] = site.jobs._jobs.values()
            assert kept.size_bytes == 8 * 7
            assert len(kept.items) == 8
            assert len(list(kept.folder.iterdir())) == 8

    asyncio.run(run())


def test_a_job_deleted_while_files_arrive_ends_the_upload() -> None:
    async def run() -> None:
        async with visiting(gateway()) as (site, [client]):
            job = await begin(client)

            async def body() -> AsyncIterator[bytes]:
                yield json.dumps([{"number": 0, "name": "a", "size": 7}]).encode() + b"\nok "
                await client.delete(job)
                yield b"dark"

            response = await client.post(f"{job}/files", content=body(), headers=PACK)
            assert response.status_code == 404
            assert site.jobs.size_bytes == 0

    asyncio.run(run())
