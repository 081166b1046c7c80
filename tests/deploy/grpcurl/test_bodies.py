"""Every command of the page names a method that exists, and sends a body that it understands."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf import descriptor_pool, json_format, message_factory
from grpc_health.v1 import health_pb2

from medserve.wire import inference_pb2, management_pb2
from medserve.wire.v1 import imaging_pb2
from tests.deploy.grpcurl.page import PAGE, ROOT, blocks

RECORDER = Path(__file__).with_name("recorder.py")
# Importing a contract makes its services known to the pool.
CONTRACTS = (inference_pb2, management_pb2, imaging_pb2, health_pb2)
# Of grpcurl 1.9 (`grpcurl -help`): those that take a value, and those that stand alone.
VALUED = {"-d", "-protoset", "-proto", "-import-path", "-max-msg-sz", "-H", "-cacert", "-authority"}
ALONE = {"-plaintext", "-expand-headers"}


pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def calls(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, object]]:
    """What the page's commands ask of grpcurl, in their order."""
    folder = tmp_path_factory.mktemp("recorded")
    program = folder / "grpcurl"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} {RECORDER} "$@"\n', encoding="utf-8")
    program.chmod(0o755)
    record = folder / "record.jsonl"
    script = "set -euo pipefail\n" + blocks(PAGE.read_text(encoding="utf-8"))
    paths = f"{folder}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = os.environ | {"PATH": paths, "RECORD": str(record), "MEDSERVE_TOKEN": "ms_1_x"}
    subprocess.run(["bash", "-c", script], cwd=ROOT, env=environment, check=True)
    return [json.loads(line) for line in record.read_text(encoding="utf-8").splitlines()]


def _operands(arguments: list[str]) -> list[str]:
    """What is left without the flags: address, and verb or method."""
    left = iter(arguments)
    found: list[str] = []
    for each in left:
        if each in VALUED:
            next(left)
        elif each not in ALONE:
            assert not each.startswith("-"), f"grpcurl has no flag {each}, or this test not yet"
            found.append(each)
    return found


def test_the_page_shows_every_kind_of_call(calls: list[dict[str, object]]) -> None:
    asked = " ".join(json.dumps(call["arguments"]) for call in calls)
    for needed in ("Ping", "ListModels", "DescribeModel", "/Predictions", "StreamPredictions"):
        assert needed in asked
    for needed in ("-proto", "-protoset", "-max-msg-sz", '"@"', "authorization", "-cacert", "list"):
        assert needed in asked


def test_every_body_is_one_that_the_method_reads(calls: list[dict[str, object]]) -> None:
    pool = descriptor_pool.Default()
    for call in calls:
        arguments = call["arguments"]
        assert isinstance(arguments, list)
        _, symbol, *_ = _operands(arguments)
        if symbol in ("list", "describe"):
            continue
        service, _, method = symbol.partition("/")
        request = pool.FindServiceByName(service).FindMethodByName(method).input_type
        body = call["body"] or "{}"
        assert isinstance(body, str)
        message = message_factory.GetMessageClass(request)()
        json_format.Parse(body, message)
        if "input" in request.fields_by_name:
            assert any(name.startswith("data") for name in json.loads(body)["input"])


def test_a_body_for_another_message_would_be_noticed() -> None:
    with pytest.raises(json_format.ParseError):
        json_format.Parse('{"model":"mednist"}', inference_pb2.PredictionsRequest())


@pytest.mark.parametrize("padding", ["", "="])
def test_a_mask_is_decoded_byte_for_byte_with_or_without_padding(padding: str) -> None:
    functions = re.search(r"^bytes_of\(\).*?^file_of[^\n]*\n", PAGE.read_text(), re.M | re.S)
    assert functions is not None
    for size in range(4, 9):
        mask = b"\x1f\x8b" + bytes(range(size))
        encoded = base64.b64encode(mask).decode()
        sent = json.dumps({"prediction": encoded if padding else encoded.rstrip("=")}, indent=2)
        for way, expected in (("file_of", mask), ("answers", mask + b"\n")):
            script = f"set -euo pipefail\n{functions[0]}{way}"
            run = subprocess.run(["bash", "-c", script], input=sent.encode(), capture_output=True)
            assert run.stdout == expected, run.stderr
