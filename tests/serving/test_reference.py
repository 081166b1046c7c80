"""The gRPC reference's shell example, sent by a foreign gRPC client."""

from __future__ import annotations

import base64
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from medserve.engine.torchserve.lifecycle import Server

ROOT = Path(__file__).resolve().parents[2]
BUF = Path(sys.executable).with_name("buf")  # speaks the same JSON as grpcurl


def documented_call() -> tuple[str, str]:
    """Shell expression of the body, and the full name of the method."""
    text = (ROOT / "docs/call/grpc.md").read_text(encoding="utf-8")
    call = re.search(r"^IMAGE=.*?^grpcurl .*?-d (?P<body>[^\n]+) \\\n  \S+ (?P<method>\S+)",
                     text, re.DOTALL | re.MULTILINE)  # fmt: skip
    assert call is not None
    return call["body"], call["method"]


@pytest.mark.skipif(not BUF.is_file(), reason="needs buf (the dev extra)")
def test_the_documented_call_is_answered(
    torchserve: Server, needs_mednist: None, tmp_path: Path
) -> None:
    body, method = documented_call()
    script = f"IMAGE=models/mednist/examples/Hand.png; printf %s {body}"
    written = subprocess.run(
        ["bash", "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    protoset = tmp_path / "medserve.protoset"
    command = [sys.executable, "scripts/protos.py", str(tmp_path), "--protoset", str(protoset)]
    subprocess.run(command, cwd=ROOT, check=True)
    url = f"http://{torchserve.inference_address}/{method}"
    command = [str(BUF), "curl", "--protocol", "grpc", "--http2-prior-knowledge"]
    command += ["--schema", f"{protoset}#format=binpb", "-d", written.stdout, url]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    answer = json.loads(base64.b64decode(json.loads(run.stdout)["prediction"]))
    assert (answer["status"], answer["label"]) == ("ok", "Hand")
