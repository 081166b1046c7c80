"""An archive is the same bytes for the same inputs, and says so when it was altered."""

from __future__ import annotations

import hashlib
import json
import shutil
import stat
import subprocess
import sys
import zipfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from medserve.archive import (
    MANIFEST,
    TORCHSERVE_MANIFEST,
    golden_input,
    inspect_archive,
    verify_archive,
)
from medserve.errors import ArchiveError, ConfigError, UnknownModelError
from medserve.packaging import build_archive, find_checkout
from tests.tiny_room import LABELS, bright_tile, make_checkout

pytest.importorskip("model_archiver", reason="needs the serve extra")

Members = dict[str, bytes]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkout(tmp_path_factory.mktemp("checkout"))


@pytest.fixture(scope="module")
def archive(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_archive("tiny", tmp_path_factory.mktemp("store"), checkout)


def members(path: Path) -> Members:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def repacked(archive: Path, target: Path, change: Callable[[Members], object]) -> Path:
    """A copy of the archive with changed members and a valid zip around them."""
    content = members(archive)
    change(content)
    with zipfile.ZipFile(target, "w") as changed:
        for name, value in content.items():
            changed.writestr(name, value)
    return target


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
        "medserve/spec.py",
        "medserve-manifest.json",
        "metrics.json",
        "model-config.yaml",
        "model.onnx",
        "model.pt",
        "requirements.txt",
        "tiny.py",
    }


def test_client_training_and_tools_stay_at_home(archive: Path) -> None:
    strangers = ("medserve/client", "medserve/cli", "medserve/wire", "medserve/packaging")
    assert not [name for name in members(archive) if name.startswith((*strangers, "training"))]


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
        "numpy",
        "onnxruntime",
        "openvino",
        "pillow",
        "pydicom",
        "pyyaml",
    ]
    assert all(line.partition("==")[2] for line in lines)


def test_versions_stand_side_by_side(archive: Path, tmp_path: Path) -> None:
    checkout = make_checkout(tmp_path / "checkout", version="1.1")
    newer = build_archive("tiny", archive.parent, checkout)
    assert newer.name == "tiny-1.1.mar"
    assert verify_archive(newer).version == "1.1"
    assert verify_archive(archive).version == "1.0"


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
    monkeypatch.setattr("medserve.packaging.__file__", str(tmp_path / "lib/medserve/packaging.py"))
    with pytest.raises(ConfigError, match="expected to be inside a checkout"):
        find_checkout(tmp_path)


def test_an_altered_member_is_named(archive: Path, tmp_path: Path) -> None:
    changed = repacked(
        archive, tmp_path / "a.mar", lambda content: content.update({"tiny.py": b"import os\n"})
    )
    info = inspect_archive(changed)
    assert [member.path for member in info.members if not member.intact] == ["tiny.py"]
    with pytest.raises(ArchiveError, match=r"tiny\.py was altered after packaging"):
        verify_archive(changed)


def test_an_added_member_is_named(archive: Path, tmp_path: Path) -> None:
    changed = repacked(
        archive, tmp_path / "a.mar", lambda content: content.update({"torch.py": b"# shadows\n"})
    )
    with pytest.raises(ArchiveError, match=r"torch\.py was added after packaging"):
        verify_archive(changed)


def test_a_missing_member_is_named(archive: Path, tmp_path: Path) -> None:
    changed = repacked(archive, tmp_path / "a.mar", lambda content: content.pop("model.pt"))
    with pytest.raises(ArchiveError, match=r"model\.pt is missing"):
        verify_archive(changed)


def test_torchserve_cannot_be_pointed_at_another_handler(archive: Path, tmp_path: Path) -> None:
    def redirect(content: Members) -> None:
        manifest = content[TORCHSERVE_MANIFEST].replace(b'"tiny.py"', b'"handlers/base.py"')
        content[TORCHSERVE_MANIFEST] = manifest

    with pytest.raises(ArchiveError, match=r"MANIFEST\.json was altered"):
        verify_archive(repacked(archive, tmp_path / "a.mar", redirect))


