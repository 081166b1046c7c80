"""What a training puts into a room."""

from __future__ import annotations

from pathlib import Path

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
