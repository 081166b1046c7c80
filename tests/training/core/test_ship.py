"""What a training puts into a room."""

from __future__ import annotations

from pathlib import Path

import pytest

from training.core.ship import install_files


def test_a_new_network_takes_away_the_reference_of_the_old_one(tmp_path: Path) -> None:
    made, weights = tmp_path / "made", tmp_path / "weights"
    for folder in (made, weights):
        folder.mkdir()
    for path in (made / "model.onnx", made / "metrics.json", weights / "reference.json"):
        path.write_bytes(b"{}")
    install_files({weights: [made / "metrics.json"]})
    assert (weights / "reference.json").is_file()
    install_files({weights: [made / "model.onnx"]})
    assert not (weights / "reference.json").exists()


def test_a_room_stays_as_it_was_where_one_file_cannot_be_copied(tmp_path: Path) -> None:
    made, weights = tmp_path / "made", tmp_path / "weights"
    for folder in (made, weights):
        folder.mkdir()
    (made / "model.onnx").write_bytes(b"new")
    before = {"model.onnx": b"old", "reference.json": b"{}"}
    for name, content in before.items():
        (weights / name).write_bytes(content)
    with pytest.raises(FileNotFoundError):
        install_files({weights: [made / "model.onnx", made / "split.csv"]})
    assert {path.name: path.read_bytes() for path in weights.iterdir()} == before
