"""Triton's Python backend around the same work; Triton forms the batches itself.

Copied to `<repository>/<model>/1/model.py`. MEDSERVE_BENCH_ARCHIVE_DIR names the archive and
MEDSERVE_BENCH_PATH the folders to import from: the backend's own Python ignores PYTHONPATH.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

sys.path[:0] = os.environ["MEDSERVE_BENCH_PATH"].split(os.pathsep)

import numpy as np  # noqa: E402
import triton_python_backend_utils as triton  # type: ignore[import-not-found]  # noqa: E402

from benchmarks.work import load_work  # noqa: E402


class TritonPythonModel:
    """The class that Triton looks for."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load in the stub process, where the engine will run."""
        self.work = load_work(Path(os.environ["MEDSERVE_BENCH_ARCHIVE_DIR"]))

    def execute(self, requests: list[Any]) -> list[Any]:
        """One answer per request that Triton has gathered."""
        images = [
            triton.get_input_tensor_by_name(request, "image").as_numpy()[0, 0]
            for request in requests
        ]
        return [
            triton.InferenceResponse([triton.Tensor("answer", np.array([[answer]], object))])
            for answer in self.work(images)
        ]
