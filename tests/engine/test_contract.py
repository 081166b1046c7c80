"""What the gateway relies on in an engine; a further engine adds itself to the fixture `bench`.

Every engine here has loaded `tiny` 1.0 (which of six tiles is the brightest; gathers calls into
batches, so that its errors are bodies) and `ticker` 1.0 (streams; see `streaming_room`).
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import shutil
import zipfile
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from medserve.archive.read import ArchiveInfo, verify_archive
from medserve.engine.direct.engine import DirectConfig, DirectEngine
from medserve.engine.golden import GoldenInput
from medserve.engine.interface import Engine, EngineRequest
from medserve.engine.torchserve.calls import TorchServeEngine
from medserve.engine.torchserve.java import find_java
from medserve.engine.torchserve.lifecycle import Server, ServerConfig
from medserve.errors import (
    ConfigError,
    DeadlineError,
    InvalidRequestError,
    ModelNotReadyError,
    ServerUnreachableError,
    UnknownModelError,
)
from medserve.gateway.core.calls import new_request_id
from medserve.wire import inference_pb2
from tests.archives import packaged, packaged_fixture
from tests.gateway.fake_engine import FakeEngine, Request
from tests.gateway.streaming_room import TICKS, Hold
from tests.tiny_room import LABELS, bright_tile, make_checkout

_PATIENCE_S = 60.0


@dataclass(frozen=True)
class Archives:
    """The archives of all engines; `newer` and `broken` are not loaded at first."""

    store: Path
    tiny: ArchiveInfo
    ticker: ArchiveInfo
    newer: ArchiveInfo  # tiny 2.0
    broken: ArchiveInfo  # tiny 3.0, whose handler cannot be imported


Scenario = Callable[[Engine], Coroutine[Any, Any, Any]]


@dataclass(frozen=True)
class Bench:
    """One engine under test."""

    connect: Callable[[], Engine]
    archives: Archives
    loads: Sequence[ArchiveInfo] = ()  # where an engine begins without a model
    reads_files: bool = True
    shared: tuple[asyncio.Runner, Engine] | None = None  # an engine that all scenarios have

    def run(self, scenario: Scenario) -> Any:
        """Run a scenario that leaves the engine as it was."""
        if self.shared is None:
            return self.run_to_the_end(scenario)
        runner, engine = self.shared
        return runner.run(scenario(engine))

    def run_to_the_end(self, scenario: Scenario) -> Any:
        """Run a scenario with an engine of its own, which is drained at its end."""

        async def main() -> Any:
            engine = await self.loaded()
            try:
                return await scenario(engine)
            finally:
                await engine.drain()

        return asyncio.run(main())

    async def loaded(self) -> Engine:
        """Connect, and load what is not there at first."""
        engine = self.connect()
        await asyncio.gather(*map(engine.load, self.loads))
        return engine


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> Archives:
    pytest.importorskip("model_archiver", reason="needs the serve extra")
    folder = tmp_path_factory.mktemp("archives")
    store = folder / "store"
    tiny, ticker = (packaged_fixture(name, store) for name in ("tiny", "ticker"))
    newer = packaged("tiny", folder / "new", make_checkout(folder / "newer", version="2.0"))
    checkout = make_checkout(folder / "broken", version="3.0")
    handler = checkout / "handlers" / "tiny.py"
    handler.write_text(f"raise RuntimeError\n{handler.read_text()}", encoding="utf-8")
    broken = packaged("tiny", folder / "new", checkout)
    return Archives(store, *map(verify_archive, (tiny, ticker, newer, broken)))


def in_memory(archives: Archives) -> Bench:
    """The stand-in of the gateway's tests keeps what the gateway relies on."""
    digests = {
        (each.name, each.version): each.digest
        for each in (archives.tiny, archives.ticker, archives.newer)
    }

    def connect() -> Engine:
        async def answer(request: Request) -> AsyncIterator[bytes]:
            if hold := Hold.of(request.inputs.get("params", b"")):
                await hold.obey()
            version = request.version or next(
                each.version
                for each in engine._models
                if each.name == request.model and each.default
            )
            content: dict[str, Any] = {"model": request.model, "version": version}
            content["archive_digest"] = digests[request.model, version]
            tiles = [bright_tile(tile) for tile in range(6)]
            if request.inputs["data"] in tiles:
                content |= {"status": "ok", "label": LABELS[tiles.index(request.inputs["data"])]}
            else:
                error = {"code": "INVALID_IMAGE", "message": "not an image"}
                content |= {"status": "error", "error": error}
            last = json.dumps(content, separators=(",", ":")).encode()
            ticks = TICKS if request.model == "ticker" and request.stream else []
            for chunk in (*ticks, last):
                yield chunk

        engine = FakeEngine(answer, known=("tiny", "ticker"))
        return engine

    return Bench(connect, archives, reads_files=False)


