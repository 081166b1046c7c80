"""The measurement of volumes, on the tiny room: that it measures, not what."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import models
from benchmarks.eager_network import eager_network
from benchmarks.volumes import large_volume, main
from medserve.imaging.codecs import nifti
from tests.archives import packaged_fixture


def test_the_large_volume_does_not_compress_better_than_a_scan() -> None:
    volume = large_volume((64, 48, 32))
    assert volume.geometry.shape == (64, 48, 32)
    assert len(nifti.encode(volume)) > 0.4 * volume.array.nbytes
    np.testing.assert_array_equal(volume.array, large_volume((64, 48, 32)).array)


def test_the_eager_network_is_that_of_the_artifact() -> None:
    name = "segmentation_3d"
    if name not in models.names() or not (models.room(name) / "weights/config.json").is_file():
        pytest.skip("models/segmentation_3d/weights is not complete")
    import torch

    spec = models.spec(name)
    network = eager_network(spec)
    assert network is not None
    with torch.inference_mode():
        logits = network(torch.rand(1, 1, *spec.input.size))
    assert logits.shape == (1, len(spec.labels), *spec.input.size)


@pytest.mark.benchmark
def test_everything_is_measured_and_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDSERVE_ENGINE_THREADS", "1")  # it is set for good: restored hereby
    pytest.importorskip("model_archiver", reason="needs the serve extra")
    pytest.importorskip("monai", reason="needs the train extra")
    archive = packaged_fixture("tiny_volume", tmp_path / "store")
    arguments = ["--archive", archive, "--rounds", 1, "--volumes", 1, "--shape", "24,20,18"]
    out = tmp_path / "volumes.json"
    main([*map(str, arguments), "--large", "40,36,32", "--out", str(out)])
    results = json.loads(out.read_text())["results"]
    assert results["identical_share"] == 1.0
    assert results["served_of_in_process"]["median"] > 0
    assert results["worker_peak_mib"] > 50
    assert results["monai_over_ours"] is None  # no eager network outside of the checkout's rooms
