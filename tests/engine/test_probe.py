"""The health check of a container, against a server that behaves as it is told."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent import futures
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import message_factory

from medserve.archive.read import golden_input, inspect_archive
from medserve.engine.golden import GoldenInput
from medserve.engine.torchserve.probe import ProofFile, main, probe
from medserve.errors import ModelNotReadyError
from medserve.spec import Task
from medserve.wire import inference_pb2, management_pb2
from tests.archives import packaged_fixture


@dataclass
class Engine:
    """TorchServe as seen by the probe: two calls of the two services."""

    workers: list[str] = field(default_factory=lambda: ["READY"])
    answer: bytes = b""
    asked: list[bytes] = field(default_factory=list)

    def DescribeModel(self, request: Any, context: grpc.ServicerContext) -> Any:
        """The workers that the test wants."""
        states = [{"id": str(i), "status": state} for i, state in enumerate(self.workers)]
        content = {
            "modelName": request.model_name,
            "modelVersion": "1.0",
            "minWorkers": len(states),
            "workers": states,
        }
        return management_pb2.ManagementResponse(msg=json.dumps([content]))

    def Predictions(self, request: Any, context: grpc.ServicerContext) -> Any:
        """The answer that the test wants; none at all for b"hang"."""
        self.asked.append(request.input["data"])
        if self.answer == b"hang":
            context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "nobody took it")
        return inference_pb2.PredictionResponse(prediction=self.answer)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packaged_fixture("tiny", tmp_path_factory.mktemp("store"))


@pytest.fixture
def model(archive: Path) -> GoldenInput:
    return GoldenInput.of(inspect_archive(archive))


@pytest.fixture
def engine(model: GoldenInput) -> Engine:
    good = {"status": "ok", "archive_digest": model.digest}
    return Engine(answer=json.dumps(good).encode())


def _handler(call: Callable[..., Any], service: Any, name: str) -> Any:
    request = message_factory.GetMessageClass(service.methods_by_name[name].input_type)
    return grpc.unary_unary_rpc_method_handler(
        call,
        request_deserializer=request.FromString,
        response_serializer=lambda answer: answer.SerializeToString(),
    )


@pytest.fixture
def proof(engine: Engine, model: GoldenInput) -> Iterator[ProofFile]:
    server = grpc.server(futures.ThreadPoolExecutor(4))
    services = {
        inference_pb2.DESCRIPTOR.services_by_name["InferenceAPIsService"]: ["Predictions"],
        management_pb2.DESCRIPTOR.services_by_name["ManagementAPIsService"]: ["DescribeModel"],
    }
    for service, names in services.items():
        methods = {name: _handler(getattr(engine, name), service, name) for name in names}
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(service.full_name, methods),)
        )
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    yield ProofFile(address, address, 2**22, (model,))
    server.stop(None).wait()


def test_a_model_that_answers_its_golden_input_is_ready(proof: ProofFile, engine: Engine) -> None:
    probe(proof, proof.models, timeout_s=30)
    assert engine.asked == [golden_input(proof.models[0].archive)]


def test_one_worker_of_several_is_enough(proof: ProofFile, engine: Engine) -> None:
    engine.workers = ["UNLOADING", "READY"]
    probe(proof, proof.models, timeout_s=30)
    assert engine.asked == [golden_input(proof.models[0].archive)]


def _no_worker(engine: Engine) -> None:
    engine.workers = ["UNLOADING"]


def _silent(engine: Engine) -> None:
    engine.answer = b"hang"


def _empty(engine: Engine) -> None:
    engine.answer = b""


def _other(engine: Engine) -> None:
    engine.answer = b'{"status": "ok", "archive_digest": "sha256:other"}'


def _refusing(engine: Engine) -> None:
    engine.answer = b'{"status": "error", "error": {"message": "expected an image"}}'


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_no_worker, "none of its 1 workers is ready"),
        (_silent, "its golden input was not answered: DEADLINE_EXCEEDED nobody took it"),
        (_empty, "its golden input got an empty answer"),
        (_other, "got one of 'sha256:other'"),
        (_refusing, "its golden input was refused: expected an image"),
    ],
)
def test_what_is_wrong_with_a_model_is_said(
    proof: ProofFile, engine: Engine, spoil: Callable[[Engine], None], message: str
) -> None:
    spoil(engine)
    with pytest.raises(ModelNotReadyError) as caught:
        probe(proof, proof.models, timeout_s=30)
    assert caught.value.message.startswith("tiny 1.0: ")
    assert message in caught.value.message


def test_the_exit_code_is_what_docker_and_kubernetes_read(
    proof: ProofFile, engine: Engine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "proof.json"
    flags = ["--proof-file", str(path)]
    assert main(flags) == 1
    assert capsys.readouterr().out == (
        "not ready: no model is proven yet, or the server is stopping\n"
    )
    proof.write(path)
    assert main(flags) == 0
    assert capsys.readouterr().out == "ready: tiny 1.0\n"
    engine.workers = []
    assert main([*flags, "--canary=none"]) == 1
    assert capsys.readouterr().out.startswith("not ready: tiny 1.0: ")


def test_a_server_that_is_gone_is_not_ready(model: GoldenInput, tmp_path: Path) -> None:
    path = tmp_path / "proof.json"
    nobody = "127.0.0.1:1"
    ProofFile(nobody, nobody, 2**22, (model,)).write(path)
    assert main(["--proof-file", str(path), "--timeout-s=0.5"]) == 1


@pytest.mark.parametrize(("which", "asked"), [("next", 1), ("all", 1), ("none", 0)])
def test_canaries_are_sent_as_often_as_asked(
    proof: ProofFile, engine: Engine, tmp_path: Path, which: str, asked: int
) -> None:
    path = tmp_path / "proof.json"
    proof.write(path)
    assert main(["--proof-file", str(path), "--canary", which]) == 0
    assert len(engine.asked) == asked


_WITHOUT_FLIPS = {"params": b'{"flips": false}'}  # mirror images are up to eight times the work


@pytest.mark.parametrize(
    ("task", "key", "more"),
    [
        (Task.GENERATION, "params", {}),
        (Task.FRAMES, "data", {}),
        (Task.VOLUMES, "data", _WITHOUT_FLIPS),
    ],
)
def test_a_canary_is_the_golden_input_under_the_key_that_the_task_reads(
    archive: Path, task: Task, key: str, more: dict[str, bytes]
) -> None:
    golden = replace(GoldenInput.of(inspect_archive(archive)), task=task)
    assert golden.request().inputs == {key: golden_input(archive)} | more


def test_the_file_of_a_proven_server_is_read_as_it_was_written(
    proof: ProofFile, tmp_path: Path
) -> None:
    proof.write(tmp_path / "proof.json")
    assert ProofFile.read(tmp_path / "proof.json") == proof
