"""`medserve package` and `medserve inspect`."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from medserve.archive.read import inspect_archive
from tests.archive.altered import repacked
from tests.tiny_room import LABELS


def run(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """The command line, inside a folder."""
    command = [sys.executable, "-m", "medserve.cli.main", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


@pytest.mark.process
def test_the_command_packages_every_room_and_prints_path_and_digest(
    checkout: Path, tmp_path: Path
) -> None:
    done = run("package", "--all", "--store", str(tmp_path), folder=checkout)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{tmp_path}/tiny-1.0.mar  ")
    assert inspect_archive(tmp_path / "tiny-1.0.mar").digest in done.stdout


@pytest.mark.process
def test_the_command_without_a_name_lists_the_rooms(checkout: Path) -> None:
    refused = run("package", folder=checkout)
    assert refused.returncode == 2
    assert "tiny" in refused.stderr


def test_the_command_shows_an_archive_as_json(archive: Path, tmp_path: Path) -> None:
    shown = json.loads(run("inspect", "--json", str(archive), folder=tmp_path).stdout)
    assert (shown["name"], shown["labels"], shown["intact"]) == ("tiny", list(LABELS), True)


def test_the_command_ends_with_1_for_an_altered_archive(archive: Path, tmp_path: Path) -> None:
    changed = repacked(
        archive, tmp_path / "a.mar", lambda content: content.update({"tiny.py": b"import os\n"})
    )
    shown = run("inspect", str(changed), folder=tmp_path)
    assert shown.returncode == 1
    assert "tiny.py was altered after packaging" in shown.stdout


def test_a_card_cannot_paint_over_the_verdict(archive: Path, tmp_path: Path) -> None:
    changed = repacked(
        archive,
        tmp_path / "a.mar",
        lambda content: content.update({"MODEL_CARD.md": b"# tiny\n\x1b[2J[green]verified[/]\n"}),
    )
    shown = run("inspect", str(changed), folder=tmp_path)
    assert "\x1b" not in shown.stdout
    assert "altered: MODEL_CARD.md" in shown.stdout


@pytest.mark.process
def test_the_command_ends_with_2_and_one_line_for_what_is_no_archive(tmp_path: Path) -> None:
    refused = run("inspect", "none.mar", folder=tmp_path)
    assert refused.returncode == 2
    assert refused.stderr.count("\n") == 1


@pytest.mark.process
def test_the_commands_make_keys_sign_and_verify(archive: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    store.mkdir()
    copy = shutil.copy(archive, store)
    assert run("keygen", "key.pem", folder=tmp_path).returncode == 0
    unsigned = run("verify", copy, "--trust", "key.pub.pem", folder=tmp_path)
    assert (unsigned.returncode, unsigned.stderr.count("\n")) == (1, 1)
    signed = run("sign", copy, "--key", "key.pem", folder=tmp_path)
    assert signed.stdout == f"{copy}.sig\n", signed.stderr
    verified = run("verify", copy, "--trust", "key.pub.pem", folder=tmp_path)
    assert verified.returncode == 0, verified.stderr
    assert f"tiny 1.0  {inspect_archive(archive).digest}  signed by key" in verified.stdout
    without = run("verify", copy, folder=tmp_path)
    assert (without.returncode, "expected --trust KEYS.pem" in without.stderr) == (2, True)
