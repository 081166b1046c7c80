"""The measurement of synthetic images, on the tiny room: that it measures, not what."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.sampling import main
from tests.archives import packaged_fixture


@pytest.mark.benchmark
def test_everything_is_measured_and_written(tmp_path: Path) -> None:
    pytest.importorskip("model_archiver", reason="needs the serve extra")
    archive = packaged_fixture("painter", tmp_path / "store")
    out = tmp_path / "sampling.json"
    main(["--archive", str(archive), "--rounds", "1", "--images", "2", "--out", str(out)])
    results = json.loads(out.read_text())["results"]
    for name in ("served_of_in_process", "served_ms", "streamed_of_unary"):
        assert results[name]["median"] > 0
    assert set(results["together_of_alone"]) == {"2", "4", "8"}
