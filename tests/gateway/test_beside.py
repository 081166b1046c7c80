"""`medserve serve` with its gateway, as an operator starts and stops it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest

from medserve.cli import serve
from medserve.client import Client
from medserve.errors import ServerFailedError
from medserve.wire import inference_pb2, inference_pb2_grpc
from tests.gateway.streaming_room import SLOW
from tests.tiny_room import LABELS, bright_tile

_START_S = 120.0


@pytest.fixture
def served(
    torchserve_alone: None, tiny_store: Path, short_path: Path
) -> Iterator[subprocess.Popen[str]]:
    """The command, with free ports and a folder of its own; killed if a test fails."""
    command = [sys.executable, "-m", "medserve.cli.main", "serve", "--store", str(tiny_store)]
    command += [
        "--port=0",
        "--metrics-port=0",
        "--gateway",
        f"--ready-file={short_path}/ready.json",
    ]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"TMPDIR": str(short_path)},
    )
    yield process
    if process.poll() is None:
        process.kill()
    process.communicate()


def ready(process: subprocess.Popen[str], file: Path) -> dict[str, Any]:
    end = time.monotonic() + _START_S
    while time.monotonic() < end and process.poll() is None:
        if file.exists() and (text := file.read_text()):
            content: dict[str, Any] = json.loads(text)
            return content
        time.sleep(0.05)
    process.kill()
    raise AssertionError(f"not ready: {process.communicate()[0]}")


def test_one_command_serves_both_ways_and_the_page_and_leaves_nothing(
    served: subprocess.Popen[str], short_path: Path
) -> None:
    addresses = ready(served, short_path / "ready.json")
    front = addresses["gateway"]
    with Client(front["grpc"]) as client:
        assert client.classify_one("tiny", bright_tile(2)).label == LABELS[2]
        assert all(model.ready for model in client.models())
    with grpc.insecure_channel(addresses["inference_address"]) as channel:
        request = inference_pb2.PredictionsRequest(
            model_name="tiny", input={"data": bright_tile(2)}
        )
        answer = inference_pb2_grpc.InferenceAPIsServiceStub(channel).Predictions(request)
        assert json.loads(answer.prediction)["label"] == LABELS[2]
    with urllib.request.urlopen(front["page_url"], timeout=30) as page:
        assert page.status == 200
    with urllib.request.urlopen(front["metrics_url"], timeout=30) as metrics:
        assert b"medserve_gateway_model_ready" in metrics.read()
    with grpc.insecure_channel(front["grpc"]) as channel:
        running = inference_pb2_grpc.InferenceAPIsServiceStub(channel).Predictions.future(
            inference_pb2.PredictionsRequest(
                model_name="ticker", input={"data": bright_tile(4), "params": SLOW}
            ),
            timeout=60,
        )
        in_flight = b'medserve_gateway_in_flight{model="ticker"} 1.0'
        while in_flight not in urllib.request.urlopen(front["metrics_url"], timeout=30).read():
            time.sleep(0.05)
        served.send_signal(signal.SIGTERM)
        assert json.loads(running.result().prediction)["label"] == LABELS[4]
    output = served.communicate(timeout=60)[0]
    assert served.returncode == 0, output
    assert "page http://127.0.0.1:" in output
    assert list(short_path.glob("medserve-*")) == []
    assert not (short_path / "ready.json").exists()


def test_the_end_of_torchserve_ends_the_wait_with_its_reason() -> None:
    def serve_forever() -> None:
        raise ServerFailedError("TorchServe ended by itself (exit code 1): out of memory")

    server: Any = SimpleNamespace(serve_forever=serve_forever)
    with pytest.raises(ServerFailedError, match="out of memory"):
        asyncio.run(serve._ended(server))
