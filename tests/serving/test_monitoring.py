"""Alerts and dashboard against the metrics pages of the real servers."""

from __future__ import annotations

import re
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

import models
from medserve.engine.torchserve.lifecycle import Server
from medserve.imaging.codecs import nifti
from medserve.wire import inference_pb2, inference_pb2_grpc
from tests.deploy.gateway_process import RunningGateway, running_gateway
from tests.deploy.promql import asked
from tests.deploy.test_monitoring import LABELS_OF_OTHERS, OF_OTHERS, expressions, recorded
from tests.tiny_room import bright_tile
from tests.tiny_volume_room import phantom


@pytest.fixture(scope="module")
def gateway(
    torchserve: Server, served_store: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningGateway]:
    """A gateway that has answered good calls and bad ones."""
    with running_gateway(torchserve, served_store, tmp_path_factory.mktemp("gateway")) as running:
        with grpc.insecure_channel(running.grpc) as channel:
            stub = inference_pb2_grpc.InferenceAPIsServiceStub(channel)
            for model, inputs in asked_of_models().items():
                for each in inputs:
                    request = inference_pb2.PredictionsRequest(model_name=model, input=each)
                    stub.Predictions(request, timeout=60)
        yield running


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
    torchserve: Server, gateway: RunningGateway
) -> None:
    wanted = {
        title: asked(text) for title, text in expressions() if not asked(text).metrics & recorded()
    }
    missing: dict[str, set[str]] = {"not asked yet": set()}
    end = time.monotonic() + 60  # the engine's counters follow its log lines
    while missing and time.monotonic() < end:
        exported = series(gateway.metrics_url) | series(torchserve.metrics_url)
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
