"""The direct engine when something goes wrong: workers that die, stand still, or cannot start."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from medserve.archive.read import ArchiveInfo, verify_archive
from medserve.archive.unpack import unpack_archive
from medserve.engine.direct import worker
from medserve.engine.direct.engine import DirectConfig, DirectEngine
from medserve.engine.direct.process import Job, Program, WorkerProcess
from medserve.engine.interface import EngineRequest, WorkerLostError
from medserve.errors import (
    ArchiveError,
    DeadlineError,
    ModelNotReadyError,
    PayloadTooLargeError,
    ServerBusyError,
    ServerFailedError,
)
from medserve.gateway.core.calls import new_request_id
from tests.archives import packaged_fixture
from tests.gateway.streaming_room import CRASH, SLOW, Hold
from tests.painter_room import SLOW as PAINTS_SLOWLY
from tests.tiny_room import LABELS, bright_tile

pytestmark = pytest.mark.process

_PATIENCE_S = 60.0

Scenario = Callable[[DirectEngine], Coroutine[Any, Any, None]]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the archives of `tiny`, `ticker` and `painter`."""
    for module in ("model_archiver", "onnxruntime"):
        pytest.importorskip(module, reason="needs the serve extra")
    folder = tmp_path_factory.mktemp("direct")
    for name in ("tiny", "ticker", "painter"):
        packaged_fixture(name, folder)
    return folder


@pytest.fixture
def ticker(store: Path) -> ArchiveInfo:
    return verify_archive(store / "ticker-1.0.mar")


def run(scenario: Scenario, *archives: ArchiveInfo, **config: Any) -> None:
    """Run a scenario with an engine that has loaded the archives."""

    async def main() -> None:
        engine = DirectEngine(DirectConfig(threads=1, **config))
        try:
            await asyncio.gather(*map(engine.load, archives))
            await scenario(engine)
        finally:
            await engine.drain()

    asyncio.run(main())


def asking(model: str = "ticker", **inputs: bytes) -> EngineRequest:
    return EngineRequest(model, "", {"data": bright_tile(3)} | inputs, new_request_id())


async def label(engine: DirectEngine, request: EngineRequest | None = None) -> str:
    content = json.loads(await engine.call(request or asking(), _PATIENCE_S))
    return str(content["label"])


async def pid_of(engine: DirectEngine, model: str = "ticker") -> int:
    """The one worker of a model, once it is ready."""
    while not (found := await engine.describe(model))[0].pids:
        await asyncio.sleep(0.05)
    return found[0].pids[0]


def asked(engine: DirectEngine, request: EngineRequest) -> asyncio.Task[bytes]:
    """A call of its own."""
    return asyncio.create_task(engine.call(request, _PATIENCE_S))


async def at_work(
    engine: DirectEngine, hold: Hold, request: EngineRequest | None = None
) -> asyncio.Task[bytes]:
    """A call that a worker has begun, and does not end before `hold` is released."""
    task = asked(engine, request or asking(params=hold.params))
    await hold.begun()
    return task


def test_a_worker_that_dies_takes_its_own_call_and_no_other(ticker: ArchiveInfo) -> None:
    async def scenario(engine: DirectEngine) -> None:
        first = await pid_of(engine)
        lost = asked(engine, asking(params=CRASH))
        await asyncio.sleep(0)  # it is the first
        waits = [asyncio.create_task(label(engine)) for _ in range(3)]
        with pytest.raises(WorkerLostError):
            await lost
        assert await asyncio.gather(*waits) == [LABELS[3]] * 3
        assert await pid_of(engine) != first

    run(scenario, ticker)


