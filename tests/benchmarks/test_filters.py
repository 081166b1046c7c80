from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.filters import FiltersConfig, loop_perona_malik, main
from medserve.inference import filters
from medserve.spec.frames import FilterKind, FilterSpec


def test_the_loop_that_we_are_timed_against_computes_the_same() -> None:
    plane = np.random.default_rng(0).random((12, 17), dtype=np.float32)
    spec = FilterSpec(FilterKind.PERONA_MALIK, iterations=5, step=0.2, contrast=0.3)
    expected = loop_perona_malik(plane, iterations=5, step=0.2, contrast=0.3)
    np.testing.assert_allclose(filters.apply(plane, spec), expected, atol=1e-5)


@pytest.mark.process
def test_the_benchmark_prints_and_writes_every_contender(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(FiltersConfig(size=16, iterations=2, rounds=1, out=tmp_path / "filters.json"))
    content = json.loads((tmp_path / "filters.json").read_text(encoding="utf-8"))
    names = {"Gaussian", "Perona-Malik", "SRAD", "Perona-Malik, pixel by pixel"}
    assert names <= set(content["ms"])
    printed = capsys.readouterr().out
    assert [name for name in content["ms"] if name not in printed] == []
