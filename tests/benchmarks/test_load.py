"""The load generator against a server of a few lines, through real gRPC."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import grpc
import pytest

from benchmarks.load import LoadPlan, read_payload
from benchmarks.processes import free_port
from medserve.wire.inference_pb2 import PredictionResponse, PredictionsRequest

REPOSITORY = Path(__file__).parent.parent.parent
SERVICE = "org.pytorch.serve.grpc.inference.InferenceAPIsService"


class Counter:
    """Answers Predictions and counts the calls that are in flight."""

    def __init__(self, answer: Callable[[PredictionsRequest], bytes]) -> None:
        self.lock = threading.Lock()
        self.now = 0
        self.most = 0
        self.answer = answer

    def predictions(
        self, request: PredictionsRequest, context: grpc.ServicerContext
    ) -> PredictionResponse:
        """Handle one call."""
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)
        threading.Event().wait(0.005)  # long enough for calls to meet
        with self.lock:
            self.now -= 1
        return PredictionResponse(prediction=self.answer(request))


@contextmanager
def served(counter: Counter) -> Iterator[str]:
    server = grpc.server(futures.ThreadPoolExecutor(16))
    method = grpc.unary_unary_rpc_method_handler(
        counter.predictions,
        request_deserializer=PredictionsRequest.FromString,
        response_serializer=PredictionResponse.SerializeToString,
    )
    handler = grpc.method_handlers_generic_handler(SERVICE, {"Predictions": method})
    server.add_generic_rpc_handlers((handler,))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


@pytest.fixture
def payload(tmp_path: Path) -> Path:
    for name in ("a", "b", "c"):
        (tmp_path / name).write_bytes(name.encode() * 100)
    return tmp_path


def load(plan: LoadPlan) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.load", "--protocol", plan.protocol]
    command += ["--address", plan.address, "--model", plan.model, "--payload", str(plan.payload)]
    command += ["--calls", str(plan.calls), "--images-per-call", str(plan.images_per_call)]
    command += ["--seconds", str(plan.seconds), "--warmup-s", str(plan.warmup_s)]
    if plan.server_pid is not None:
        command += ["--server-pid", str(plan.server_pid)]
    return subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, timeout=120)


def plan_for(address: str, payload: Path) -> LoadPlan:
    return LoadPlan("predictions", address, "mednist", payload, seconds=1.0, warmup_s=0.1)


@pytest.mark.process
def test_a_closed_loop_keeps_exactly_the_asked_calls_in_flight(payload: Path) -> None:
    counter = Counter(lambda request: b'{"label": "Hand"}')
    with served(counter) as address:
        done = load(replace(plan_for(address, payload), calls=4, server_pid=os.getpid()))

    measured = json.loads(done.stdout)
    assert counter.most == 4
    assert measured["errors"] == 0
    assert measured["images"] == measured["images_per_s"] * measured["seconds"] > 0
    assert 5.0 <= measured["p50_ms"] <= measured["p99_ms"]
    assert measured["server_cpu_ms"] > 0
    assert measured["server_pss_mib"] > 1
    assert "Hand" in measured["sample"]


@pytest.mark.process
def test_packed_calls_count_by_image(payload: Path) -> None:
    counter = Counter(lambda request: b"%d" % sum(key != "transport" for key in request.input))
    with served(counter) as address:
        done = load(replace(plan_for(address, payload), images_per_call=16))

    measured = json.loads(done.stdout)
    assert measured["images"] % 16 == 0
    assert "16" in measured["sample"]


@pytest.mark.process
def test_error_answers_are_counted_and_are_no_images(payload: Path) -> None:
    turn = iter(range(10**9))
    counter = Counter(lambda request: b'{"error": {}}' if next(turn) % 2 else b"{}")
    with served(counter) as address:
        done = load(replace(plan_for(address, payload), calls=2))

    measured = json.loads(done.stdout)
    assert measured["errors"] > 0
    assert measured["images"] > 0


@pytest.mark.process
def test_a_server_that_nobody_runs_ends_the_load_with_one_line(payload: Path) -> None:
    done = load(plan_for(f"127.0.0.1:{free_port()}", payload))

    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("no call was answered in 1.0 s")


def test_the_payload_is_every_file_of_a_folder_by_name(payload: Path) -> None:
    assert read_payload(payload) == [b"a" * 100, b"b" * 100, b"c" * 100]
    assert read_payload(payload / "b") == [b"b" * 100]


def test_an_empty_folder_is_no_payload(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="at least one image"):
        read_payload(tmp_path)
