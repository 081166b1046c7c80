"""`medserve package`, `inspect`, `sign` with its kind, and `sketch`."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from medserve.archive.build import build_archive
from medserve.archive.read import inspect_archive, verify_archive
from medserve.batch.receipts import BatchFolder, BatchHead, Receipt
from medserve.batch.studies import study_key
from medserve.errors import ArchiveError
from medserve.spec import Task
from tests.archive.altered import repacked
from tests.tiny_room import LABELS, make_checkout


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
    copy = str(shutil.copy(archive, store))
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


def test_a_sketch_needs_answers_of_the_archive(archive: Path, tmp_path: Path) -> None:
    sketched(archive, tmp_path, "sha256:0", 200)
    refused = run("sketch", "batch", str(archive), folder=tmp_path)
    assert (refused.returncode, "another archive" in refused.stderr) == (2, True)


def test_a_sketch_of_few_inputs_is_refused(archive: Path, tmp_path: Path) -> None:
    sketched(archive, tmp_path, inspect_archive(archive).digest, 29)
    refused = run("sketch", "batch", str(archive), folder=tmp_path)
    assert (refused.returncode, "at least 30 answered inputs, got 29" in refused.stderr) == (
        2,
        True,
    )


def test_a_sketch_travels_in_the_archive_of_its_network_alone(
    archive: Path, tmp_path: Path
) -> None:
    sketched(archive, tmp_path, inspect_archive(archive).digest, 200)
    done = run("sketch", "batch", str(archive), folder=tmp_path)
    assert done.returncode == 0, done.stderr
    checkout = make_checkout(tmp_path / "checkout")
    weights = checkout / "models" / "tiny" / "weights"
    shutil.copy(tmp_path / "reference.json", weights)
    reference = verify_archive(build_archive("tiny", tmp_path / "store", checkout)).reference
    assert reference is not None
    assert reference.inputs == 200
    assert reference.signals["novelty"]["dark"].count == 200
    content = (weights / "reference.json").read_text(encoding="utf-8")
    stale = content.replace(reference.network, "0" * 64)
    (weights / "reference.json").write_text(stale, encoding="utf-8")
    with pytest.raises(ArchiveError, match=r"reference\.json is of another network"):
        build_archive("tiny", tmp_path / "store", checkout)


def test_a_sketch_is_packed_into_a_copy_of_an_archive_that_no_room_builds(
    archive: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    store.mkdir()
    stored = Path(shutil.copy(archive, store))
    sketched(stored, tmp_path, inspect_archive(stored).digest, 200)
    command = ("sketch", "batch", str(stored), "--version")
    done = run(*command, "1.1", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    before, after = verify_archive(stored), verify_archive(store / "tiny-1.1.mar")
    assert (after.version, before.reference) == ("1.1", None)
    assert after.reference is not None
    assert after.reference.inputs == 200
    changed = {"model-config.yaml", "reference.json"}
    old, new = ({each.path: each.sha256 for each in info.members} for info in (before, after))
    assert {path for path in new if old.get(path) != new[path]} == changed
    assert not (tmp_path / "reference.json").exists()
    again = run(*command, "1.1", folder=tmp_path)
    assert (again.returncode, "does not hold, got 1.1" in again.stderr) == (2, True)
    wrong = run(*command, "../x", folder=tmp_path)
    assert wrong.returncode == 2, wrong.stderr
    assert len(list(tmp_path.rglob("*.mar"))) == 2


def test_a_sketch_of_classes_that_are_all_rare_is_refused(archive: Path, tmp_path: Path) -> None:
    sketched(archive, tmp_path, inspect_archive(archive).digest, 40, labels=LABELS[:3])
    refused = run("sketch", "batch", str(archive), folder=tmp_path)
    assert (refused.returncode, "at least 20 inputs, got none" in refused.stderr) == (2, True)
    assert not (tmp_path / "reference.json").exists()


def sketched(
    archive: Path, folder: Path, digest: str, count: int, labels: Sequence[str] = ("dark",)
) -> None:
    """Write the folder of a batch whose studies were found to be of these labels, in turn."""
    batch = BatchFolder(folder / "batch")
    batch.open(BatchHead(model="tiny", task=Task.CLASSIFICATION))
    for number in range(count):
        label = labels[number % len(labels)]
        answer = {"label": label, "probability": 0.9, "novelty": number / count}
        key = study_key(str(number))
        batch.store(Receipt(key=key, id=str(number), archive_digest=digest, answer=answer), {})
