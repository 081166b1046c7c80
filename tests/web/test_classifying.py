"""Files in, answers out, corrections: what the script of the page relies on."""

from __future__ import annotations

import asyncio
import json

from medserve.errors import PayloadTooLargeError, ServerFailedError
from medserve.gateway.faces.page import PageLimits
from tests.gateway.fake_engine import FakeEngine, Request
from tests.web.visiting import (
    EXPLANATION,
    PACK,
    Visitor,
    answers,
    begin,
    gateway,
    pack,
    send,
    visit,
    visiting,
)

FILES = {
    "a.png": b"ok dark",
    "b.png": b"review bright",
    "c.png": b"odd bright",
    "d.png": b"a letter",
}


@visit()
async def test_each_file_of_a_pack_gets_its_own_answer(client: Visitor) -> None:
    files = await send(client, await begin(client), FILES)
    assert [file["status"] for file in files] == ["ok", "review", "unlike", "error"]
    assert [file.get("label") for file in files] == ["dark", "bright", "bright", None]
    assert files[0]["label_id"] == 0
    assert files[0]["probabilities"] == [0.99, 1 - 0.99]
    assert files[3]["error"]["code"] == "INVALID_IMAGE"


@visit()
async def test_a_reloaded_page_finds_its_files_again(client: Visitor) -> None:
    job = await begin(client)
    sent = await send(client, job, FILES)
    found = (await client.get(job)).json()
    assert found["files"] == sent
    assert found["model"] == "kinds"
    assert found["labels"] == ["dark", "bright"]


def test_a_pack_travels_to_the_model_in_one_call() -> None:
    engine = FakeEngine(answers)

    async def run() -> None:
        async with visiting(gateway(engine)) as (_, [client]):
            await send(client, await begin(client), {f"{n}.png": b"ok dark" for n in range(32)})

    asyncio.run(run())
    assert [
        len([key for key in call.inputs if key.startswith("data.")]) for call in engine.requests
    ] == [32]


def test_an_upload_sent_again_asks_only_for_what_has_no_answer() -> None:
    asked: list[int] = []

    def once_broken(request: Request) -> bytes:
        asked.append(len([key for key in request.inputs if key.startswith("data.")]))
        if len(asked) == 1:
            raise ServerFailedError("a bug")
        answer = answers(request)
        assert isinstance(answer, bytes)
        return answer

    async def run() -> None:
        async with visiting(gateway(FakeEngine(once_broken))) as (site, [client]):
            job = await begin(client)
            first = await send(client, job, FILES)
            again = await send(client, job, FILES)
            third = await send(client, job, FILES)
            assert {file["status"] for file in first} == {"failed"}
            assert [file["status"] for file in again] == ["ok", "review", "unlike", "error"]
            assert third == again
            assert site.jobs.size_bytes == sum(map(len, FILES.values()))

    asyncio.run(run())
    assert asked == [4, 4]


def test_a_pack_that_is_too_much_at_once_is_asked_for_in_halves() -> None:
    def small_only(request: Request) -> bytes:
        if len([key for key in request.inputs if key.startswith("data.")]) > 2:
            raise PayloadTooLargeError("too much")
        answer = answers(request)
        assert isinstance(answer, bytes)
        return answer

    async def run() -> None:
        async with visiting(gateway(FakeEngine(small_only))) as (_, [client]):
            files = await send(client, await begin(client), FILES)
            assert [file["status"] for file in files] == ["ok", "review", "unlike", "error"]

    asyncio.run(run())


@visit()
async def test_a_correction_is_kept_and_can_be_taken_back(client: Visitor) -> None:
    job = await begin(client)
    await send(client, job, FILES)
    response = await client.post(f"{job}/classes", json={"classes": {"0": "bright", "3": "dark"}})
    assert [file["correction"] for file in response.json()["files"]] == ["bright", "dark"]
    await client.post(f"{job}/classes", json={"classes": {"0": None}})
    kept = [file["correction"] for file in (await client.get(job)).json()["files"]]
    assert kept == [None, None, None, "dark"]


