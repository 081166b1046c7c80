"""Every body that the gRPC reference shows for grpcurl is one that its method reads."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from google.protobuf import descriptor_pool, json_format, message_factory

from medserve import errors
from medserve.cli.dicom import dicom
from medserve.gateway import http
from medserve.wire import inference_pb2
from medserve.wire.v1 import imaging_pb2, releases_pb2
from tests.pages import blocks

ROOT = Path(__file__).resolve().parents[2]
RECORDER = ROOT / "tests" / "deploy" / "grpcurl" / "recorder.py"
CONTRACTS = (inference_pb2, imaging_pb2)  # importing them makes their services known


def recorded(folder: Path) -> Iterator[tuple[str, str]]:
    """Method and body of each command of the page."""
    script = "".join(blocks(ROOT / "docs/call/grpc.md", "bash"))
    program, record = folder / "grpcurl", folder / "record.jsonl"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} {RECORDER} "$@"\n', encoding="utf-8")
    program.chmod(0o755)
    volume = folder / "volume.nii.gz"  # the trained room may not be in this checkout
    volume.write_bytes(b"volume")
    script = script.replace("models/segmentation_3d/examples/average.nii.gz", str(volume))
    path = f"{folder}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "RECORD": str(record)}
    subprocess.run(["bash", "-c", script], cwd=ROOT, env=environment, check=True)
    for line in record.read_text(encoding="utf-8").splitlines():
        call = json.loads(line)
        yield call["arguments"][-1], call["body"] or "{}"


def messages(body: str) -> Iterator[dict[str, Any]]:
    """The JSON objects of a stream, which stand one behind the other."""
    decoder = json.JSONDecoder()
    while body := body.strip():
        content, end = decoder.raw_decode(body)
        yield content
        body = body[end:]


@pytest.mark.process
def test_every_body_for_grpcurl_is_one_that_its_method_reads(tmp_path: Path) -> None:
    seen = set()
    for symbol, body in recorded(tmp_path):
        service, _, method = symbol.partition("/")
        described = descriptor_pool.Default().FindServiceByName(service).FindMethodByName(method)
        sent = list(messages(body))
        assert len(sent) == 1 or described.client_streaming
        for content in sent:
            message = message_factory.GetMessageClass(described.input_type)()
            json_format.ParseDict(content, message)
            assert message.ByteSize() or method == "ListModels"
        seen.add(method)
    assert seen == {"Predictions", "Classify", "Segment", "Sample", "ListModels"}


def test_the_reference_names_every_call_and_every_code() -> None:
    text = (ROOT / "docs/call/grpc.md").read_text(encoding="utf-8")
    for contract in (imaging_pb2, releases_pb2):
        for service in contract.DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                assert f"`{method.name}`" in text
    local = ("ArchiveError", "ConfigError", "MedserveError")  # no server answers with them
    for name in errors.__all__:
        error: Any = getattr(errors, name)
        if hasattr(error, "code") and name not in local:
            assert f"`{error.code}` | `{name}`" in text


def test_the_pages_say_within_what_time_a_renewed_certificate_counts() -> None:
    for page in ("gateway.md", "docker.md"):
        text = (ROOT / "docs/run" / page).read_text(encoding="utf-8")
        assert f"within {http._LOOK_AT_CERTIFICATES_S:g} s over HTTPS" in text


def test_what_is_kept_of_a_caller_names_the_settings_of_the_node() -> None:
    text = (ROOT / "docs/run/operations.md").read_text(encoding="utf-8")
    group: Any = typer.main.get_command(dicom)
    options = {each.opts[0]: each.default for each in group.commands["serve"].params}
    hours = (options["--keep-hours"], options["--held-hours"])
    assert (*hours, options["--remember-days"]) == (24, 24 * 14, 365)
    for name in ("--state", "--keep-hours", "--held-hours", "--remember-days"):
        assert f"`{name}`" in text
