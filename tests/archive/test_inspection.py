"""An archive that was altered, or built to harm its reader, is refused by name."""

from __future__ import annotations

import shutil
import stat
import zipfile
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from medserve.archive.read import (
    MANIFEST,
    TORCHSERVE_MANIFEST,
    inspect_archive,
    verify_archive,
)
from medserve.errors import ArchiveError
from tests.archive.altered import Members, repacked


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
