"""Every face goes through the gateway, so what it promises is tested here once."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Coroutine, Iterator
from types import SimpleNamespace
from typing import Any, cast

import grpc.aio
import pytest

from medserve.engine.interface import EngineRequest, WorkerLostError
from medserve.errors import (
    AuthenticationError,
    DeadlineError,
    ForbiddenError,
    InvalidImageError,
    PayloadTooLargeError,
    ServerBusyError,
    ServerFailedError,
    UnknownModelError,
)
from medserve.gateway.core import guard
from medserve.gateway.core.gateway import (
    Caller,
    EngineCall,
    Face,
    Gateway,
    Guards,
    Limits,
    QueueFullError,
    new_request_id,
)
from medserve.gateway.core.guard import RequestGuard
from medserve.gateway.faces.torchserve import inference
from medserve.spec import ServingSpec
from medserve.wire import inference_pb2
from tests.gateway.fake_engine import FakeEngine, Request, fake_gateway, model

_OK = b'{"model":"tiny","version":"1.0","archive_digest":"sha256:0","status":"ok","label":"dark"}'
_REFUSED = _OK.replace(b'"ok"', b'"error"').replace(
    b'"label":"dark"', b'"error":{"code":"INVALID_IMAGE","message":"not an image"}'
)


def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(coroutine)


def call(name: str = "tiny", **changes: Any) -> EngineCall:
    defaults: dict[str, Any] = {
        "version": "",
        "inputs": {"data": b"pixels"},
        "caller": Caller("ward-7"),
        "request_id": new_request_id(),
    }
    return EngineCall(name, **(defaults | changes))


def answering(answer: bytes = _OK, **changes: Any) -> FakeEngine:
    return FakeEngine(lambda _: answer, **changes)


async def settled() -> None:
    """Let every task run until it waits for something."""
    for _ in range(10):
        await asyncio.sleep(0)


async def parts(gateway: Gateway, wanted: EngineCall) -> list[bytes]:
    return [part async for part in gateway.stream(wanted)]


def test_the_engine_gets_the_inputs_and_what_it_may_log_and_give_up_by() -> None:
    engine = answering()
    deadline = time.monotonic() + 5
    wanted = call(inputs={"data": b"pixels", "params": b"{}"}, deadline=deadline)
    assert run(fake_gateway(engine).predict(wanted)) == _OK
    (sent,) = engine.requests
    assert sent.inputs == {"data": b"pixels", "params": b"{}"}
    assert (sent.request_id, sent.deadline) == (wanted.request_id, deadline)


def test_a_unary_call_never_asks_for_a_stream_whatever_its_caller_wrote() -> None:
    engine = answering()
    request = inference_pb2.PredictionsRequest(
        model_name="tiny", input={"data": b"pixels", "stream": b"1", "transport": b"rest"}
    )
    for wanted in (
        call(inputs=dict(request.input)),
        call(wire=request.SerializeToString(), face=Face.TORCHSERVE),
    ):
        run(fake_gateway(engine).predict(wanted))
    assert [request.stream for request in engine.requests] == [False, False]


def test_a_request_from_the_wire_reaches_the_engine_as_it_came() -> None:
    seen = []
    engine = answering()
    answer = engine.call

    async def keep(request: EngineRequest, timeout_s: float) -> bytes:
        seen.append(request.wire)
        return await answer(request, timeout_s)

    engine.call = keep  # type: ignore[method-assign]
    known = inference_pb2.PredictionsRequest(model_name="tiny", input={"data": b"pixels"})
    message = known.SerializeToString() + b"\xa2\x06\x03abc"  # field 100, three bytes
    run(fake_gateway(engine).predict(call(wire=message, face=Face.TORCHSERVE)))
    assert seen == [message]


def test_a_stream_gives_each_chunk_and_asks_for_a_stream() -> None:
    engine = FakeEngine(lambda _: [b"one", b"two", _OK])
    assert run(parts(fake_gateway(engine), call())) == [b"one", b"two", _OK]
    assert engine.requests[0].stream


def test_a_model_outside_the_callers_scopes_is_forbidden_whether_it_exists_or_not() -> None:
    gateway = fake_gateway(answering())
    caller = Caller("ward-7", frozenset({"other"}))
    for name in ("tiny", "nothing"):
        with pytest.raises(ForbiddenError):
            run(gateway.predict(call(name, caller=caller)))
    assert run(gateway.models(caller)) == ()


def test_an_unknown_model_or_version_is_told_without_asking_the_engine() -> None:
    engine = answering()
    gateway = fake_gateway(engine)
    with pytest.raises(UnknownModelError):
        run(gateway.predict(call("nothing")))
    with pytest.raises(UnknownModelError, match=r"out of 1\.0"):
        run(gateway.predict(call(version="9.9")))
    assert engine.requests == []


def test_a_request_over_the_limit_is_refused_before_the_engine() -> None:
    engine = answering()
    gateway = fake_gateway(engine, guards=Guards(Limits(message_bytes=8)))
    with pytest.raises(PayloadTooLargeError, match="at most 8 bytes, got 9"):
        run(gateway.predict(call(inputs={"data": b"123456789"})))
    assert engine.requests == []


def test_the_error_body_of_a_batched_model_is_raised_but_stays_a_body_on_torchserves_wire() -> None:
    gateway = fake_gateway(answering(_REFUSED))
    with pytest.raises(InvalidImageError, match="not an image"):
        run(gateway.predict(call()))
    with pytest.raises(InvalidImageError):
        run(parts(gateway, call()))
    assert run(gateway.predict(call(face=Face.TORCHSERVE))) == _REFUSED


def test_a_packed_answer_with_a_failed_item_is_an_answer() -> None:
    packed = b'{"model":"tiny","items":[{"index":0,"status":"error","error":{"code":"X"}}]}'
    assert run(fake_gateway(answering(packed)).predict(call())) == packed


def test_calls_beyond_the_queue_are_refused_with_a_time_to_come_back() -> None:
    async def scenario() -> list[Any]:
        engine = answering(pause_s=0.05)
        gateway = fake_gateway(engine, guards=Guards(Limits(in_flight=1, queue=2)))
        return await asyncio.gather(
            *(gateway.predict(call()) for _ in range(5)), return_exceptions=True
        )

    outcomes = run(scenario())
    assert outcomes[:3] == [_OK, _OK, _OK]
    assert all(isinstance(outcome, QueueFullError) for outcome in outcomes[3:])
    assert all(isinstance(outcome, ServerBusyError) for outcome in outcomes[3:])
    assert outcomes[4].retry_after_s >= 1


def test_a_call_that_is_cancelled_in_the_queue_never_reaches_the_engine() -> None:
    async def scenario() -> FakeEngine:
        engine = answering(hold=asyncio.Event())
        gateway = fake_gateway(engine, guards=Guards(Limits(in_flight=1, queue=50)))
        first = asyncio.create_task(gateway.predict(call()))
        queued = [asyncio.create_task(gateway.predict(call())) for _ in range(50)]
        await settled()
        for task in queued:
            task.cancel()
        await asyncio.gather(*queued, return_exceptions=True)
        assert engine.hold is not None
        engine.hold.set()
        assert await first == _OK
        assert await gateway.predict(call()) == _OK
        return engine

    assert len(run(scenario()).requests) == 2


def test_a_cancelled_call_keeps_its_place_until_the_engine_is_done_with_it() -> None:
    async def scenario() -> tuple[int, int, FakeEngine]:
        engine = answering(hold=asyncio.Event())
        gateway = fake_gateway(engine, guards=Guards(Limits(in_flight=2, queue=1000)))
        tasks = [asyncio.create_task(gateway.predict(call())) for _ in range(1000)]
        await settled()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        reached = len(engine.requests)
        late = asyncio.create_task(gateway.predict(call()))
        await settled()
        still = len(engine.requests)
        assert engine.hold is not None
        engine.hold.set()
        assert await late == _OK
        return reached, still, engine

    reached, still, engine = run(scenario())
    assert (reached, still) == (2, 2)
    assert engine.finished == 3


def test_an_abandoned_stream_keeps_its_place_until_its_end() -> None:
    async def scenario() -> FakeEngine:
        engine = FakeEngine(lambda _: [b"chunk"] * 30, pause_s=0.005)
        gateway = fake_gateway(engine, guards=Guards(Limits(in_flight=1)))
        stream = gateway.stream(call())
        assert await anext(stream) == b"chunk"
        await stream.aclose()
        assert engine.finished == 0
        await gateway.predict(call())
        return engine

    assert run(scenario()).finished == 2


def test_a_deadline_ends_the_wait_in_the_queue_and_in_the_engine() -> None:
    async def scenario() -> list[Any]:
        gateway = fake_gateway(answering(pause_s=0.5), guards=Guards(Limits(in_flight=1)))
        soon = time.monotonic() + 0.05
        return await asyncio.gather(
            *(gateway.predict(call(deadline=soon)) for _ in range(2)), return_exceptions=True
        )

    in_engine, in_queue = run(scenario())
    assert isinstance(in_engine, DeadlineError)
    assert isinstance(in_queue, DeadlineError)


def test_a_bug_leaves_as_an_internal_error_with_a_reference_and_without_its_text() -> None:
    def broken(_: Request) -> bytes:
        raise ZeroDivisionError("patient Smith")

    wanted = call()
    with pytest.raises(ServerFailedError, match=wanted.request_id) as caught:
        run(fake_gateway(FakeEngine(broken)).predict(wanted))
    assert "Smith" not in str(caught.value)


def test_an_error_after_some_chunks_reaches_the_caller_behind_them() -> None:
    class Stumbling(FakeEngine):
        async def stream(self, request: EngineRequest, timeout_s: float) -> Any:
            yield b"one"
            raise ServerFailedError("the worker died")

    async def scenario() -> bytes:
        stream = fake_gateway(Stumbling(lambda _: b"")).stream(call())
        first = await anext(stream)
        with pytest.raises(ServerFailedError, match="worker died"):
            await anext(stream)
        return first

    assert run(scenario()) == b"one"


def test_without_tokens_everybody_may_call_and_is_named_by_their_certificate() -> None:
    gateway = fake_gateway(answering())
    assert gateway.authenticate(None) == Caller("")
    assert gateway.authenticate(None, name="scanner-3").name == "scanner-3"


def test_with_tokens_only_a_known_one_opens() -> None:
    class OneToken:
        def caller(self, token: str) -> Caller | None:
            return Caller("ward-7", frozenset({"tiny"})) if token == "right" else None

    gateway = fake_gateway(answering(), guards=Guards(tokens=OneToken()))
    assert gateway.authenticate("right").name == "ward-7"
    for token in (None, "", "wrong"):
        with pytest.raises(AuthenticationError):
            gateway.authenticate(token)


def test_a_request_id_that_could_hold_a_name_is_replaced() -> None:
    assert new_request_id("0f8fad5b-d9cb-469f-a165-70867728950e").startswith("0f8fad5b")
    assert new_request_id("Smith^John") != "Smith^John"
    assert new_request_id() != new_request_id()


def test_what_a_call_cost_is_counted_under_names_that_are_served() -> None:
    gateway = fake_gateway(answering(_REFUSED), model("tiny"))
    run(gateway.predict(call(face=Face.TORCHSERVE)))
    with pytest.raises(UnknownModelError):
        run(gateway.predict(call("Smith^John")))
    value = gateway.metrics.registry.get_sample_value
    counted = {"face": "torchserve", "model": "tiny", "status": "INVALID_IMAGE"}
    assert value("medserve_gateway_requests_total", counted) == 1
    unknown = {"face": "http", "model": "unknown", "status": "UNKNOWN_MODEL"}
    assert value("medserve_gateway_requests_total", unknown) == 1
    size = value("medserve_gateway_response_bytes_total", {"face": "torchserve", "model": "tiny"})
    assert size == len(_REFUSED)
    assert json.loads(_REFUSED)["status"] == "error"


def losing(times: int, slow: ServingSpec | None = None) -> tuple[FakeEngine, Gateway]:
    """An engine that loses its worker on the first requests, and its gateway."""

    def answer(_: Request) -> bytes:
        if len(engine.requests) <= times:
            raise WorkerLostError("the worker is gone")
        return _OK

    engine = FakeEngine(answer)
    return engine, fake_gateway(engine, model(serving=slow))


@pytest.mark.parametrize("times", [1, 4])
def test_a_call_whose_worker_is_killed_is_answered_by_the_next_one(times: int) -> None:
    engine, gateway = losing(times)
    assert run(gateway.predict(call())) == _OK
    engine, gateway = losing(times)
    assert run(parts(gateway, call())) == [_OK]
    assert len(engine.requests) == times + 1


def test_a_request_that_ends_every_worker_is_told_and_not_sent_for_ever() -> None:
    engine, gateway = losing(1000)
    with pytest.raises(ServerFailedError, match="ended on this request"):
        run(gateway.predict(call()))
    assert len(engine.requests) == 5


def test_a_stream_that_has_begun_is_not_asked_for_again() -> None:
    def answer(_: Request) -> Iterator[bytes]:
        yield b"one"
        raise WorkerLostError("the worker is gone")

    engine = FakeEngine(answer)  # type: ignore[arg-type]
    with pytest.raises(ServerBusyError):
        run(parts(fake_gateway(engine), call()))
    assert len(engine.requests) == 1


def test_a_lone_call_that_took_all_the_time_of_its_worker_is_not_asked_again() -> None:
    engine, gateway = losing(1, ServingSpec(1, 1, batch_size=1, response_timeout=1))
    answer = engine.answers

    def late(request: Request) -> Any:
        time.sleep(1.0)
        return answer(request)

    engine.answers = late
    with pytest.raises(ServerFailedError, match="too long"):
        run(gateway.predict(call()))
    assert len(engine.requests) == 1


def test_calls_whose_worker_ended_are_repeated_one_by_one() -> None:
    async def at_once() -> None:
        working = most = 0

        def answer(_: Request) -> bytes:
            if len(engine.requests) <= 4:
                raise WorkerLostError("the worker is gone")
            return _OK

        engine = FakeEngine(answer)
        ask = engine.call

        async def counted(request: EngineRequest, timeout_s: float) -> bytes:
            nonlocal working, most
            repeated = len(engine.requests) >= 4
            working += repeated
            most = max(most, working)
            try:
                await asyncio.sleep(0)
                return await ask(request, timeout_s)
            finally:
                working -= repeated

        engine.call = counted  # type: ignore[method-assign]
        gateway = fake_gateway(engine)
        answers = await asyncio.gather(*(gateway.predict(call()) for _ in range(4)))
        assert answers == [_OK] * 4
        assert most == 1

    run(at_once())


# ---- what stands before a gRPC call


class _Call:
    """A gRPC call without gRPC: what its caller sends, and how it was ended."""

    def __init__(self, message: bytes | None) -> None:
        self._message = message
        self.ended = ""

    async def read(self) -> bytes:
        if self._message is None:
            await asyncio.Event().wait()  # the caller is silent
        await asyncio.sleep(0)
        return self._message or b""

    async def abort(self, code: object, text: str, trailing_metadata: object) -> None:
        self.ended = text
        raise grpc.aio.AbortError

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return ()

    def time_remaining(self) -> None:
        return None

    def auth_context(self) -> dict[str, object]:
        return {}

    def peer(self) -> str:
        return "ipv4:203.0.113.9:40510"

    def set_trailing_metadata(self, metadata: object) -> None:
        pass


def guarded_predict(gateway: Gateway, upload_timeout_s: float = 60.0) -> Any:
    """Return `Predictions` of TorchServe's contract as the gRPC server would call it."""
    registered: list[Any] = []
    server = SimpleNamespace(add_generic_rpc_handlers=lambda given: registered.extend(given))
    inference.register(gateway, RequestGuard(cast("Any", server), gateway, upload_timeout_s))
    method = f"/{inference_pb2.DESCRIPTOR.services_by_name['InferenceAPIsService'].full_name}"
    asked = SimpleNamespace(method=f"{method}/Predictions", invocation_metadata=())
    return registered[0].service(asked).stream_unary


