"""docs/grpcurl.md and scripts/smoke_grpcurl.sh against the real server, word for word."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from medserve.server import Server
from tests.deploy.grpcurl.page import ROOT, blocks, section

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
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A shell that finds grpcurl: the real one, or the stand-in over buf."""
    folder = tmp_path_factory.mktemp("bin")
    paths = [str(Path(sys.executable).parent), os.environ["PATH"]]
    if shutil.which("grpcurl") is None:
        program = folder / "grpcurl"
        program.write_text(f'#!/bin/sh\nexec {sys.executable} {STAND_IN} "$@"\n', encoding="utf-8")
        program.chmod(0o755)
        paths.insert(0, str(folder))
    return os.environ | {"PATH": ":".join(paths), "BUF": str(BUF)}


def run(script: str, environment: Mapping[str, str]) -> str:
    """What the script prints; its errors are the test's."""
    done = subprocess.run(
        ["bash", "-c", f"set -euo pipefail\n{script}"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.usefixtures("needs_mednist")
def test_the_commands_of_the_page_are_answered(
    server: Server, protoset: Path, environment: dict[str, str]
) -> None:
    titles = ("Is it up", "One image", "A volume", "A stream", "From the proto files")
    scripts = [blocks(section(titles[0]))]
    intro = scripts[0].partition("\nINFERENCE=")[0]
    scripts += [blocks(section(title)).removeprefix(intro) for title in titles[1:]]
    script = (
        "".join(scripts)
        .replace("build/medserve.protoset", str(protoset))
        .replace(".venv/bin/python", sys.executable)
        .replace("127.0.0.1:7070", server.inference_address)
        .replace("127.0.0.1:7071", server.management_address)
    )
    printed = run(script, environment)
    assert printed.count("Healthy") == 2
    assert printed.count("READY") >= 2
    # One image, with params, from standard input, as a stream; and in a packed call.
    assert printed.count('"label":"Hand"') + printed.count('"label": "Hand"') >= 5
    assert "CXR" in printed


def test_the_smoke_script_calls_every_model(
    server: Server, models: tuple[str, ...], protoset: Path, environment: dict[str, str]
) -> None:
    known = [name for name in models if (ROOT / "models" / name / "examples").is_dir()]
    if not known:
        pytest.skip("no room with examples is served")
    call = f"scripts/smoke_grpcurl.sh --management {server.management_address}"
    script = f"{call} {server.inference_address} {' '.join(known)}"
    printed = run(script, environment | {"MEDSERVE_PROTOSET": str(protoset)})
    assert "FAILED" not in printed
    for name in known:
        assert f"Predictions {name}: " in printed
        assert f"StreamPredictions {name}: " in printed


def test_the_smoke_script_fails_where_a_model_does_not_answer(
    server: Server, protoset: Path, environment: dict[str, str]
) -> None:
    call = f"scripts/smoke_grpcurl.sh --management {server.management_address}"
    done = subprocess.run(
        ["bash", "-c", f"{call} {server.inference_address} nobody"],
        cwd=ROOT,
        env=environment | {"MEDSERVE_PROTOSET": str(protoset)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "FAILED  Predictions nobody" in done.stdout
