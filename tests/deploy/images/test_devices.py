"""The comparison of two devices, with the CPU as both: a GPU is not needed to test its logic."""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path

import numpy as np
import pytest

from medserve.errors import ServerFailedError
from scripts.devices import Comparison, Run, compare
from tests.archives import packaged_fixture

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("onnxruntime") is None, reason="needs the extra serve"
)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packaged_fixture("tiny", tmp_path_factory.mktemp("store"))


def test_an_archive_agrees_with_itself(archive: Path) -> None:
    found = compare(archive, "cpu", repeats=2)
    assert (found.model, found.difference, found.agreement) == ("tiny-1.0", 0.0, 1.0)
    assert found.same
    assert found.speed_up > 0


def test_a_device_that_is_not_there_is_a_failure_with_a_reason(archive: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(ServerFailedError, match=r"tiny-1\.0\.mar on cuda: \w+"):
        compare(archive, "cuda", repeats=1)


@pytest.mark.gpu
def test_an_archive_gives_the_same_on_the_gpu(archive: Path) -> None:
    import torch

    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    found = compare(archive, "cuda", repeats=2)
    assert found.same
    assert found.other.engine == "torchscript"


@pytest.mark.parametrize(
    ("difference", "same"), [(0.0, True), (2e-3, True), (2.1e-3, False), (np.nan, False)]
)
def test_the_archives_tolerance_decides(difference: float, same: bool) -> None:
    run = Run("cpu", "onnxruntime", 0.2, {}, tolerance=1e-3)
    faster = dataclasses.replace(run, device="cuda", median_s=0.05)
    found = Comparison("tiny-1.0", run, faster, difference, difference / 1e-3, agreement=1.0)
    assert found.same is same
    assert found.speed_up == pytest.approx(4.0)
