"""Alerts and dashboard against the metrics pages of the real servers."""

from __future__ import annotations

import contextlib
import re
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

import models
from medserve.imaging.codecs import nifti
from medserve.settings import EngineKind
from medserve.wire import inference_pb2, inference_pb2_grpc
from tests.backends import Backend, TorchServeBackend
from tests.deploy.gateway_process import running_gateway as running_process
from tests.deploy.promql import asked
from tests.deploy.test_monitoring import LABELS_OF_OTHERS, OF_OTHERS, expressions, recorded
from tests.gateway.running import quick_settings, running_gateway
from tests.tiny_room import bright_tile
from tests.tiny_volume_room import phantom


@pytest.fixture(scope="module")
def pages(
    backend: Backend, served_store: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, ...]]:
    """Metrics pages of a gateway that has answered good calls and bad ones, and of its engine."""
    with contextlib.ExitStack() as stack:
        if isinstance(backend, TorchServeBackend):
            folder, server = tmp_path_factory.mktemp("gateway"), backend.server
            running = stack.enter_context(running_process(server, served_store, folder))
            ask(running.grpc)
            yield running.metrics_url, server.metrics_url
        else:  # a gateway shows the metrics of an engine that is a part of it
            names = ",".join(asked_of_models())
            settings = quick_settings(served_store, models=names, engine_kind=EngineKind.DIRECT)
            gateway = stack.enter_context(running_gateway(settings))
            ask(gateway.addresses.grpc)
            yield (gateway.addresses.metrics_url,)


def ask(address: str) -> None:
    """Let the models answer."""
    with grpc.insecure_channel(address) as channel:
        stub = inference_pb2_grpc.InferenceAPIsServiceStub(channel)
        for model, inputs in asked_of_models().items():
            for each in inputs:
                request = inference_pb2.PredictionsRequest(model_name=model, input=each)
                stub.Predictions(request, timeout=60)


def asked_of_models() -> dict[str, list[dict[str, bytes]]]:
    """Inputs by model, of which each metric of the answers comes from one."""
    example = models.room("mednist") / "examples" / "Hand.png"
    return {
        "tiny": [{"data": bright_tile(0)}, {"data": b"no image"}],
        "mednist": [{"data": example.read_bytes()}],  # its archive has a reference
        "tiny_volume": [{"data": nifti.encode(phantom()), "params": b'{"format": "json"}'}],
    }


def series(url: str) -> dict[str, set[str]]:
    """Every sample's name, with the labels that any of its samples carries."""
    with urllib.request.urlopen(url, timeout=10) as answer:
        text = answer.read().decode()
    found: dict[str, set[str]] = {}
    for name, labels in re.findall(r"^([a-zA-Z_:][\w:]*)(\{.*\})? \S+", text, re.MULTILINE):
        found.setdefault(name, set()).update(re.findall(r"(\w+)=\"", labels))
    return found


def test_everything_that_rules_and_dashboard_ask_for_is_really_there(
    pages: tuple[str, ...],
) -> None:
    wanted = {
        title: asked(text) for title, text in expressions() if not asked(text).metrics & recorded()
    }
    missing: dict[str, set[str]] = {"not asked yet": set()}
    end = time.monotonic() + 60  # the engine's counters follow its log lines
    while missing and time.monotonic() < end:
        exported = {name: labels for page in pages for name, labels in series(page).items()}
        missing = {}
        for title, each in wanted.items():
            names = each.metrics - OF_OTHERS
            labels = set().union(*(exported.get(name, set()) for name in names))
            lost = set(names) - exported.keys()
            if not each.metrics & OF_OTHERS:
                lost |= each.labels - labels - LABELS_OF_OTHERS
            if lost:
                missing[title] = lost
        time.sleep(0.5)
    assert missing == {}