def test_a_call_makes_no_task_but_that_of_the_engine() -> None:
    async def main() -> int:
        predict = guarded_predict(fake_gateway(answering()))
        message = inference_pb2.PredictionsRequest(model_name="tiny", input={"data": b"pixels"})
        made: list[Any] = []

        def counted(loop: asyncio.AbstractEventLoop, work: Any, **options: Any) -> Any:
            made.append(work)
            return asyncio.Task(work, loop=loop, **options)

        asyncio.get_running_loop().set_task_factory(counted)
        answer = await predict(None, _Call(message.SerializeToString()))
        assert answer.prediction == _OK
        return len(made)

    assert run(main()) == 1


@pytest.mark.parametrize(
    ("stops", "upload_timeout_s", "told"),
    [(True, 60.0, "the server is stopping"), (False, 0.01, "expected the whole request within")],
)
def test_a_request_that_does_not_come_is_not_waited_for(
    stops: bool, upload_timeout_s: float, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "_LOOK_S", 0.01)
    monkeypatch.setattr(guard, "_SILENCE_BEFORE_THE_END_S", 0.03)

    async def main() -> str:
        gateway = fake_gateway(answering())
        silent = _Call(None)
        calling = asyncio.ensure_future(guarded_predict(gateway, upload_timeout_s)(None, silent))
        await settled()
        assert gateway.budget.reserved
        if stops:
            gateway.stopping.set()
        await calling
        assert not gateway.budget.reserved
        return silent.ended

    assert told in run(main())
