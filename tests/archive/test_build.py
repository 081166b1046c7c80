"""An archive is the same bytes for the same inputs and carries all that decides its answers."""

from __future__ import annotations

import hashlib
import json
import shutil
import stat
import subprocess
import zipfile
from pathlib import Path

import pytest

from medserve.archive.build import build_archive, find_checkout
from medserve.archive.read import (
    MANIFEST,
    TORCHSERVE_MANIFEST,
    golden_input,
    inspect_archive,
    verify_archive,
)
from medserve.errors import ArchiveError, ConfigError, UnknownModelError
from tests.archive.altered import members
from tests.tiny_room import LABELS, bright_tile, make_checkout


def test_the_archive_is_named_by_model_and_version(archive: Path) -> None:
    assert archive.name == "tiny-1.0.mar"


def test_the_same_inputs_give_the_same_bytes(checkout: Path, archive: Path, tmp_path: Path) -> None:
    for path in (checkout / "models/tiny/weights").iterdir():
        path.touch()  # another time, the same content
    again = build_archive("tiny", tmp_path, checkout)
    assert again.read_bytes() == archive.read_bytes()


def test_a_changed_preprocessing_gives_another_digest(archive: Path, tmp_path: Path) -> None:
    checkout = make_checkout(tmp_path / "checkout")
    with (checkout / "medserve/inference/fit.py").open("a") as source:
        source.write("# changed\n")
    changed = build_archive("tiny", tmp_path / "store", checkout)
    assert inspect_archive(changed).digest != inspect_archive(archive).digest


def test_members_are_stored_in_order_with_one_time_and_mode(archive: Path) -> None:
    with zipfile.ZipFile(archive) as opened:
        entries = opened.infolist()
    assert [entry.filename for entry in entries] == sorted(entry.filename for entry in entries)
    assert {entry.date_time for entry in entries} == {(1980, 1, 1, 0, 0, 0)}
    assert {entry.external_attr >> 16 for entry in entries} == {stat.S_IFREG | 0o644}
    assert {entry.compress_type for entry in entries} == {zipfile.ZIP_STORED}


def test_code_weights_card_and_golden_pair_travel_together(archive: Path) -> None:
    names = set(members(archive))
    assert names >= {
        "MAR-INF/MANIFEST.json",
        "MODEL_CARD.md",
        "golden_input.png",
        "golden_output.npz",
        "handlers/__init__.py",
        "medserve/__init__.py",
        "medserve/errors.py",
        "medserve/imaging/image.py",
        "medserve/inference/fit.py",
        "medserve/spec/model.py",
        "medserve-manifest.json",
        "metrics.json",
        "model-config.yaml",
        "model.onnx",
        "model.pt",
        "requirements.txt",
        "tiny.py",
    }


def test_client_training_and_tools_stay_at_home(archive: Path) -> None:
    strangers = ("medserve/client", "medserve/cli", "medserve/wire", "medserve/archive/build")
    assert not [name for name in members(archive) if name.startswith((*strangers, "training"))]


@pytest.mark.process
def test_the_handler_of_another_room_stays_at_home(checkout: Path, tmp_path: Path) -> None:
    root = tmp_path / "checkout"
    shutil.copytree(checkout, root)
    shutil.copytree(root / "models/tiny", root / "models/other")
    (root / "handlers/other.py").write_text('"""Another room."""\n')
    names = members(build_archive("tiny", tmp_path / "store", root))
    assert "handlers/other.py" not in names
    assert "handlers/tiny.py" not in names


def test_the_manifest_digests_every_other_member(archive: Path) -> None:
    content = members(archive)
    listed = json.loads(content[MANIFEST])["members"]
    assert set(listed) == set(content) - {MANIFEST, TORCHSERVE_MANIFEST}
    assert all(listed[name] == hashlib.sha256(content[name]).hexdigest() for name in listed)


