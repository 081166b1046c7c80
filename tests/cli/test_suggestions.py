"""What is said to a misspelt command or model, and the other way to start the command line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import medserve as package
from medserve.cli.main import _COMMANDS
from tests.cli.conftest import Medserve
from tests.client.fake_gateway import FakeGateway


@pytest.mark.parametrize("command", list(_COMMANDS))
def test_a_misspelt_command_is_told_the_nearest_one(command: str, medserve: Medserve) -> None:
    run = medserve(f"{command[:-1]}{command[-1]}{command[-1]}")
    assert run.code == 2
    assert f"did you mean {command}?" in " ".join(run.err.split())


def test_a_command_like_no_other_gets_no_suggestion(medserve: Medserve) -> None:
    run = medserve("quux")
    assert run.code == 2
    assert "There is no command quux." in run.err


def test_a_misspelt_model_is_told_the_nearest_one(
    medserve: Medserve, fake: FakeGateway, tmp_path: Path
) -> None:
    (tmp_path / "a.png").write_bytes(b"Hand")
    run = medserve("predict", "medinst", tmp_path / "a.png", "--address", fake.address)
    assert run.code == 2
    assert "did you mean mednist?" in run.err
    unknown = medserve("predict", "mednist", tmp_path, "--version", "9", "--address", fake.address)
    assert "no model mednist 9;" in unknown.err


@pytest.mark.process
def test_the_package_is_the_command_line_and_carries_its_types() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "medserve", "--version"], capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == f"medserve {package.__version__}"
    assert (Path(package.__file__).parent / "py.typed").is_file()


@pytest.mark.process
def test_the_tab_key_completes_commands() -> None:
    typed = {"_MEDSERVE_COMPLETE": "complete_bash", "COMP_WORDS": "medserve pre", "COMP_CWORD": "1"}
    run = subprocess.run(
        [Path(sys.executable).parent / "medserve"],
        capture_output=True, text=True, check=True, env=os.environ | typed,
    )  # fmt: skip
    assert run.stdout.split() == ["predict"]