@visit()
async def test_a_correction_to_a_class_that_the_model_has_not_is_refused(client: Visitor) -> None:
    job = await begin(client)
    await send(client, job, FILES)
    for classes in ({"0": "../../etc"}, {"0": 7}, {"x": "dark"}, ["dark"]):
        response = await client.post(f"{job}/classes", json={"classes": classes})
        assert response.status_code == 400, classes
    assert (
        await client.post(f"{job}/classes", json={"classes": {"99": "dark"}})
    ).status_code == 404
    assert all(not file["correction"] for file in (await client.get(job)).json()["files"])


@visit()
async def test_a_job_is_for_a_served_model_of_its_kind(client: Visitor) -> None:
    for kind, name, status in (
        ("classify", "nobody", 404),
        ("classify", "organs", 400),
        ("dance", "kinds", 400),
    ):
        response = await client.post("/jobs", json={"kind": kind, "model": name})
        assert response.status_code == status, (kind, name)


def test_a_deleted_job_leaves_nothing_behind() -> None:
    async def run() -> None:
        async with visiting(gateway()) as (site, [client]):
            job = await begin(client)
            await send(client, job, FILES)
            [kept] = site.jobs.owned(next(iter(site.jobs._jobs.values())).owner)
            assert kept.folder.is_dir()
            assert (await client.delete(job)).status_code == 204
            assert not kept.folder.exists()
            assert (await client.get(job)).status_code == 404
            assert site.jobs.size_bytes == 0

    asyncio.run(run())


def test_the_smallest_limits_still_take_one_file_at_a_time() -> None:
    limits = PageLimits(pack_files=1, calls_in_flight=1, uploads_in_flight=1)

    async def run() -> None:
        async with visiting(gateway(), limits=limits) as (_, [client]):
            job = await begin(client)
            for number, (name, content) in enumerate(FILES.items()):
                await send(client, job, {name: content}, number)
            refused = await client.post(f"{job}/files", content=pack(FILES, 10), headers=PACK)
            assert refused.status_code == 413
            assert json.loads(refused.text)["error"]["code"] == "PAYLOAD_TOO_LARGE"

    asyncio.run(run())


def test_the_map_of_a_file_is_asked_for_once() -> None:
    engine = FakeEngine(answers)

    async def run() -> None:
        async with visiting(gateway(engine)) as (_, [client]):
            job = await begin(client)
            await send(client, job, FILES)
            for _ in range(2):
                response = await client.post(f"{job}/files/0/explanation")
                assert response.json() == EXPLANATION

    asyncio.run(run())
    _, asked = engine.requests  # the files, and one map
    assert json.loads(asked.inputs["params"]) == {"explain": True}
    assert asked.inputs["data.0"] == FILES["a.png"]


def test_a_map_is_for_the_owner_of_a_file_that_has_a_class() -> None:
    async def run() -> None:
        async with visiting(gateway(), visitors=2) as (_, [client, stranger]):
            job = await begin(client)
            await send(client, job, FILES)
            for visitor, number, status in ((client, 3, 400), (client, 9, 404), (stranger, 0, 404)):
                response = await visitor.post(f"{job}/files/{number}/explanation")
                assert response.status_code == status, number
            assert (await client.get(f"{job}/files/0/explanation")).status_code == 405

    asyncio.run(run())


def test_a_map_that_could_not_be_made_is_asked_for_again() -> None:
    tried: list[bytes] = []

    def busy_once(request: Request) -> bytes:
        if "params" in request.inputs:
            tried.append(request.inputs["params"])
            if len(tried) == 1:
                raise ServerFailedError("a bug")
        answer = answers(request)
        assert isinstance(answer, bytes)
        return answer

    async def run() -> None:
        async with visiting(gateway(FakeEngine(busy_once))) as (_, [client]):
            job = await begin(client)
            await send(client, job, FILES)
            assert (await client.post(f"{job}/files/0/explanation")).status_code == 500
            assert (await client.post(f"{job}/files/0/explanation")).json() == EXPLANATION

    asyncio.run(run())
