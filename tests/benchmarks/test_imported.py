"""The measurement of an imported model, on a tiny folder: that it measures, not what."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.imported import main


@pytest.mark.benchmark
@pytest.mark.filterwarnings("ignore")  # the other tool's own
def test_everything_is_measured_and_written(tmp_path: Path) -> None:
    for module in ("model_archiver", "onnxscript", "nnunetv2"):
        pytest.importorskip(module, reason=f"{module} is not installed; .ci/run installs it")
    out = tmp_path / "imported.json"
    sizes = ("--patch", "32,32,32", "--shape", "48,44,40", "--features", "8,16,32")
    main([*sizes, "--rounds", "1", "--out", str(out)])
    results = json.loads(out.read_text())["results"]
    assert results["equal_share"] >= 0.9999
    assert results["measured_mib"] > 1  # a process of its own begins at nothing
    assert results["predicted_mib"] > 1
    assert results["cpu_ratio"]["median"] > 0
    assert results["first_cpu_s"] > 0
    assert results["own_first_cpu_s"] > 0
