"""docs/call/grpcurl.md and scripts/smoke_grpcurl.sh against the real servers, word for word."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from medserve.engine.torchserve.lifecycle import Server
from medserve.gateway.core.tokens import add_token, new_token
from tests.client.certificates import HAVE_OPENSSL, self_signed
from tests.deploy.gateway_process import RunningGateway, running_gateway
from tests.deploy.grpcurl.page import ROOT, script

BUF = Path(sys.executable).with_name("buf")
STAND_IN = ROOT / "tests/deploy/grpcurl/stand_in.py"
pytestmark = pytest.mark.skipif(
    not (shutil.which("grpcurl") or BUF.is_file()), reason="needs grpcurl or buf (the dev extra)"
)


@pytest.fixture(scope="module")
def protoset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All contracts, as `make protos` writes them."""
    path = tmp_path_factory.mktemp("protos") / "medserve.protoset"
    command = [sys.executable, "scripts/protos.py", str(path.parent), "--protoset", str(path)]
    subprocess.run(command, cwd=ROOT, check=True)
    return path


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory, protoset: Path) -> dict[str, str]:
    """A shell that finds grpcurl: the real one, or the stand-in over buf."""
    paths = [str(Path(sys.executable).parent), os.environ["PATH"]]
    if shutil.which("grpcurl") is None:
        program = tmp_path_factory.mktemp("bin") / "grpcurl"
        program.write_text(f'#!/bin/sh\nexec {sys.executable} {STAND_IN} "$@"\n', encoding="utf-8")
        program.chmod(0o755)
        paths.insert(0, str(program.parent))
    files = {"BUF": str(BUF), "MEDSERVE_PROTOSET": str(protoset)}
    return os.environ | files | {"PATH": ":".join(paths)}


@pytest.fixture(scope="module")
def gateway(
    torchserve: Server, served_store: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningGateway]:
    """A gateway in front of the server, all of whose models serve."""
    with running_gateway(torchserve, served_store, tmp_path_factory.mktemp("gateway")) as running:
        yield running


def run(text: str, environment: Mapping[str, str], code: int = 0) -> str:
    """What the script prints; its errors are the test's."""
    done = subprocess.run(
        ["bash", "-c", f"set -euo pipefail\n{text}"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout


def smoke(where: str, names: tuple[str, ...] = ()) -> str:
    """A call of the smoke script for the models that have a room in this checkout."""
    return f"scripts/smoke_grpcurl.sh {where} {' '.join(names)}"


@pytest.mark.usefixtures("needs_mednist")
def test_the_commands_of_the_page_are_answered(
    torchserve: Server, protoset: Path, environment: dict[str, str]
) -> None:
    text = script(
        "Is it up, and what does it serve?",
        "One image",
        "A volume: larger than a command line",
        "A stream",
        "From the proto files instead of a protoset",
    )
    text = text.replace("build/medserve.protoset", str(protoset))
    text = text.replace(".venv/bin/python", sys.executable)
    text = text.replace("127.0.0.1:7070", torchserve.inference_address)
    printed = run(text.replace("127.0.0.1:7071", torchserve.management_address), environment)
    assert printed.count("Healthy") == 2
    assert printed.count("READY") >= 2
    # One image, with params, from standard input, as a stream; and in a packed call.
    assert printed.replace(" ", "").count('"label":"Hand"') >= 5
    assert "CXR" in printed


@pytest.mark.usefixtures("needs_mednist")
def test_the_gateway_answers_without_a_protoset(
    gateway: RunningGateway, environment: dict[str, str]
) -> None:
    text = script("Through the gateway").replace("127.0.0.1:8001", gateway.grpc)
    printed = run(text, environment)
    for service in ("InferenceAPIsService", "GRPCInferenceService", "medserve.v1.ImagingService"):
        assert service in printed
    assert "SERVING" in printed
    assert "NOT_SERVING" not in printed
    assert "mednist" in printed
    assert '"label":"Hand"' in printed.replace(" ", "")


@pytest.mark.skipif(not HAVE_OPENSSL, reason="needs openssl")
@pytest.mark.usefixtures("needs_mednist")
def test_a_token_opens_what_is_closed_without_one(
    torchserve: Server, served_store: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    chain, key = self_signed(tmp_path, "gateway")
    tokens = tmp_path / "tokens.json"
    token, entry = new_token("ward-7", ["mednist"])
    add_token(tokens, entry)
    flags = [f"--tls-cert={chain}", f"--tls-key={key}", f"--tokens-file={tokens}"]
    text = script("With a token and TLS").replace("medserve.example.org", "localhost")
    with running_gateway(torchserve, served_store, tmp_path, *flags) as running:
        text = text.replace("127.0.0.1:8001", running.grpc)
        trusting = environment | {"MEDSERVE_CA_FILE": str(chain)}
        printed = run(text, trusting | {"MEDSERVE_TOKEN": token})
        assert '"label":"Hand"' in printed.replace(" ", "")
        refused = subprocess.run(
            ["bash", "-c", text],
            cwd=ROOT,
            env=trusting | {"MEDSERVE_TOKEN": "ms_0_wrong"},
            capture_output=True,
            text=True,
        )
        assert "unauthenticated" in refused.stderr.lower()
        assert "Hand" not in refused.stdout


def test_the_smoke_script_calls_every_model(
    torchserve: Server, models: tuple[str, ...], environment: dict[str, str]
) -> None:
    known = tuple(name for name in models if (ROOT / "models" / name / "examples").is_dir())
    if not known:
        pytest.skip("no room with examples is served")
    where = f"--management {torchserve.management_address} {torchserve.inference_address}"
    printed = run(smoke(where, known), environment)
    assert "FAILED" not in printed
    for name in known:
        assert f"ok      Predictions {name}: " in printed
        assert f"ok      StreamPredictions {name}: " in printed


@pytest.mark.usefixtures("needs_mednist")
def test_the_smoke_script_finds_the_models_of_a_gateway_by_itself(
    gateway: RunningGateway, environment: dict[str, str]
) -> None:
    # `tiny` has no room here, so that its call must fail: it was found, and it was tried.
    printed = run(smoke(f"--gateway {gateway.grpc}"), environment, code=1)
    assert "ok      Predictions mednist: " in printed
    assert "ok      StreamPredictions mednist: " in printed
    assert "FAILED  Predictions tiny" in printed


def test_the_smoke_script_fails_where_a_model_does_not_answer(
    torchserve: Server, environment: dict[str, str]
) -> None:
    where = f"--management {torchserve.management_address} {torchserve.inference_address}"
    assert "FAILED  Predictions nobody" in run(smoke(where, ("nobody",)), environment, code=1)