@pytest.mark.parametrize("busy", [True, False], ids=["at work", "idle"])
def test_a_worker_that_a_signal_stopped_is_replaced(ticker: ArchiveInfo, busy: bool) -> None:
    async def scenario(engine: DirectEngine) -> None:
        first = await pid_of(engine)
        os.kill(first, signal.SIGSTOP)
        if busy:
            with pytest.raises(WorkerLostError):
                await engine.call(asking(), _PATIENCE_S)
        while psutil.pid_exists(first):
            await asyncio.sleep(0.05)
        assert await label(engine) == LABELS[3]

    run(scenario, ticker)


def test_a_batch_that_takes_longer_than_its_model_allows_ends_its_worker(
    ticker: ArchiveInfo,
) -> None:
    serving = replace_in(ticker.spec.serving, response_timeout=1)
    hasty = replace(ticker, spec=replace_in(ticker.spec, serving=serving))

    async def scenario(engine: DirectEngine) -> None:
        with pytest.raises(WorkerLostError):
            await engine.call(asking(params=SLOW), _PATIENCE_S)
        assert await label(engine) == LABELS[3]

    run(scenario, hasty)


def test_calls_are_refused_when_too_many_wait(ticker: ArchiveInfo, tmp_path: Path) -> None:
    hold = Hold(tmp_path)
    serving = replace_in(ticker.spec.serving, job_queue_size=1)
    narrow = replace(ticker, spec=replace_in(ticker.spec, serving=serving))

    async def scenario(engine: DirectEngine) -> None:
        runs = await at_work(engine, hold)
        waits = asyncio.create_task(label(engine))
        await asyncio.sleep(0)
        with pytest.raises(ServerBusyError):
            await engine.call(asking(), _PATIENCE_S)
        hold.release()
        assert json.loads(await runs)["label"] == await waits == LABELS[3]

    run(scenario, narrow)


def test_a_call_that_nobody_waits_for_is_not_begun(ticker: ArchiveInfo, tmp_path: Path) -> None:
    hold = Hold(tmp_path)

    async def scenario(engine: DirectEngine) -> None:
        first = await pid_of(engine)
        runs = await at_work(engine, hold)
        leaves = asked(engine, asking(params=CRASH))
        await asyncio.sleep(0)  # it waits behind the other
        late = EngineRequest("ticker", "", {"params": CRASH}, new_request_id(), deadline=0.0)
        leaves.cancel()
        with pytest.raises(DeadlineError):
            await engine.call(late, _PATIENCE_S)
        hold.release()
        await runs
        assert await label(engine) == LABELS[3]
        assert await pid_of(engine) == first  # nothing crashed it

    run(scenario, ticker)


def test_work_in_steps_ends_when_its_caller_goes(store: Path) -> None:
    params = json.dumps({"n": 1, "steps": 200, "guidance": PAINTS_SLOWLY}).encode()
    endless = EngineRequest("painter", "", {"params": params}, new_request_id())

    async def scenario(engine: DirectEngine) -> None:
        async with contextlib.aclosing(engine.stream(endless, _PATIENCE_S)) as parts:
            await anext(parts)
        await engine.call(EngineRequest("painter", "", {}, new_request_id()), _PATIENCE_S)
        items = [each for each in engine.metrics.collect() if each.name == "MedserveItems"]
        statuses = {sample.labels["Status"] for sample in items[0].samples}
        assert statuses == {"ok", DeadlineError.code}
        assert list(engine.cancelled_dir.iterdir()) == []  # the mark goes with the work

    run(scenario, verify_archive(store / "painter-1.0.mar"))


def test_a_model_whose_workers_cannot_start_is_refused_and_comes_back(ticker: ArchiveInfo) -> None:
    async def scenario(engine: DirectEngine) -> None:
        pid = await pid_of(engine)
        network = Path(psutil.Process(pid).cwd(), "model.onnx")
        content = network.read_bytes()
        network.unlink()
        os.kill(pid, signal.SIGKILL)
        while (await engine.describe("ticker"))[0].health.serving:
            await asyncio.sleep(0.01)
        with pytest.raises(ServerBusyError):
            await engine.call(asking(), _PATIENCE_S)
        assert not (await engine.describe("ticker"))[0].health.serving
        network.write_bytes(content)
        await pid_of(engine)
        assert await label(engine) == LABELS[3]

    run(scenario, ticker)


