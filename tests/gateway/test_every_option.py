"""Every option that a task declares reaches the engine through every face that answers the task.

The client and the command line are held to it, too.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf.message import Message

from medserve.client import AsyncClient
from medserve.errors import InvalidRequestError
from medserve.gateway.core.gateway import Gateway
from medserve.gateway.faces.v1.messages import OPTION_KEYS
from medserve.spec import Task
from medserve.tasks import OPTIONS, Option, declared
from medserve.wire import inference_pb2, inference_pb2_grpc
from medserve.wire import open_inference_pb2 as oip
from medserve.wire import open_inference_pb2_grpc as oip_grpc
from medserve.wire.v1 import imaging_pb2 as pb
from medserve.wire.v1 import imaging_pb2_grpc as pb_grpc
from tests.cli.conftest import Medserve
from tests.cli.conftest import medserve as medserve
from tests.gateway.faces import served
from tests.gateway.fake_engine import FakeEngine, Request, fake_gateway, model
from tests.gateway.test_rest import ask
from tests.web.visiting import PACK, begin, pack, visiting

pytestmark = pytest.mark.loopback

_NAMES = {
    Task.CLASSIFICATION: "kinds",
    Task.VOLUMES: "organs",
    Task.FRAMES: "gland",
    Task.GENERATION: "sampler",
}
_WORDS = {
    "class": "t2",
    "sampler": "ddim",
    "view": "axial",
    "select": "series=5,echo_time=30",
}
_NUMBERS = {"n": 2, "top_k": 2, "size": 64, "guidance": 0.5}
# What an extra file of a JSON answer needs beside it.
_BESIDE = {"overlay": {"output": "json"}, "uncertainty": {"output": "json"}}
# The form of the page has no control for these: it always asks for JSON with an overlay.
_OF_THE_PAGE = ("output", "format", "overlay")
# The command line asks for what it writes: which flags those are, and what they ask for.
_OF_WHAT_IS_WRITTEN: dict[str, tuple[list[str], Any]] = {
    "output": ([], "json"),
    "format": (["--format", "dicom-seg"], "dicom-seg"),
    "overlay": ([], True),
}

_EVERY_OPTION = [
    pytest.param(task, option, id=f"{task}-{option.key}")
    for task, options in OPTIONS.items()
    for option in declared(options)
]


def sample(task: Task, option: Option) -> Any:
    """A value that is not the default, as JSON."""
    if option.choices and option.key not in _WORDS:
        if option.key == "output":
            return "overlay"
        return "npz" if task is Task.GENERATION else "dicom-seg"
    if option.kind is str:
        return _WORDS[option.key]
    if option.kind is bool:
        return True
    if option.count > 1:
        return [1.0, 1.5, 2.5][: option.count]
    return _NUMBERS.get(option.key, 3 if option.kind is int else 1.5)


def refuses(request: Request) -> bytes:
    """What comes back is the subject of other tests."""
    raise InvalidRequestError("expected nothing more of this engine")


def gateway(engine: FakeEngine) -> Gateway:
    labels = {Task.VOLUMES: ("background", "liver", "tumour"), Task.FRAMES: ("background", "gland")}
    models = [
        model(name, task, labels=labels.get(task, ("t1", "t2"))) for task, name in _NAMES.items()
    ]
    return fake_gateway(engine, *models)


def reached(engine: FakeEngine, key: str) -> Any:
    """The value of the option with which the engine was asked."""
    assert engine.requests, "the engine was not asked"
    return json.loads(engine.requests[-1].inputs["params"])[key]


@pytest.mark.parametrize(("task", "option"), _EVERY_OPTION)
def test_an_option_reaches_the_engine_over_rest(task: Task, option: Option) -> None:
    engine = FakeEngine(refuses)
    value = sample(task, option)
    wanted = {option.key: value, **_BESIDE.get(option.key, {})}
    path = f"/v1/models/{_NAMES[task]}"
    octets = {"content-type": "application/octet-stream"}
    if task is Task.GENERATION:
        ask(gateway(engine), "POST", f"{path}/sample", json=wanted)
    else:
        query = {key: _text(each) for key, each in wanted.items()}
        verb = "classify" if task is Task.CLASSIFICATION else "segment"
        ask(
            gateway(engine), "POST", f"{path}/{verb}",
            params=query, content=b"file", headers=octets,
        )  # fmt: skip
    assert reached(engine, option.key) == value


@pytest.mark.parametrize(("task", "option"), _EVERY_OPTION)
def test_an_option_reaches_the_engine_over_the_open_inference_protocol(
    task: Task, option: Option
) -> None:
    engine = FakeEngine(refuses)
    value = sample(task, option)
    message = oip.ModelInferRequest(model_name=_NAMES[task])
    if task is not Task.GENERATION:
        tensor = message.inputs.add(name="data", datatype="BYTES", shape=[1])
        tensor.contents.bytes_contents.append(b"file")
    for key, each in {option.key: value, **_BESIDE.get(option.key, {})}.items():
        shown = _text(each) if isinstance(each, list) else each
        kinds = {bool: "bool_param", int: "int64_param", str: "string_param", float: "double_param"}
        setattr(message.parameters[key], kinds[type(shown)], shown)
    _grpc(gateway(engine), lambda channel: oip_grpc.GRPCInferenceServiceStub(channel), message)
    assert reached(engine, option.key) == value


@pytest.mark.parametrize(("task", "option"), _EVERY_OPTION)
def test_an_option_reaches_the_engine_over_the_typed_contract(task: Task, option: Option) -> None:
    engine = FakeEngine(refuses)
    value = sample(task, option)
    kinds: dict[Task, Any] = {
        Task.CLASSIFICATION: pb.ClassifySettings,
        Task.GENERATION: pb.SampleRequest,
    }
    message = kinds.get(task, pb.SegmentSettings)(model_name=_NAMES[task])
    for key, each in {option.key: value, **_BESIDE.get(option.key, {})}.items():
        _set(message, key, each)
    _grpc(gateway(engine), lambda channel: pb_grpc.ImagingServiceStub(channel), message)
    assert reached(engine, option.key) == value


@pytest.mark.parametrize(("task", "option"), _EVERY_OPTION)
def test_an_option_reaches_the_engine_from_the_page(task: Task, option: Option) -> None:
    engine = FakeEngine(refuses)
    name, value = _NAMES[task], sample(task, option)
    wanted = {option.key: value}

    async def visit() -> None:
        async with visiting(gateway(engine)) as (_, [client]):
            if task is Task.GENERATION:
                await client.post("/samples", json={"model": name, **wanted})
            elif task is Task.CLASSIFICATION:
                job = await begin(client, "classify", name, options=wanted)
                await client.post(f"{job}/files", content=pack({"a": b"file"}), headers=PACK)
            else:
                job = await begin(client, "segment", name)
                await client.post(f"{job}/volume", content=pack({"a": b"file"}), headers=PACK)
                await client.post(f"{job}/segmentation", json=wanted)

    asyncio.run(visit())
    assert reached(engine, option.key) == value


@pytest.mark.parametrize("task", [Task.VOLUMES, Task.FRAMES, Task.GENERATION])
def test_the_form_of_the_page_offers_every_option_but_what_the_page_decides(task: Task) -> None:
    pages = {Task.GENERATION: "/generate"}

    async def visit() -> str:
        async with visiting(gateway(FakeEngine(refuses))) as (_, [client]):
            return (await client.get(pages.get(task, "/segment"))).text

    found = re.search(r'id="page">(.*?)</script>', asyncio.run(visit()), re.DOTALL)
    assert found is not None
    [offered] = [each for each in json.loads(found[1])["models"] if each["task"] == task]
    own = _OF_THE_PAGE if task.segments else ()
    keys = [option.key for option in declared(OPTIONS[task]) if option.key not in own]
    assert [each["name"] for each in offered["options"]] == keys
    assert all(each["label"] and each["help"] for each in offered["options"])


@pytest.mark.parametrize(("task", "option"), _EVERY_OPTION)
def test_an_option_reaches_the_engine_over_the_contract_of_torchserve(
    task: Task, option: Option
) -> None:
    engine = FakeEngine(refuses)
    value = sample(task, option)
    wanted = {option.key: value, **_BESIDE.get(option.key, {})}
    inputs = {"params": json.dumps(wanted).encode()}
    if task is not Task.GENERATION:
        inputs["data"] = b"file"
    message = inference_pb2.PredictionsRequest(model_name=_NAMES[task], input=inputs)
    _grpc(gateway(engine), inference_pb2_grpc.InferenceAPIsServiceStub, message)
    assert reached(engine, option.key) == value
    OPTIONS[task].from_params(wanted)  # as the handler reads them


@pytest.mark.parametrize(("task", "option"), _EVERY_OPTION)
def test_an_option_reaches_the_engine_from_the_client(task: Task, option: Option) -> None:
    engine = FakeEngine(refuses)
    value = sample(task, option)
    wanted = {option.key: value, **_BESIDE.get(option.key, {})}
    options: Any = OPTIONS[task].from_params(wanted)

    async def ask() -> None:
        async with served(gateway(engine)) as address, AsyncClient(address) as client:
            name = _NAMES[task]
            asking: dict[Task, Any] = {
                Task.CLASSIFICATION: lambda: client.classify_one(name, b"file", options=options),
                Task.VOLUMES: lambda: client.segment(name, b"file", options=options),
                Task.FRAMES: lambda: client.segment_frame(name, b"file", options=options),
                Task.GENERATION: lambda: client.sample_all(name, options),
            }
            with contextlib.suppress(InvalidRequestError):
                await asking[task]()

    asyncio.run(ask())
    assert reached(engine, option.key) == value


@pytest.mark.parametrize(("task", "option"), _EVERY_OPTION)
def test_an_option_reaches_the_engine_from_the_command_line(
    task: Task, option: Option, medserve: Medserve, tmp_path: Path
) -> None:
    engine = FakeEngine(refuses)
    value = sample(task, option)
    flag = f"--{option.key.replace('_', '-')}"
    arguments = [flag] if value is True else [flag, _text(value)]
    if task.segments and option.key in _OF_WHAT_IS_WRITTEN:
        arguments, value = _OF_WHAT_IS_WRITTEN[option.key]
    if (task, option.key) == (Task.GENERATION, "n"):
        arguments = [_text(value)]
    image = tmp_path / "image"
    image.write_bytes(b"file")
    command: tuple[Any, ...] = ("predict", _NAMES[task], image)
    if task is Task.GENERATION:
        command = ("sample", "--model", _NAMES[task])

    async def ask() -> None:
        async with served(gateway(engine)) as address:
            out = ("--out", tmp_path / "out", "--address", address)
            await asyncio.to_thread(medserve, *command, *arguments, *out)

    asyncio.run(ask())
    assert reached(engine, option.key) == value


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def _set(message: Message, key: str, value: Any) -> None:
    names = {own: field for field, own in OPTION_KEYS.items()}
    fields = message.DESCRIPTOR.fields_by_name
    field: Any = fields[key] if key in fields else fields[names[key]]
    if field.enum_type is not None:
        prefix = field.enum_type.values[0].name.removesuffix("UNSPECIFIED")
        value = field.enum_type.values_by_name[prefix + value.upper().replace("-", "_")].number
    if isinstance(value, list):
        getattr(message, field.name).extend(value)
    else:
        setattr(message, field.name, value)


def _grpc(to: Gateway, stub_of: Any, message: Any) -> None:
    """Send one request over a real connection; the engine's refusal ends the call."""

    async def run() -> None:
        async with served(to) as address, grpc.aio.insecure_channel(address) as channel:
            stub = stub_of(channel)
            with contextlib.suppress(grpc.aio.AioRpcError):
                if isinstance(message, oip.ModelInferRequest):
                    await stub.ModelInfer(message)
                elif isinstance(message, inference_pb2.PredictionsRequest):
                    await stub.Predictions(message)
                elif isinstance(message, pb.SampleRequest):
                    [each async for each in stub.Sample(message)]
                elif isinstance(message, pb.ClassifySettings):
                    image = pb.ClassifyRequest(image=pb.ImageFile(id="a", content=b"file"))
                    first = pb.ClassifyRequest(settings=message)
                    [each async for each in stub.Classify(iter([first, image]))]
                else:
                    settings = pb.SegmentRequest(settings=message)
                    parts = iter([settings, pb.SegmentRequest(chunk=b"file")])
                    [each async for each in stub.Segment(parts)]

    asyncio.run(run())