def test_a_flipped_bit_is_found(archive: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(archive) as opened:
        offset = opened.getinfo("model.onnx").header_offset + 200
    content = bytearray(archive.read_bytes())
    content[offset] ^= 1
    damaged = tmp_path / "a.mar"
    damaged.write_bytes(content)
    with pytest.raises(ArchiveError, match=r"model\.onnx was altered"):
        verify_archive(damaged)


def test_a_foreign_archive_is_told_apart(archive: Path, tmp_path: Path) -> None:
    foreign = repacked(archive, tmp_path / "a.mar", lambda content: content.pop(MANIFEST))
    with pytest.raises(ArchiveError, match=r"expected the member medserve-manifest\.json"):
        inspect_archive(foreign)


@pytest.mark.parametrize("manifest", [b"{", b"[]", b'{"format": 2}', b'{"format": 1, "name": 3}'])
def test_a_manifest_of_another_shape_is_refused(
    archive: Path, tmp_path: Path, manifest: bytes
) -> None:
    changed = repacked(
        archive, tmp_path / "a.mar", lambda content: content.update({MANIFEST: manifest})
    )
    with pytest.raises(ArchiveError, match=r"medserve-manifest\.json"):
        inspect_archive(changed)


def test_a_file_that_is_no_zip_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.mar"
    path.write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(ArchiveError, match="expected a model archive"):
        inspect_archive(path)


def test_an_absent_file_is_refused_with_the_command_that_builds_it(tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match="no such file; build it with `medserve package NAME`"):
        inspect_archive(tmp_path / "a.mar")


@pytest.mark.parametrize("name", ["../evil.py", "/etc/evil", "a/../../b", "C:evil", "a\\..\\b"])
def test_a_name_that_leaves_the_folder_is_refused(archive: Path, tmp_path: Path, name: str) -> None:
    changed = repacked(archive, tmp_path / "a.mar", lambda content: content.update({name: b"evil"}))
    with pytest.raises(ArchiveError, match="would be unpacked outside its folder"):
        inspect_archive(changed)


@pytest.mark.parametrize(
    ("key", "value"),
    [("name", "../tiny"), ("name", "a=b"), ("version", "../1"), ("version", "1,2")],
)
def test_a_name_or_version_that_cannot_name_a_file_is_refused(
    archive: Path, tmp_path: Path, key: str, value: str
) -> None:
    def rename(content: Members) -> None:
        config = yaml.safe_load(content["model-config.yaml"])
        config["medserve"][key] = value
        content["model-config.yaml"] = yaml.safe_dump(config).encode()

    with pytest.raises(ArchiveError, match="expected a name of letters"):
        inspect_archive(repacked(archive, tmp_path / "a.mar", rename))


@pytest.mark.parametrize("member", [MANIFEST, TORCHSERVE_MANIFEST, "model-config.yaml"])
def test_brackets_without_end_are_refused(archive: Path, tmp_path: Path, member: str) -> None:
    changed = repacked(
        archive, tmp_path / "a.mar", lambda content: content.update({member: b"[" * 50_000})
    )
    with pytest.raises(ArchiveError):
        verify_archive(changed)


def test_a_configuration_that_unfolds_is_refused(archive: Path, tmp_path: Path) -> None:
    bomb = "a: &a [x, x]\n" + "".join(
        f"{key}: &{key} [*{before}, *{before}]\n" for before, key in pairwise("abcdefgh")
    )
    changed = repacked(
        archive,
        tmp_path / "a.mar",
        lambda content: content.update({"model-config.yaml": bomb.encode()}),
    )
    with pytest.raises(ArchiveError, match="aliases are not allowed"):
        inspect_archive(changed)


def test_a_link_is_refused(archive: Path, tmp_path: Path) -> None:
    path = shutil.copy(archive, tmp_path / "a.mar")
    link = zipfile.ZipInfo("link.py")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(path, "a") as opened:
        opened.writestr(link, "/etc/passwd")
    with pytest.raises(ArchiveError, match="is a link"):
        inspect_archive(Path(path))


def test_a_name_that_is_there_twice_is_refused(archive: Path, tmp_path: Path) -> None:
    path = shutil.copy(archive, tmp_path / "a.mar")
    with zipfile.ZipFile(path, "a") as opened, pytest.warns(UserWarning, match="Duplicate name"):
        opened.writestr("tiny.py", b"import os\n")
    with pytest.raises(ArchiveError, match="is there twice"):
        inspect_archive(Path(path))


def test_a_decompression_bomb_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "a.mar"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as bomb:
        bomb.writestr("model.onnx", bytes(50_000_000))
    with pytest.raises(ArchiveError, match="is compressed or encrypted"):
        inspect_archive(path)


def test_an_archive_cut_short_is_refused(archive: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.mar"
    path.write_bytes(archive.read_bytes()[:-500])
    with pytest.raises(ArchiveError):
        inspect_archive(path)


def run(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """The command line, inside a folder."""
    command = [sys.executable, "-m", "medserve.cli.main", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


def test_the_command_packages_every_room_and_prints_path_and_digest(
    checkout: Path, tmp_path: Path
) -> None:
    done = run("package", "--all", "--store", str(tmp_path), folder=checkout)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{tmp_path}/tiny-1.0.mar  ")
    assert inspect_archive(tmp_path / "tiny-1.0.mar").digest in done.stdout


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


def test_the_command_ends_with_2_and_one_line_for_what_is_no_archive(tmp_path: Path) -> None:
    refused = run("inspect", "none.mar", folder=tmp_path)
    assert refused.returncode == 2
    assert refused.stderr.count("\n") == 1
