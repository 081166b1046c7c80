"""A variant of a room as an archive: another version of the same served model."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from medserve.archive.build import build_archive
from medserve.archive.read import inspect_archive
from medserve.archive.store import default_versions, select_archives
from medserve.errors import ConfigError, UnknownModelError
from tests.archive.altered import members


@pytest.fixture(scope="module")
def with_variant(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkout of `tiny` with a variant `lean` in its room."""
    root = tmp_path_factory.mktemp("variants") / "checkout"
    shutil.copytree(checkout, root)
    room = root / "models/tiny"
    variant = room / "variants/lean"
    shutil.copytree(room, variant, ignore=shutil.ignore_patterns("variants"))
    config = (variant / "model-config.yaml").read_text(encoding="utf-8")
    changed = config.replace("version: '1.0'", "version: 1.0-lean")
    (variant / "model-config.yaml").write_text(changed, encoding="utf-8")
    (variant / "README.md").write_text("# tiny, lean\n", encoding="utf-8")
    return root


@pytest.fixture(scope="module")
def store(with_variant: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both versions, packaged."""
    folder = tmp_path_factory.mktemp("store")
    build_archive("tiny", folder, with_variant)
    build_archive("tiny", folder, with_variant, "lean")
    return folder


def test_a_variant_stands_beside_the_model_that_it_is_a_version_of(store: Path) -> None:
    info = inspect_archive(store / "tiny-1.0-lean.mar")
    assert (info.name, info.version, info.card) == ("tiny", "1.0-lean", "# tiny, lean\n")
    assert info.intact


def test_the_model_itself_stays_the_default_version(store: Path) -> None:
    archives = select_archives(store)
    assert [info.version for info in archives] == ["1.0-lean", "1.0"]
    assert default_versions(archives, {}) == {"tiny": "1.0"}
    assert default_versions(archives, {"tiny": "1.0-lean"}) == {"tiny": "1.0-lean"}


def test_a_variant_has_the_handler_of_its_room_and_nothing_of_other_variants(store: Path) -> None:
    own, lean = (members(store / f"tiny-{each}.mar") for each in ("1.0", "1.0-lean"))
    assert own["tiny.py"] == lean["tiny.py"]
    assert set(own) == set(lean)


def test_an_unknown_variant_is_refused_with_those_there_are(
    with_variant: Path, tmp_path: Path
) -> None:
    with pytest.raises(UnknownModelError, match="out of lean, got 'fat'"):
        build_archive("tiny", tmp_path, with_variant, "fat")


def test_a_variant_whose_version_does_not_name_it_is_refused(
    with_variant: Path, tmp_path: Path
) -> None:
    root = tmp_path / "checkout"
    shutil.copytree(with_variant, root)
    (root / "models/tiny/variants/lean").rename(root / "models/tiny/variants/slim")
    with pytest.raises(ConfigError, match="a version that ends with -slim"):
        build_archive("tiny", tmp_path / "store", root, "slim")


@pytest.mark.process
def test_the_command_packages_one_variant(with_variant: Path, tmp_path: Path) -> None:
    done = _package(with_variant, "tiny", "--variant", "lean", "--store", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.glob("*.mar")] == ["tiny-1.0-lean.mar"]


@pytest.mark.process
def test_the_command_wants_the_one_model_whose_variant_is_meant(with_variant: Path) -> None:
    done = _package(with_variant, "--all", "--variant", "lean")
    assert done.returncode == 2
    assert "expected exactly one NAME" in done.stderr


def _package(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "medserve.cli.main", "package", *arguments]
    return subprocess.run(command, cwd=root, capture_output=True, text=True)
