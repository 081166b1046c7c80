"""The manifest and the hashes that stand for names."""

from __future__ import annotations

import dataclasses
import stat
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as pillow

from annotation.manifest import (
    FrameEntry,
    Pseudonyms,
    new_folder,
    read_grey,
    read_manifest,
    write_grey,
    write_manifest,
)
from medserve.errors import ConfigError
from medserve.inference.frame_pipeline import FrameBox

ENTRY = FrameEntry(
    "a.png", "p1", "s1", 4, 30, 50, FrameBox(3, 7, 23, 47), (0.25, 0.5), 12, "0" * 64
)


def test_manifest_comes_back_as_it_was_written(tmp_path: Path) -> None:
    entries = (ENTRY, dataclasses.replace(ENTRY, name="b.png", spacing_mm=None))
    write_manifest(tmp_path, entries[::-1])
    assert read_manifest(tmp_path) == entries


def test_mask_finds_its_place_in_the_source_frame() -> None:
    mask = np.zeros((20, 40), dtype=np.uint8)
    mask[2, 5] = 255
    whole = ENTRY.to_source(mask)
    assert whole.shape == (30, 50)
    assert np.argwhere(whole).tolist() == [[5, 12]]
    with pytest.raises(ValueError, match="expected a mask of shape"):
        ENTRY.to_source(mask.T)


@pytest.mark.parametrize(("line", "expected"), [
    ("name,patient\na.png,p1\n", "expected the columns"),
    (None, "expected manifest.csv"),
    ("twice", "expected each name once, got 1 repeated"),
    ("../b.png", "expected the columns"),
])  # fmt: skip
def test_manifest_that_cannot_be_used_is_refused(
    line: str | None, expected: str, tmp_path: Path
) -> None:
    if line in ("twice", "../b.png"):
        name = "a.png" if line == "twice" else line
        write_manifest(tmp_path, [ENTRY, dataclasses.replace(ENTRY, name=name)])
    elif line is not None:
        (tmp_path / "manifest.csv").write_text(line, encoding="utf-8")
    with pytest.raises(ConfigError, match=expected):
        read_manifest(tmp_path)


def test_salt_is_made_once_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "salt"
    first = Pseudonyms.from_file(path, tmp_path / "out")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    again = Pseudonyms.from_file(path, tmp_path / "out")
    assert first.patient("Doe") == again.patient("Doe") != first.patient("Roe")
    assert first.patient("x")[1:] != first.source(b"x")[1:]
    other = Pseudonyms.from_file(tmp_path / "other", tmp_path / "out")
    assert other.patient("Doe") != first.patient("Doe")
    assert str(first.salt) not in repr(first)


def test_salt_beside_the_frames_it_protects_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="outside --out-dir"):
        Pseudonyms.from_file(tmp_path / "out" / "salt", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (tmp_path / "short").write_bytes(b"abc")
    with pytest.raises(ConfigError, match="random bytes"):
        Pseudonyms.from_file(tmp_path / "short", tmp_path / "out")


def test_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"

    def fail() -> None:
        with new_folder(out) as folder:
            (folder / "half").write_text("half")
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        fail()
    assert list((tmp_path / "deep").iterdir()) == []
    with new_folder(out) as folder:
        (folder / "whole").write_text("whole")
        assert not out.exists()
    assert [path.name for path in (tmp_path / "deep").rglob("*")] == ["out", "whole"]


def test_folder_with_something_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(ConfigError, match="new or empty"), new_folder(tmp_path):
        pass
    assert (tmp_path / "mine").read_text() == "mine"


def test_picture_carries_nothing_but_pixels(tmp_path: Path) -> None:
    image = np.arange(35, dtype=np.uint8).reshape(5, 7)
    write_grey(tmp_path / "a.png", image)
    with pillow.open(tmp_path / "a.png") as picture:
        assert picture.info == {}
    np.testing.assert_array_equal(read_grey(tmp_path / "a.png"), image)


def test_damaged_picture_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"\x89PNG but no more")
    with pytest.raises(ConfigError, match="a damaged one"):
        read_grey(tmp_path / "a.png")
    with pytest.raises(ConfigError, match="found none"):
        read_grey(tmp_path / "b.png")
