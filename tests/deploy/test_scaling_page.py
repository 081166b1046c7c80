"""The client of the page about scaling: one channel, all servers."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import pytest

from medserve.wire import inference_pb2

PAGE = Path(__file__).resolve().parents[2] / "docs/run/scaling.md"


def _named(name: bytes) -> grpc.GenericRpcHandler[Any, Any]:
    """Answers Predictions with the name of the server."""

    def predictions(request: Any, context: Any) -> inference_pb2.PredictionResponse:
        return inference_pb2.PredictionResponse(prediction=name)

    method = grpc.unary_unary_rpc_method_handler(
        predictions,
        inference_pb2.PredictionsRequest.FromString,
        inference_pb2.PredictionResponse.SerializeToString,
    )
    service = inference_pb2.DESCRIPTOR.services_by_name["InferenceAPIsService"].full_name
    return grpc.method_handlers_generic_handler(service, {"Predictions": method})


@pytest.fixture
def addresses() -> Iterator[list[str]]:
    """Three servers on loopback."""
    servers, found = [], []
    for name in (b"a", b"b", b"c"):
        server = grpc.server(futures.ThreadPoolExecutor(2))
        server.add_generic_rpc_handlers([_named(name)])
        found.append(f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}")
        server.start()
        servers.append(server)
    yield found
    for server in servers:
        server.stop(0).wait()


def documented() -> str:
    """The page's Python, without the indent of its list."""
    block = re.search(r"^( *)```python\n(.*?)^\1```$", PAGE.read_text("utf-8"), re.M | re.S)
    assert block is not None
    return "\n".join(line.removeprefix(block[1]) for line in block[2].splitlines())


@pytest.mark.loopback
def test_the_calls_of_one_channel_go_round_over_all_servers(addresses: list[str]) -> None:
    code, changed = re.subn(r'"dns:///[^"]+"', f'"ipv4:{",".join(addresses)}"', documented())
    assert changed == 1
    names: dict[str, Any] = {}
    exec(code, names)  # the page's own lines
    with names["channel"]:
        request = inference_pb2.PredictionsRequest(model_name="any")
        answered = Counter(
            names["stub"].Predictions(request, timeout=30, wait_for_ready=True).prediction
            for _ in range(60)
        )
    assert set(answered) == {b"a", b"b", b"c"}
    assert min(answered.values()) >= 5  # the first calls go to whoever is connected first


def test_the_address_is_the_headless_service_of_the_manifests() -> None:
    found = re.search(r"dns:///([\w-]+)\.([\w-]+)\.svc\.cluster\.local:(\d+)", documented())
    assert found is not None
    service = (PAGE.parents[2] / "k8s/base/service-headless.yaml").read_text(encoding="utf-8")
    assert f"name: {found[1]}\n" in service
    assert "clusterIP: None" in service
    assert f"port: {found[3]}" in service