def direct(archives: Archives) -> Iterator[Bench]:
    """The one without TorchServe; its workers are its own, and take seconds to start."""
    pytest.importorskip("onnxruntime", reason="needs the serve extra")
    bench = Bench(
        lambda: DirectEngine(DirectConfig()), archives, loads=(archives.tiny, archives.ticker)
    )
    with asyncio.Runner() as runner:
        engine = runner.run(bench.loaded())
        yield replace(bench, shared=(runner, engine))
        runner.run(engine.drain())


def torchserve(archives: Archives) -> Iterator[Bench]:
    """The real one."""
    if importlib.util.find_spec("ts") is None:
        pytest.skip("TorchServe is not installed; pip install -e '.[serve]'")
    try:
        find_java()
    except ConfigError as error:
        pytest.skip(str(error))
    with Server(ServerConfig(store=archives.store, allow_loading=True)) as server:
        yield Bench(lambda: TorchServeEngine(server.access), archives)


@pytest.fixture(
    scope="module",
    params=[
        pytest.param("in memory", marks=pytest.mark.archive),
        pytest.param("direct", marks=pytest.mark.process),
        pytest.param("torchserve", marks=pytest.mark.torchserve),
    ],
)
def bench(request: pytest.FixtureRequest, archives: Archives) -> Iterator[Bench]:
    match request.param:
        case "torchserve":
            yield from torchserve(archives)
        case "direct":
            yield from direct(archives)
        case _:
            yield in_memory(archives)


@pytest.fixture
def hold(tmp_path: Path) -> Hold:
    return Hold(tmp_path)


def asking(model: str = "tiny", version: str = "", **inputs: bytes) -> EngineRequest:
    content = {"data": bright_tile(3)} | inputs
    return EngineRequest(model, version, content, new_request_id())


async def answer(engine: Engine, request: EngineRequest) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(await engine.call(request, _PATIENCE_S))
    return content


def opened(engine: Engine, request: EngineRequest) -> AsyncGenerator[bytes, None]:
    """A stream that can be closed before its end."""
    stream: Any = engine.stream(request, _PATIENCE_S)
    return stream


async def parts(engine: Engine, request: EngineRequest) -> list[bytes]:
    return [part async for part in engine.stream(request, _PATIENCE_S)]


def test_every_loaded_version_is_described_with_its_workers(bench: Bench) -> None:
    async def scenario(engine: Engine) -> None:
        everything = await engine.describe()
        assert sorted((each.name, each.version) for each in everything) == [
            ("ticker", "1.0"),
            ("tiny", "1.0"),
        ]
        (tiny,) = await engine.describe("tiny")
        assert tiny in everything
        assert tiny.default
        assert tiny.workers == tiny.workers_ready == 1
        assert tiny.health.serving
        assert tiny.pending == 0

    bench.run(scenario)


def test_a_call_answers_what_the_handler_returned(bench: Bench) -> None:
    async def scenario(engine: Engine) -> None:
        for version in ("", "1.0"):
            got = await answer(engine, asking(version=version))
            assert (got["status"], got["label"]) == ("ok", LABELS[3])
            assert (got["version"], got["archive_digest"]) == ("1.0", bench.archives.tiny.digest)

    bench.run(scenario)


def test_a_golden_input_is_answered_by_its_own_archive(bench: Bench) -> None:
    async def scenario(engine: Engine) -> None:
        for archive in (bench.archives.tiny, bench.archives.ticker):
            golden = GoldenInput.of(archive)
            got = await engine.call(golden.request(), _PATIENCE_S)
            golden.check(got)
            assert json.loads(got)["archive_digest"] == archive.digest

    bench.run(scenario)


def test_calls_may_overlap(bench: Bench) -> None:
    async def scenario(engine: Engine) -> None:
        asked = [asking(data=bright_tile(tile)) for tile in range(6)] * 3
        got = await asyncio.gather(*(answer(engine, each) for each in asked))
        assert [each["label"] for each in got] == list(LABELS) * 3

    bench.run(scenario)


def test_a_request_on_torchserves_wire_is_answered_like_any_other(bench: Bench) -> None:
    message = inference_pb2.PredictionsRequest(
        model_name="ticker", input={"data": bright_tile(2), "stream": b"1", "transport": b"rest"}
    )
    wire = message.SerializeToString() + b"\xa2\x06\x03abc"  # field 100, which nobody knows
    request = EngineRequest("ticker", "", {}, new_request_id(), wire=wire)

    async def scenario(engine: Engine) -> None:
        assert (await answer(engine, request))["label"] == LABELS[2]
        *ticks, last = await parts(engine, request)
        assert ticks == TICKS
        assert json.loads(last)["label"] == LABELS[2]

    bench.run(scenario)


