"""Whether this server is still proven: `python -m medserve.engine.torchserve.probe`.

The health check of a container, which runs inside it. TorchServe's own Ping cannot be one: it says
healthy with no model at all. A server writes its `Proof` once every model has answered its golden
input and takes it back when it stops; the probe then asks each model for a READY worker and sends
one golden input, of another model each time, because a worker can be READY and answer nobody.

Exit code 0 and one line "ready: …", or 1 and one line that says which model is not, and why.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from medserve.engine.torchserve.canary import canary_inputs
from medserve.engine.torchserve.keys import Tokens, certificate_name, read_tokens
from medserve.engine.torchserve.readiness import Endpoint, check_answer
from medserve.errors import MedserveError, ModelNotReadyError
from medserve.settings import Address
from medserve.spec import Task
from medserve.wire import inference_pb2, inference_pb2_grpc, management_pb2, management_pb2_grpc

__all__ = ["PROOF_FILE", "Proof", "ProvenModel", "main", "probe"]

PROOF_FILE = Path(tempfile.gettempdir()) / "medserve-proof.json"
_CANARIES = ("next", "all", "none")


@dataclass(frozen=True)
class ProvenModel:
    """One model that has answered its golden input."""

    name: str
    version: str
    archive: str  # path of the file that holds its golden input
    digest: str
    task: str  # decides whether the golden input is a file or parameters


@dataclass(frozen=True)
class Proof:
    """What a probe has to know of the server that it asks."""

    inference_address: str
    management_address: str
    max_message_bytes: int
    models: tuple[ProvenModel, ...]
    key_file: str | None = None
    certificate: str | None = None

    def write(self, path: Path) -> None:
        """Publish it, whole or not at all."""
        new = path.with_suffix(".new")
        new.write_text(json.dumps(dataclasses.asdict(self)), encoding="utf-8")
        new.replace(path)

    @classmethod
    def read(cls, path: Path) -> Proof:
        """The proof that a running server has left.

        Raises:
            ModelNotReadyError: there is none: the server starts, stops or was never there.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ModelNotReadyError("no model is proven yet, or the server is stopping") from None
        models = tuple(ProvenModel(**model) for model in content.pop("models"))
        return cls(**content, models=models)

    def endpoints(self) -> tuple[Endpoint, Endpoint]:
        """Management and inference API, with keys and certificate."""
        tls: dict[str, Any] = {}
        if self.certificate:
            path = Path(self.certificate)
            management = Address.parse(self.management_address)
            name = certificate_name(management.host, management.port, path)
            tls = {"certificate": path.read_bytes(), "certificate_name": name}
        tokens = read_tokens(Path(self.key_file)) if self.key_file else Tokens("", "")
        limit = self.max_message_bytes
        return (
            Endpoint(self.management_address, tokens.management, **tls),
            Endpoint(self.inference_address, tokens.inference, max_message_bytes=limit, **tls),
        )


def probe(proof: Proof, canaries: Sequence[ProvenModel], timeout_s: float) -> None:
    """Ask every model for a worker, and each of `canaries` for its golden answer.

    Raises:
        ModelNotReadyError: a model has no worker, or does not answer in time.
    """
    deadline = time.monotonic() + timeout_s
    management, inference = proof.endpoints()
    with management.channel() as channel:
        stub = management_pb2_grpc.ManagementAPIsServiceStub(channel)
        for model in proof.models:
            _require_worker(stub, management, model, deadline)
    with inference.channel() as channel:
        asked = inference_pb2_grpc.InferenceAPIsServiceStub(channel)
        for model in canaries:
            _require_answer(asked, inference, model, deadline)


def _require_worker(
    stub: management_pb2_grpc.ManagementAPIsServiceStub,
    endpoint: Endpoint,
    model: ProvenModel,
    deadline: float,
) -> None:
    request = management_pb2.DescribeModelRequest(
        model_name=model.name, model_version=model.version
    )
    try:
        answer = stub.DescribeModel(
            request, metadata=endpoint.metadata, timeout=_left(deadline), wait_for_ready=True
        )
    except grpc.RpcError as error:
        raise ModelNotReadyError(f"{_name(model)}: TorchServe says {_details(error)}") from error
    workers = [worker for each in json.loads(answer.msg) for worker in each.get("workers", ())]
    # One is enough to answer: the others may be between a crash and their next start.
    if not any(worker.get("status") == "READY" for worker in workers):
        raise ModelNotReadyError(f"{_name(model)}: none of its {len(workers)} workers is ready")


def _require_answer(
    stub: inference_pb2_grpc.InferenceAPIsServiceStub,
    endpoint: Endpoint,
    model: ProvenModel,
    deadline: float,
) -> None:
    request = inference_pb2.PredictionsRequest(
        model_name=model.name,
        model_version=model.version,
        input=canary_inputs(Path(model.archive), Task(model.task)),
    )
    try:
        answer = stub.Predictions(request, metadata=endpoint.metadata, timeout=_left(deadline))
    except grpc.RpcError as error:
        raise ModelNotReadyError(
            f"{_name(model)}: its golden input was not answered: {_details(error)}"
        ) from error
    check_answer(_name(model), model.digest, answer.prediction)


def main(arguments: Sequence[str] | None = None) -> int:
    """Probe once; the exit code."""
    parser = argparse.ArgumentParser(description="Ask a server on this machine if it is ready.")
    parser.add_argument("--proof-file", type=Path, default=PROOF_FILE)
    parser.add_argument("--canary", choices=_CANARIES, default="next", help="whose golden input")
    parser.add_argument("--timeout-s", type=float, default=25.0)
    options = parser.parse_args(arguments)
    try:
        proof = Proof.read(options.proof_file)
        probe(proof, _canaries(proof, options.canary), options.timeout_s)
    except MedserveError as error:
        print(f"not ready: {error.message}")
        return 1
    print(f"ready: {', '.join(map(_name, proof.models))}")
    return 0


def _canaries(proof: Proof, which: str) -> Sequence[ProvenModel]:
    """By the clock: probes keep no notes, and over time every model has its turn."""
    if which == "next" and proof.models:
        turn = int(time.time() // 10) % len(proof.models)
        return proof.models[turn : turn + 1]
    return proof.models if which == "all" else ()


def _left(deadline: float) -> float:
    return max(0.1, deadline - time.monotonic())


def _name(model: ProvenModel) -> str:
    return f"{model.name} {model.version}"


def _details(error: grpc.RpcError) -> str:
    if isinstance(error, grpc.Call):
        return f"{error.code().name} {error.details()}"
    return str(error)


if __name__ == "__main__":
    sys.exit(main())
