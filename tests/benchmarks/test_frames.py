"""The measurement of frames, on the tiny room: that it measures, not what."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.frames import main, speckled
from medserve.imaging import Image
from medserve.imaging.ultrasound_check import looks_like_ultrasound
from tests.archives import packaged_fixture
from tests.phantoms import raster_bytes


def test_the_frame_does_not_compress_better_than_a_scan() -> None:
    frame = speckled(256)
    assert len(raster_bytes(frame)) > 0.4 * frame.nbytes
    assert looks_like_ultrasound(Image(frame.astype(np.float32) / np.float32(255)))
    np.testing.assert_array_equal(frame, speckled(256))


@pytest.mark.benchmark
def test_everything_is_measured_and_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDSERVE_ENGINE_THREADS", "1")  # it is set for good: restored hereby
    pytest.importorskip("model_archiver", reason="needs the serve extra")
    archive = packaged_fixture("tiny_frame", tmp_path / "store")
    out = tmp_path / "frames.json"
    sizes = ["--rounds", "1", "--frames", "1", "--side", "96", "--loop", "7"]
    main(["--archive", str(archive), *sizes, "--out", str(out)])
    results = json.loads(out.read_text())["results"]
    assert results["served_of_in_process"]["median"] > 0
    assert results["served_ms"]["median"] > 0
    assert results["loop_ms"] > 0
    assert results["peak_mib"] >= results["peak_before_mib"] > 50