def test_a_stream_gives_the_parts_and_a_unary_call_the_answer_alone(bench: Bench) -> None:
    async def scenario(engine: Engine) -> None:
        *ticks, last = await parts(engine, asking("ticker"))
        assert ticks == TICKS
        assert json.loads(last)["label"] == LABELS[3]
        for _ in range(2):
            assert (await answer(engine, asking("ticker")))["label"] == LABELS[3]

    bench.run(scenario)


def test_a_model_that_does_not_stream_gives_one_part(bench: Bench) -> None:
    async def scenario(engine: Engine) -> None:
        (only,) = await parts(engine, asking())
        assert json.loads(only)["label"] == LABELS[3]

    bench.run(scenario)


def test_the_error_of_a_batched_model_is_an_answer(bench: Bench) -> None:
    async def scenario(engine: Engine) -> None:
        got = await answer(engine, asking(data=b"not an image"))
        assert (got["status"], got["error"]["code"]) == ("error", "INVALID_IMAGE")

    bench.run(scenario)


@pytest.mark.parametrize("request_", [asking("nothing"), asking(version="9.9")])
def test_a_model_or_version_that_is_not_loaded_is_unknown(
    bench: Bench, request_: EngineRequest
) -> None:
    async def scenario(engine: Engine) -> None:
        with pytest.raises(UnknownModelError):
            await engine.call(request_, _PATIENCE_S)
        with pytest.raises(UnknownModelError):
            await parts(engine, request_)
        with pytest.raises(UnknownModelError):
            await engine.unload(request_.model, request_.version or "1.0")

    bench.run(scenario)


def test_a_model_that_is_not_loaded_has_no_description(bench: Bench) -> None:
    async def scenario(engine: Engine) -> None:
        with pytest.raises(UnknownModelError):
            await engine.describe("nothing")

    bench.run(scenario)


def test_a_call_that_takes_too_long_ends_before_the_model_does_and_the_next_is_answered(
    bench: Bench, hold: Hold
) -> None:
    async def scenario(engine: Engine) -> None:
        with pytest.raises(DeadlineError):
            await engine.call(asking("ticker", params=hold.params), 0.3)
        with pytest.raises(DeadlineError):
            await anext(aiter(engine.stream(asking("ticker", params=hold.params), 0.3)))
        hold.release()
        assert (await answer(engine, asking("ticker")))["label"] == LABELS[3]

    bench.run(scenario)


def test_a_caller_who_goes_away_leaves_the_model_well(bench: Bench, hold: Hold) -> None:
    async def scenario(engine: Engine) -> None:
        held = asyncio.create_task(engine.call(asking("ticker", params=hold.params), _PATIENCE_S))
        await hold.begun()
        held.cancel()
        with pytest.raises(asyncio.CancelledError):
            await held
        hold.release()
        async with aclosing(opened(engine, asking("ticker"))) as stream:
            assert await anext(stream) == TICKS[0]
        assert (await answer(engine, asking("ticker")))["label"] == LABELS[3]

    bench.run(scenario)


def test_an_archive_that_was_exchanged_after_its_verification_is_not_loaded(
    bench: Bench, tmp_path: Path
) -> None:
    if not bench.reads_files:
        pytest.skip("the stand-in reads no archive")
    path = Path(shutil.copy(bench.archives.newer.path, tmp_path))
    verified = replace(verify_archive(path), signed_by="the key of a test")
    with zipfile.ZipFile(path, "a") as opened:
        opened.writestr("torch.py", b"raise SystemExit\n")

    async def scenario(engine: Engine) -> None:
        with pytest.raises(ModelNotReadyError, match="was changed after it was verified"):
            await engine.load(verified)
        assert [each.version for each in await engine.describe("tiny")] == ["1.0"]
        await engine.load(replace(bench.archives.newer, signed_by="the key of a test"))
        assert (await answer(engine, asking(version="2.0")))["status"] == "ok"
        await engine.unload("tiny", "2.0")

    bench.run(scenario)


def test_a_version_is_loaded_beside_another_and_unloaded(bench: Bench) -> None:
    newer = bench.archives.newer

    async def scenario(engine: Engine) -> None:
        await engine.load(newer)
        states = {each.version: each for each in await engine.describe("tiny")}
        assert states["1.0"].default
        assert not states["2.0"].default
        assert states["2.0"].health.serving
        assert (await answer(engine, asking()))["version"] == "1.0"
        got = await answer(engine, asking(version="2.0"))
        assert (got["label"], got["archive_digest"]) == (LABELS[3], newer.digest)
        with pytest.raises(InvalidRequestError, match="loaded already"):
            await engine.load(newer)
        await engine.unload("tiny", "2.0")
        assert [each.version for each in await engine.describe("tiny")] == ["1.0"]
        with pytest.raises(UnknownModelError):
            await engine.call(asking(version="2.0"), _PATIENCE_S)

    bench.run(scenario)