def test_inspection_shows_what_the_archive_says_about_itself(archive: Path) -> None:
    info = inspect_archive(archive)
    assert (info.name, info.version, info.spec.labels) == ("tiny", "1.0", LABELS)
    assert info.metrics == {"accuracy": 1.0, "n": 6}  # figures only; tables stay in the file
    assert info.card.startswith("# tiny")
    assert {"python", "torch", "onnxruntime", "openvino", "numpy"} <= set(info.versions)
    assert info.sha256 == hashlib.sha256(archive.read_bytes()).hexdigest()
    assert info.digest == f"sha256:{hashlib.sha256(members(archive)[MANIFEST]).hexdigest()}"
    assert info.intact


def test_the_golden_input_can_be_taken_out_as_a_canary(archive: Path) -> None:
    assert golden_input(archive) == bright_tile(4)


def test_requirements_pin_what_a_stock_server_must_install(archive: Path) -> None:
    lines = members(archive)["requirements.txt"].decode().splitlines()
    assert [line.partition("==")[0] for line in lines] == [
        "msgspec",
        "numpy",
        "onnxruntime",
        "openvino",
        "pillow",
        "pydicom",
        "pyyaml",
        "simplejpeg",
        "tifffile",
    ]
    assert all(line.partition("==")[2] for line in lines)


def test_versions_stand_side_by_side(archive: Path, tmp_path: Path) -> None:
    checkout = make_checkout(tmp_path / "checkout", version="1.1")
    newer = build_archive("tiny", archive.parent, checkout)
    assert newer.name == "tiny-1.1.mar"
    assert verify_archive(newer).version == "1.1"
    assert verify_archive(archive).version == "1.0"


@pytest.mark.process
def test_the_commit_is_the_last_one_that_touched_an_input(tmp_path: Path) -> None:
    checkout = make_checkout(tmp_path / "checkout")

    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
        run = subprocess.run(
            ["git", "-C", str(checkout), *identity, *arguments],
            check=True,
            capture_output=True,
            text=True,
        )
        return run.stdout.strip()

    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "inputs")
    commit = git("rev-parse", "HEAD")
    (checkout / "NOTES").write_text("no input of the archive\n")
    git("add", ".")
    git("commit", "-qm", "elsewhere")
    built = build_archive("tiny", tmp_path / "store", checkout)
    assert inspect_archive(built).git_commit == commit
    with (checkout / "medserve/errors.py").open("a") as source:
        source.write("# changed\n")
    built = build_archive("tiny", tmp_path / "store", checkout)
    assert inspect_archive(built).git_commit == f"{commit}-dirty"


def test_outside_a_repository_the_commit_is_unknown(archive: Path) -> None:
    assert inspect_archive(archive).git_commit == "unknown"


def test_an_unknown_room_is_refused_with_the_rooms_there_are(
    checkout: Path, tmp_path: Path
) -> None:
    with pytest.raises(UnknownModelError, match="expected one of tiny, got 'x'"):
        build_archive("x", tmp_path, checkout)


def test_an_incomplete_room_is_refused_with_what_is_missing(tmp_path: Path) -> None:
    checkout = make_checkout(tmp_path / "checkout")
    (checkout / "models/tiny/weights/model.pt").unlink()
    (checkout / "models/tiny/weights/golden_input.png").unlink()
    with pytest.raises(ArchiveError, match=r"model\.pt, models/tiny/weights/golden_input") as error:
        build_archive("tiny", tmp_path / "store", checkout)
    assert "python -m training.tiny" in str(error.value)
    assert not (tmp_path / "store").exists()


def test_the_checkout_is_found_from_a_folder_inside_it(checkout: Path) -> None:
    assert find_checkout(checkout / "models" / "tiny") == checkout


def test_no_checkout_is_said_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "medserve.archive.build.__file__", str(tmp_path / "lib/medserve/archive/build.py")
    )
    with pytest.raises(ConfigError, match="expected to be inside a checkout"):
        find_checkout(tmp_path)