def test_a_large_file_and_its_answer_go_through_shared_memory(store: Path) -> None:
    tile = bright_tile(2)
    large = tile + bytes(3 * worker.LARGE_BYTES)  # what follows an image is no part of it

    async def scenario(engine: DirectEngine) -> None:
        assert await label(engine, asking("tiny", data=large)) == LABELS[2]
        assert await label(engine, asking("tiny", data=tile)) == LABELS[2]

    run(scenario, verify_archive(store / "tiny-1.0.mar"))


def test_a_file_that_a_worker_has_is_held_for_nobody_else(
    ticker: ArchiveInfo, tmp_path: Path
) -> None:
    large = bright_tile(3) + bytes(3 * worker.LARGE_BYTES)
    hold = Hold(tmp_path)

    async def scenario(engine: DirectEngine) -> None:
        request = asking(params=hold.params, data=large)
        of_the_caller = sys.getrefcount(large)
        working = await at_work(engine, hold, request)
        assert sys.getrefcount(large) == of_the_caller
        waiting = asyncio.create_task(engine.call(request, _PATIENCE_S))
        await asyncio.sleep(0)
        assert sys.getrefcount(large) > of_the_caller
        waiting.cancel()
        await asyncio.wait([waiting])
        assert sys.getrefcount(large) == of_the_caller
        hold.release()
        await working

    run(scenario, ticker)


def test_a_large_body_is_stored_and_taken_once() -> None:
    memory = os.memfd_create("test")
    pieces = [bytes([value]) * worker.LARGE_BYTES for value in range(3)]
    [sent] = worker.pack({"kind": "answers"}, pieces, memory)
    head_size, body_size = worker.LENGTHS.unpack_from(sent)
    head = json.loads(sent[worker.LENGTHS.size :])
    assert (head_size, body_size) == (len(sent) - worker.LENGTHS.size, 0)
    assert worker.take_stored(head, memory) == b"".join(pieces)
    assert os.fstat(memory).st_size == 0
    os.close(memory)


class _Reading(asyncio.Transport):
    """Knows whether the engine reads what a worker says."""

    paused = False

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False

    def writelines(self, list_of_data: Any) -> None:
        """Take a request."""


@pytest.mark.parametrize("parts", [1, 8, 40])
def test_a_stream_that_arrives_at_once_leaves_its_worker_to_the_next_call(parts: int) -> None:
    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        process = WorkerProcess(Program("a", "a 1.0", Path(), {}, 0.0, 2**20), lambda: None)
        transport = process._transport = _Reading()
        process.ready.set_result(None)
        for stream in (asyncio.Queue[bytes | None](), None):
            job = Job({"data": b""}, "", None, loop.create_future(), stream)
            process.work([job])
            part: dict[str, Any] = {"kind": "part"}
            said = [(part, b"step")] * parts if stream else []
            said.append(({"kind": "answers", "sizes": [4], "metrics": []}, b"done"))
            frames = [b"".join(worker.pack(head, [body], None)) for head, body in said]
            process.data_received(b"".join(frames))
            assert await job.answer == b"done"
            assert process.free
            assert not transport.paused

    asyncio.run(scenario())


