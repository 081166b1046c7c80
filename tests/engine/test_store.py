"""Which archives of a store are served, and which version answers by default."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from medserve.archive.store import default_versions, select_archives
from medserve.errors import ArchiveError, ConfigError, UnknownModelError
from tests.archives import packaged
from tests.tiny_room import make_checkout

pytest.importorskip("model_archiver", reason="needs the serve extra")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("store")
    for version in ("1.9", "1.10", "1.10-rc1"):
        checkout = make_checkout(tmp_path_factory.mktemp("checkout") / version, version=version)
        packaged("tiny", folder, checkout)
    return folder


def test_versions_are_ordered_as_numbers(store: Path) -> None:
    assert [info.version for info in select_archives(store)] == ["1.9", "1.10-rc1", "1.10"]


def test_the_highest_version_is_the_default(store: Path) -> None:
    assert default_versions(select_archives(store), {}) == {"tiny": "1.10"}


def test_another_default_can_be_chosen(store: Path) -> None:
    assert default_versions(select_archives(store), {"tiny": "1.9"}) == {"tiny": "1.9"}


def test_a_default_that_is_not_there_is_refused_with_what_is(store: Path) -> None:
    with pytest.raises(ConfigError, match=r"one of 1\.9, 1\.10-rc1, 1\.10 for tiny, got '2'"):
        default_versions(select_archives(store), {"tiny": "2"})


def test_a_default_for_a_model_that_is_not_served_is_refused(store: Path) -> None:
    with pytest.raises(ConfigError, match="one of none for other"):
        default_versions(select_archives(store), {"other": "1.0"})


def test_an_unknown_name_is_refused_with_the_names_there_are(store: Path) -> None:
    with pytest.raises(UnknownModelError, match=r"models out of tiny in .*, got 'mednits'"):
        select_archives(store, ["mednits"])


def test_an_empty_store_is_refused_with_the_command_that_fills_it(tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match="`medserve package --all`"):
        select_archives(tmp_path)


def test_a_damaged_archive_stops_its_own_model_and_no_other(store: Path, tmp_path: Path) -> None:
    shutil.copy(store / "tiny-1.9.mar", tmp_path)
    (tmp_path / "other-1.0.mar").write_bytes(b"no zip")
    assert [info.name for info in select_archives(tmp_path, ["tiny"])] == ["tiny"]
    with pytest.raises(ArchiveError, match=r"other-1\.0\.mar"):
        select_archives(tmp_path)


def test_one_version_in_two_files_is_refused(store: Path, tmp_path: Path) -> None:
    shutil.copy(store / "tiny-1.9.mar", tmp_path)
    shutil.copy(store / "tiny-1.9.mar", tmp_path / "tiny-copy.mar")
    with pytest.raises(ConfigError, match=r"both hold tiny 1\.9; remove one"):
        select_archives(tmp_path)
