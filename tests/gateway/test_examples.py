"""The programs of `examples/`, each as its users start it: all of them print the same."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from medserve.gateway.server import GatewayServer
from tests.tiny_room import LABELS, REPOSITORY, bright_tile

_EXAMPLES = REPOSITORY / "examples"
_NPM = REPOSITORY / "build" / "web" / "node_modules"


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Three images and a file that is none."""
    contents = [bright_tile(4), b"this is no image", bright_tile(0), bright_tile(2)]
    for number, content in enumerate(contents):
        (tmp_path / f"{number}.png").write_bytes(content)
    return sorted(tmp_path.iterdir())


def command(name: str, served: GatewayServer) -> list[str]:
    """How a program is started; skips where its runtime is missing."""
    path = str(_EXAMPLES / name)
    if name.endswith(".py"):
        return [sys.executable, path, served.addresses.grpc]
    if name.endswith(".js"):
        node = shutil.which("node")
        if node is None or not (_NPM / "@grpc").is_dir():
            pytest.skip("needs node and `python scripts/web_assets.py --dev`")
        return [node, path, served.addresses.grpc]
    java = shutil.which("java")
    if java is None or shutil.which("javac") is None:
        pytest.skip("needs a JDK")
    return [java, path, str(served.addresses.page_url).rstrip("/")]


@pytest.mark.parametrize("name", sorted(path.name for path in _EXAMPLES.glob("[cC]lassify*")))
def test_an_example_prints_a_line_for_each_file(
    name: str, served: GatewayServer, files: list[Path]
) -> None:
    done = subprocess.run(
        [*command(name, served), "tiny", *map(str, files)],
        cwd=_EXAMPLES, env=os.environ | {"NODE_PATH": str(_NPM), "PYTHONPATH": str(REPOSITORY)},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    words = [line.split(" ")[:2] for line in lines]
    assert words == [
        ["0.png", LABELS[4]],
        ["1.png", "INVALID_IMAGE:"],
        ["2.png", LABELS[0]],
        ["3.png", LABELS[2]],
    ]
    assert all(0 < float(line.split(" ")[2]) <= 1 for line in lines[:1] + lines[2:])


def test_an_example_ends_with_an_error_where_there_is_no_such_model(
    served: GatewayServer, files: list[Path]
) -> None:
    for name in ("classify.js", "Classify.java"):
        done = subprocess.run(
            [*command(name, served), "nobody", str(files[0])],
            env=os.environ | {"NODE_PATH": str(_NPM)},
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode == 1
        assert "served model" in done.stderr