def test_workers_end_with_their_parent_however_it_ended(store: Path) -> None:
    program = f"""
import asyncio
from pathlib import Path
from medserve.archive.read import verify_archive
from medserve.engine.direct.engine import DirectConfig, DirectEngine
from medserve.engine.direct.process import Job, Program, WorkerProcess

async def main():
    engine = DirectEngine(DirectConfig(threads=1))
    await engine.load(verify_archive(Path({str(store / "ticker-1.0.mar")!r})), workers=2)
    print(*(await engine.describe("ticker"))[0].pids, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        workers = [psutil.Process(int(pid)) for pid in parent.stdout.readline().split()]
        parent.kill()
    assert len(workers) == 2
    _, alive = psutil.wait_procs(workers, timeout=30)
    assert alive == []


def test_an_archive_that_was_exchanged_after_its_verification_is_not_loaded(
    ticker: ArchiveInfo, tmp_path: Path
) -> None:
    other = tmp_path / "other.mar"
    with zipfile.ZipFile(ticker.path) as old, zipfile.ZipFile(other, "w") as new:
        for name in old.namelist():
            spoilt = b"import os\n" if name == "ticker.py" else b""
            new.writestr(name, spoilt + old.read(name))
    with pytest.raises(ArchiveError, match="was changed after it was verified"):
        unpack_archive(replace(ticker, path=other), tmp_path / "unpacked")

    async def scenario(engine: DirectEngine) -> None:
        with pytest.raises(ModelNotReadyError):
            await engine.load(replace(ticker, path=other))
        assert await engine.describe() == []

    run(scenario)


def test_a_worker_sees_no_secret_of_its_parent(
    ticker: ArchiveInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDSERVE_TOKEN", "s3cret")

    async def scenario(engine: DirectEngine) -> None:
        environment = psutil.Process(await pid_of(engine)).environ()
        assert "s3cret" not in environment.values()
        assert "PYTHONPATH" not in environment

    run(scenario, ticker)


@pytest.mark.parametrize(
    ("raised", "error", "said"),
    [
        ("ValueError('Jane Doe')", ServerFailedError, "its log tells why"),
        ("torchserve.prediction_error(PayloadTooLargeError('too many'))",
         PayloadTooLargeError, "too many"),
    ],
)  # fmt: skip
def test_what_a_handler_raises_is_told_without_the_input(
    ticker: ArchiveInfo,
    caplog: pytest.LogCaptureFixture,
    raised: str,
    error: type[Exception],
    said: str,
) -> None:
    async def scenario(engine: DirectEngine) -> None:
        await exchange_crash(
            engine, f"from medserve.errors import PayloadTooLargeError; raise {raised}"
        )
        with pytest.raises(error, match=said):
            await engine.call(asking(params=CRASH), _PATIENCE_S)
        assert await label(engine) == LABELS[3]

    with caplog.at_level("INFO", logger="medserve.engine"):
        run(scenario, ticker)
    assert "Jane Doe" not in caplog.text


@pytest.mark.parametrize("size", [worker.LARGE_BYTES // 2, 3 * worker.LARGE_BYTES])
def test_an_answer_above_the_largest_costs_itself_and_not_its_worker(
    ticker: ArchiveInfo, size: int
) -> None:
    async def scenario(engine: DirectEngine) -> None:
        await exchange_crash(engine, f"return [bytes({size} + 1)]")
        pid = await pid_of(engine)
        with pytest.raises(PayloadTooLargeError, match=f"at most {size} bytes"):
            await engine.call(asking(params=CRASH), _PATIENCE_S)
        assert await label(engine) == LABELS[3]
        assert await pid_of(engine) == pid

    run(scenario, ticker, max_message_bytes=size)


async def exchange_crash(engine: DirectEngine, statement: str) -> None:
    """Start the worker of `ticker` again; where it ended its process it now does something else."""
    handler = Path(psutil.Process(await pid_of(engine)).cwd(), "ticker.py")
    handler.write_text(handler.read_text().replace("os._exit(1)", statement))
    os.kill(await pid_of(engine), signal.SIGKILL)
    await label_after_loss(engine)


async def label_after_loss(engine: DirectEngine) -> None:
    """Ask until the new worker answers."""
    with contextlib.suppress(WorkerLostError):
        await label(engine)
    assert await label(engine) == LABELS[3]


def replace_in(struct: Any, **changes: Any) -> Any:
    """A copy of a msgspec struct with other values."""
    from msgspec import structs

    return structs.replace(struct, **changes)