def test_a_new_default_version_answers_at_once_and_the_old_one_can_go(bench: Bench) -> None:
    tiny, newer = bench.archives.tiny, bench.archives.newer

    async def scenario(engine: Engine) -> None:
        await engine.load(newer, default=True)
        assert (await answer(engine, asking()))["version"] == "2.0"
        assert (await answer(engine, asking(version="1.0")))["version"] == "1.0"
        with pytest.raises(InvalidRequestError, match="default version"):
            await engine.unload("tiny", "2.0")
        await engine.unload("tiny", "1.0")
        assert [each.version for each in await engine.describe("tiny")] == ["2.0"]
        await engine.load(tiny, default=True)
        await engine.unload("tiny", "2.0")
        assert (await answer(engine, asking()))["version"] == "1.0"

    bench.run(scenario)


def test_the_default_goes_over_to_a_loaded_version_and_back(bench: Bench) -> None:
    async def scenario(engine: Engine) -> None:
        await engine.load(bench.archives.newer)
        wire = inference_pb2.PredictionsRequest(
            model_name="tiny", model_version="1.0", input={"data": bright_tile(2)}
        ).SerializeToString()
        for version in ("2.0", "1.0"):
            await engine.set_default("tiny", version)
            assert (await answer(engine, asking()))["version"] == version
            # The version of a request wins over the one on TorchServe's wire.
            named = EngineRequest("tiny", version, {}, new_request_id(), wire=wire)
            assert (await answer(engine, named))["version"] == version
        with pytest.raises(UnknownModelError):
            await engine.set_default("tiny", "9.9")
        await engine.unload("tiny", "2.0")

    bench.run(scenario)


def test_the_number_of_workers_changes_while_a_version_answers(bench: Bench) -> None:
    async def scenario(engine: Engine) -> None:
        for number in (2, 1):
            await engine.scale("ticker", "1.0", number)
            (ticker,) = await engine.describe("ticker")
            assert ticker.workers == number
            assert (await answer(engine, asking("ticker")))["label"] == LABELS[3]

    bench.run(scenario)


def test_a_model_goes_with_its_last_version_and_comes_back_with_its_workers(bench: Bench) -> None:
    async def scenario(engine: Engine) -> None:
        await engine.unload("ticker", "1.0")
        assert {each.name for each in await engine.describe()} == {"tiny"}
        await engine.load(bench.archives.ticker, workers=2)
        (ticker,) = await engine.describe("ticker")
        assert ticker.default
        assert ticker.workers == 2
        assert ticker.workers_ready == 2
        await engine.unload("ticker", "1.0")
        await engine.load(bench.archives.ticker)
        assert (await answer(engine, asking("ticker")))["label"] == LABELS[3]

    bench.run(scenario)


@pytest.mark.parametrize(
    "bench",
    [
        pytest.param("direct", marks=pytest.mark.process),
        pytest.param("torchserve", marks=pytest.mark.torchserve),
    ],
    indirect=True,
)
def test_a_version_whose_workers_do_not_start_leaves_nothing_behind(bench: Bench) -> None:
    async def scenario(engine: Engine) -> None:
        for _ in range(2):
            with pytest.raises(ModelNotReadyError, match=r"tiny 3\.0 cannot be loaded"):
                await engine.load(bench.archives.broken)
        assert [each.version for each in await engine.describe("tiny")] == ["1.0"]
        assert (await answer(engine, asking()))["version"] == "1.0"

    bench.run(scenario)


def test_a_drained_engine_ends_what_runs_and_takes_nothing_new(bench: Bench, hold: Hold) -> None:
    async def scenario(engine: Engine) -> None:
        held = asyncio.create_task(answer(engine, asking("ticker", params=hold.params)))
        await hold.begun()
        draining = asyncio.create_task(engine.drain(_PATIENCE_S))
        await asyncio.sleep(0)  # it has begun
        refused: list[Callable[[], Coroutine[Any, Any, Any]]] = [
            lambda: engine.call(asking(), _PATIENCE_S),
            lambda: parts(engine, asking()),
            lambda: engine.describe("tiny"),
        ]
        for again in refused:
            with pytest.raises(ServerUnreachableError):
                await again()
        assert not held.done()
        assert not draining.done()
        hold.release()
        assert (await held)["label"] == LABELS[3]
        await draining

    bench.run_to_the_end(scenario)
