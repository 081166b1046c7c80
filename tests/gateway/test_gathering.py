"""Single calls travel together, and nobody can tell: each gets the answer of a call of its own."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from handlers.answer import Envelope, Outcome
from medserve.engine.interface import EngineRequest, WorkerLostError
from medserve.errors import (
    DeadlineError,
    InvalidImageError,
    MedserveError,
    PayloadTooLargeError,
    ServerBusyError,
    ServerFailedError,
)
from medserve.gateway.core.gateway import (
    Caller,
    EngineCall,
    Face,
    Gateway,
    Guards,
    Limits,
    error_in,
    new_request_id,
)
from medserve.spec import ServingSpec, Task
from medserve.tasks.result import Provenance
from medserve.wire import inference_pb2
from tests.gateway.fake_engine import FakeEngine, Request, fake_gateway, model

_ENVELOPE = Envelope(Provenance("tiny", "1.0", 'sha256:"items":[0'))
_MOST_ANSWERED = 6  # files of a call whose answer fits


def outcome(file: bytes, request: EngineRequest | Request) -> Outcome:
    """What becomes of one file; the first word of it says."""
    if file.startswith(b"bad"):
        return InvalidImageError('expected an image, got "items":[ and other text')
    if file.startswith(b"bug"):
        return ServerFailedError(f"internal error, reference {request.request_id}")
    content = {"label": file[:20].decode(), "options": request.inputs.get("params", b"").decode()}
    return json.dumps(content, separators=(",", ":")).encode()


def answered(request: EngineRequest | Request) -> bytes:
    """The answer of a worker, in the form of `handlers.answer`; raises where it has none."""
    files = files_of(request.inputs)
    for word, error in _FAILURES.items():
        if any(file.startswith(word) for file in files):
            raise error
    if len(files) > _MOST_ANSWERED:
        return _ENVELOPE.single(PayloadTooLargeError("send fewer files in one call"))
    outcomes = [outcome(file, request) for file in files]
    return _ENVELOPE.single(outcomes[0]) if "data" in request.inputs else _ENVELOPE.packed(outcomes)


def files_of(inputs: Any) -> list[bytes]:
    return [value for name, value in inputs.items() if name.startswith("data")]


_FAILURES: dict[bytes, MedserveError] = {
    b"kills": WorkerLostError("the worker ended"),
    b"fails": ServerFailedError("the model failed on this request"),
}


@dataclass
class Worker(FakeEngine):
    """Answers after as many turns of the event loop as it is told.

    Attributes:
        turns: For each call, in order; the last stays.
        asked: What came.
    """

    turns: Sequence[int] = (3,)
    asked: list[EngineRequest] = field(default_factory=list)

    async def call(self, request: EngineRequest, timeout_s: float) -> bytes:
        """As a worker of `handlers` answers."""
        self.asked.append(request)
        for _ in range(self.turns[min(len(self.asked), len(self.turns)) - 1]):
            await asyncio.sleep(0)
        if self.hold is not None:
            await self.hold.wait()
        return answered(request)

    @property
    def sizes(self) -> list[int]:
        """Files in each call that came."""
        return [len(files_of(request.inputs)) for request in self.asked]


def worker(**changes: Any) -> Worker:
    return Worker(lambda _: b"", **changes)


def gateway(engine: FakeEngine, **limits: Any) -> Gateway:
    serving = ServingSpec(1, 1, batch_size=16, job_queue_size=1000)
    return fake_gateway(engine, model(serving=serving), guards=Guards(Limits(**limits)))


def call(file: bytes | Sequence[bytes] = b"a", **changes: Any) -> EngineCall:
    files = (
        {"data": file}
        if isinstance(file, bytes)
        else {f"data.{place}": each for place, each in enumerate(file)}
    )
    inputs = files | changes.pop("more", {})
    defaults: dict[str, Any] = {
        "version": "",
        "inputs": inputs,
        "caller": Caller("ward-7"),
        "request_id": new_request_id(),
    }
    return EngineCall("tiny", **(defaults | changes))


async def told(to: Gateway, wanted: EngineCall) -> bytes | tuple[str, str]:
    """An answer, or the error in its place."""
    try:
        return await to.predict(wanted)
    except MedserveError as error:
        return error.code, error.message


async def turns(number: int) -> None:
    for _ in range(number):
        await asyncio.sleep(0)


def test_calls_that_come_while_the_engine_has_no_room_leave_together() -> None:
    async def scenario() -> tuple[list[bytes], Worker]:
        engine = worker(hold=asyncio.Event())
        to = gateway(engine)
        asking = [asyncio.ensure_future(to.predict(call(b"%d" % n))) for n in range(8)]
        await turns(20)
        assert engine.hold is not None
        engine.hold.set()
        return await asyncio.gather(*asking), engine

    answers, engine = asyncio.run(scenario())
    assert [json.loads(answer)["label"] for answer in answers] == [str(n) for n in range(8)]
    assert engine.sizes == [1, 1, 4, 2]  # two find room; the others leave as it comes free


def test_a_call_that_comes_alone_waits_for_nobody_and_leaves_as_it_came() -> None:
    engine = worker()
    message = inference_pb2.PredictionsRequest(model_name="tiny", input={"data": b"a"})
    wire = message.SerializeToString()
    alone = call(b"a", wire=wire, face=Face.TORCHSERVE)
    asyncio.run(gateway(engine).predict(alone))
    (asked,) = engine.asked
    assert (asked.wire, asked.request_id) == (wire, alone.request_id)


@pytest.mark.parametrize(
    ("first", "others"),
    [
        ({"version": "1.0"}, {"version": "2.0"}),
        ({"more": {"params": b'{"top_k":1}'}}, {"more": {"params": b'{"top_k":2}'}}),
        ({"more": {"params": b'{"top_k":1}'}}, {}),
    ],
)
def test_calls_of_other_versions_or_options_do_not_travel_together(
    first: dict[str, Any], others: dict[str, Any]
) -> None:
    async def scenario() -> Worker:
        engine = worker(hold=asyncio.Event())
        serving = ServingSpec(1, 1, batch_size=16)
        versions = [model(serving=serving, version=version) for version in ("1.0", "2.0")]
        to = fake_gateway(engine, *versions)
        kinds = (first, others)
        asking = [asyncio.ensure_future(to.predict(call(b"a", **kinds[n % 2]))) for n in range(12)]
        await turns(20)
        assert engine.hold is not None
        engine.hold.set()
        await asyncio.gather(*asking)
        return engine

    engine = asyncio.run(scenario())
    assert max(engine.sizes) > 1
    kept = {(each.version, each.inputs.get("params")) for each in engine.asked}
    assert len(kept) == 2
    for version, params in kept:
        mine = [e for e in engine.asked if (e.version, e.inputs.get("params")) == (version, params)]
        assert sum(len(files_of(each.inputs)) for each in mine) == 6


@pytest.mark.parametrize(
    "wanted",
    [
        call(b"a", more={"params": b'{"explain":true}'}),
        call(b"a", more={"params": b'{"\\u0065xplain":true}'}),
        call(b"a", more={"params": b"no JSON"}),
        call(b"a", more={"params": b'{"top_k":' + b"1" * 2000 + b"}"}),
        call(b"a", more={"data_file": b"name"}),
        call(b"a", more={"unknown": b""}),
        call(bytes(2**20 + 1)),
        call([b"a"] * 20),
        call(b"", inputs={}, wire=b"\x0a\x04tiny"),
    ],
    ids=lambda wanted: ",".join(wanted.inputs)[:30] or "wire",
)
def test_a_call_of_another_kind_goes_its_own_way(wanted: EngineCall) -> None:
    async def scenario() -> None:
        engine = worker(hold=asyncio.Event())
        to = gateway(engine)
        asking = [asyncio.ensure_future(told(to, wanted)) for _ in range(6)]
        await turns(20)
        assert [request.request_id for request in engine.asked] == [wanted.request_id] * 6
        assert engine.hold is not None
        engine.hold.set()
        await asyncio.gather(*asking)

    asyncio.run(scenario())


def test_each_goes_alone_to_a_model_of_one_file_a_call_and_where_nothing_is_gathered() -> None:
    async def scenario(task: Task, gather: int) -> list[bool]:
        engine = worker()
        to = fake_gateway(engine, model(task=task), guards=Guards(Limits(gather=gather)))
        await asyncio.gather(*(to.predict(call(b"%d" % n)) for n in range(8)))
        return [len(files_of(request.inputs)) == 1 for request in engine.asked]

    for task in (Task.VOLUMES, Task.FRAMES):
        assert asyncio.run(scenario(task, 32)) == [True] * 8
    assert asyncio.run(scenario(Task.CLASSIFICATION, 1)) == [True] * 8


def test_no_call_is_larger_than_its_bounds() -> None:
    async def scenario(files: Sequence[bytes], gather: int) -> Worker:
        engine = worker(hold=asyncio.Event())
        to = gateway(engine, gather=gather)
        asking = [asyncio.ensure_future(told(to, call(each))) for each in files]
        await turns(20)
        assert engine.hold is not None
        engine.hold.set()
        await asyncio.gather(*asking)
        return engine

    engine = asyncio.run(scenario([b"a"] * 30, gather=5))
    assert max(engine.sizes) == 5
    engine = asyncio.run(scenario([bytes(2**19)] * 30, gather=64))
    assert max(engine.sizes) == 8  # 4 MiB


def test_a_caller_who_goes_before_the_call_has_left_costs_the_engine_nothing() -> None:
    async def scenario() -> tuple[Worker, Gateway]:
        engine = worker(hold=asyncio.Event())
        to = gateway(engine)
        soon = time.monotonic() + 0.02
        asking = [asyncio.ensure_future(told(to, call(b"%d" % n))) for n in range(2)]
        late = asyncio.ensure_future(told(to, call(b"late", deadline=soon)))
        gone = asyncio.ensure_future(told(to, call(b"gone")))
        stays = asyncio.ensure_future(told(to, call(b"stays")))
        await turns(20)
        gone.cancel()
        assert (await late)[0] == DeadlineError.code
        await turns(20)
        assert to.gate(model()).at_work == 3  # what has not left gives its place back
        assert engine.hold is not None
        engine.hold.set()
        await asyncio.gather(*asking, stays)
        return engine, to

    engine, to = asyncio.run(scenario())
    seen = [file for request in engine.asked for file in files_of(request.inputs)]
    assert seen == [b"0", b"1", b"stays"]
    assert to.budget.reserved == 0


def test_a_caller_who_goes_later_ends_the_work_of_nobody_else(tmp_path: Any) -> None:
    from medserve.gateway.core.cancelled import CancelledCalls

    async def scenario() -> tuple[list[EngineRequest], list[str]]:
        engine = worker(hold=asyncio.Event())
        serving = ServingSpec(1, 1, batch_size=16)
        guards = Guards(cancelled=CancelledCalls(tmp_path))
        to = fake_gateway(engine, model(serving=serving), guards=guards)
        asking = [asyncio.ensure_future(told(to, call(b"%d" % n))) for n in range(2)]
        await turns(10)
        assert engine.hold is not None
        held, engine.hold = engine.hold, asyncio.Event()
        together = [asyncio.ensure_future(told(to, call(b"a"))) for _ in range(4)]
        await turns(10)
        held.set()
        await asyncio.gather(*asking)
        await turns(10)
        together[0].cancel()
        await turns(10)
        marks = [each.name for each in tmp_path.iterdir()]
        engine.hold.set()
        answers = await asyncio.gather(*together[1:])
        assert all(isinstance(answer, bytes) for answer in answers)
        return engine.asked, marks

    asked, marks = asyncio.run(scenario())
    gathered = [each for each in asked if len(files_of(each.inputs)) > 1]
    assert gathered
    assert not {each.request_id for each in gathered} & {*marks}


def test_gathered_work_has_the_time_of_the_caller_who_waits_longest() -> None:
    async def scenario(deadlines: Sequence[float | None]) -> float | None:
        engine = worker(hold=asyncio.Event())
        to = gateway(engine)
        asking = [asyncio.ensure_future(told(to, call(b"x"))) for _ in range(2)]
        await turns(10)
        asking += [asyncio.ensure_future(told(to, call(deadline=d))) for d in deadlines]
        await turns(10)
        assert engine.hold is not None
        engine.hold.set()
        await asyncio.gather(*asking)
        (gathered,) = [each for each in engine.asked if len(files_of(each.inputs)) == 2]
        return gathered.deadline

    first = time.monotonic() + 60
    assert asyncio.run(scenario([first, first + 1])) == first + 1
    assert asyncio.run(scenario([first, None])) is None


@pytest.mark.parametrize("error", [ServerBusyError("busy"), DeadlineError("late")])
def test_what_concerns_all_is_told_to_each_and_not_asked_again(error: MedserveError) -> None:
    def refuse(_: Request) -> bytes:
        raise error

    async def scenario() -> tuple[list[Any], FakeEngine]:
        engine = FakeEngine(refuse, hold=asyncio.Event())
        to = gateway(engine)
        asking = [asyncio.ensure_future(told(to, call())) for _ in range(10)]
        await turns(20)
        assert engine.hold is not None
        engine.hold.set()
        return await asyncio.gather(*asking), engine

    answers, engine = asyncio.run(scenario())
    assert answers == [(error.code, error.message)] * 10
    assert len(engine.requests) == 4


def test_who_shared_a_call_that_took_too_long_is_asked_again_alone_even_without_batches() -> None:
    async def scenario() -> tuple[list[Any], list[int]]:
        engine = worker(hold=asyncio.Event())
        serving = ServingSpec(1, 1, batch_size=1, response_timeout=1)
        to = fake_gateway(engine, model(serving=serving))
        asking = [asyncio.ensure_future(told(to, call(b"ok-%d" % n))) for n in range(5)]
        asking.append(asyncio.ensure_future(told(to, call(b"kills"))))
        await turns(20)
        time.sleep(1.0)
        assert engine.hold is not None
        engine.hold.set()
        return await asyncio.gather(*asking), engine.sizes

    answers, sizes = asyncio.run(scenario())
    assert max(sizes) > 1
    assert [isinstance(answer, bytes) for answer in answers] == [True] * 5 + [False]


def test_an_answer_in_another_form_is_given_to_nobody() -> None:
    strange = [
        b'{"items":[]}',
        b'{"model":"tiny","items":[{"index":0,"a":1},{"index":0,"a":1}]}',
        b'{"model":"tiny","items":[{"index":1,"a":1},{"index":0,"a":1}]}',
        b'{"model":"tiny","items":[{"index":0,"a":1}, {"index":1,"a":1}]}',
        b'{"model":"tiny","items":[{"index":0,"a":1},{"index":1,"a":1}],"more":1}',
        b'{"model":"tiny","items":[{"index":0,"a":1},{"index":1,"a":1}',
        b"\x00",
    ]
    for packed in strange:

        def answers(request: Request, packed: bytes = packed) -> bytes:
            return answered(request) if "data" in request.inputs else packed

        async def scenario(answers: Callable[[Request], bytes] = answers) -> list[Any]:
            to = gateway(FakeEngine(answers))
            return await asyncio.gather(*(told(to, call(b"%d" % n)) for n in range(6)))

        assert [json.loads(each)["label"] for each in asyncio.run(scenario())] == [*"012345"]


@dataclass(frozen=True)
class Asked:
    """One caller: after how many turns they come, and after how many they go."""

    files: bytes | tuple[bytes, ...]
    params: bytes
    comes: int
    goes: int | None


_WORDS = st.sampled_from([b"ok"] * 6 + [b"bad", b"bug", b"fails", b"kills"])
_ASKED = st.builds(
    Asked,
    st.one_of(_WORDS, _WORDS, st.lists(_WORDS, min_size=1, max_size=3).map(tuple)),
    st.sampled_from([b"", b"", b'{"top_k":1}']),
    st.integers(0, 12),
    st.one_of(st.none(), st.none(), st.integers(0, 15)),
)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(_ASKED, min_size=1, max_size=24),
    st.lists(st.integers(0, 6), min_size=1, max_size=8),
    st.sampled_from([2, 5, 32]),
)
def test_everybody_gets_the_answer_of_a_call_of_their_own(
    everybody: list[Asked], paces: list[int], gather: int
) -> None:
    """Whoever comes and goes, and whatever fails: no answer is another's, and none is lost."""

    def named(number: int, asked: Asked) -> EngineCall:
        own = [b"%b-%d" % (word, number) for word in _several(asked.files)]
        more = {"params": asked.params} if asked.params else {}
        return call(own[0] if isinstance(asked.files, bytes) else own, more=more)

    async def one(to: Gateway, wanted: EngineCall, asked: Asked) -> Any:
        await turns(asked.comes)
        asking = asyncio.ensure_future(told(to, wanted))
        if asked.goes is None:
            return await asking
        await turns(asked.goes)
        asking.cancel()
        return (await asyncio.gather(asking, return_exceptions=True))[0]

    async def scenario() -> None:
        engine = worker(turns=paces)
        to = gateway(engine, gather=gather)
        calls = [named(number, asked) for number, asked in enumerate(everybody)]
        found = await asyncio.gather(*map(one, [to] * len(calls), calls, everybody))
        for wanted, asked, answer in zip(calls, everybody, found, strict=True):
            if asked.goes is None or not isinstance(answer, asyncio.CancelledError):
                assert answer == own(wanted)
        for _ in range(200):
            await asyncio.sleep(0)
        await to.close()
        assert max(engine.sizes, default=0) <= max(gather, 3)
        ids = {wanted.request_id for wanted in calls}
        for request in engine.asked:
            owners = {file.rpartition(b"-")[2] for file in files_of(request.inputs)}
            assert len(owners) == 1 or request.request_id not in ids
        assert to.gate(model()).at_work == 0
        assert to.budget.reserved == 0

    asyncio.run(scenario())


def _several(files: bytes | tuple[bytes, ...]) -> tuple[bytes, ...]:
    return (files,) if isinstance(files, bytes) else files


def own(wanted: EngineCall) -> bytes | tuple[str, str]:
    """What is told who asks alone: the engine's answer, or the error that it holds."""
    try:
        answer = answered(wanted)
    except WorkerLostError:
        ended = "the worker of tiny ended on this request each time, or it took too long; send "
        return ServerFailedError.code, ended + "another input"
    except MedserveError as error:
        return error.code, error.message
    if (refused := error_in(answer)) is not None:
        return refused.code, refused.message
    return answer
