"""Run an archive on two devices and compare: the same answer, and how fast each is.

An archive brings its own code, so each run is a process of its own in the unpacked archive, with
nothing of the checkout in reach, as in a worker of TorchServe.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from medserve.archive.read import verify_archive
from medserve.errors import ServerFailedError

__all__ = ["Comparison", "Run", "compare", "run_archive"]

# `handlers.base` proves the golden pair on the device before anything is timed.
_WORKER = r"""
import importlib, inspect, json, sys, time
import numpy as np
folder, name, gpu, repeats = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
sys.path.insert(0, folder)
from handlers.golden import read_golden_pair
from pathlib import Path

class Context:
    system_properties = {"model_dir": folder, "gpu_id": int(gpu) if gpu else None}
    model_yaml_config, model_name, metrics, request_ids = None, name, None, {}

module = importlib.import_module(name)
[kind] = [each for _, each in inspect.getmembers(module, inspect.isclass)
          if each.__module__ == module.__name__]
handler = kind()
handler.initialize(Context())
golden = read_golden_pair(Path(folder))
times = []
for _ in range(repeats):
    started = time.perf_counter()
    outputs = handler.reproduce(golden.payload)
    times.append(time.perf_counter() - started)
np.savez(Path(folder) / "outputs.npz", **outputs)
print(json.dumps({"engine": str(handler.engine.name), "median_s": float(np.median(times)),
                  "tolerance": golden.tolerance.tolist()}))
"""


@dataclass(frozen=True)
class Run:
    """What one device made of the golden input."""

    device: str
    engine: str
    median_s: float
    outputs: dict[str, npt.NDArray[np.float32]]
    tolerance: float | list[float]  # or one for each number of an output's last axis


@dataclass(frozen=True)
class Comparison:
    """Two runs of one archive side by side.

    Attributes:
        difference: Largest absolute difference of any output.
        share: Largest difference as a share of the archive's own tolerance.
        agreement: Share of rows, or of voxels, that get the same class from both.
    """

    model: str
    reference: Run
    other: Run
    difference: float
    share: float
    agreement: float

    @property
    def same(self) -> bool:
        """Within the archive's own tolerance; both runs have met it against the golden answer."""
        return self.share <= 2  # NaN is not

    @property
    def speed_up(self) -> float:
        """How often the other device answers in the time of the reference."""
        return self.reference.median_s / self.other.median_s


def compare(archive: Path, other: str, repeats: int = 5) -> Comparison:
    """The archive on the CPU and on another device, "cuda" or again "cpu".

    Raises:
        ServerFailedError: it does not run on one of them; the message is the worker's last line.
    """
    reference = run_archive(archive, "cpu", repeats)
    second = run_archive(archive, other, repeats)
    difference, share, agreement = 0.0, 0.0, 1.0
    tolerance = np.asarray(reference.tolerance)
    for name, expected in reference.outputs.items():
        got = second.outputs[name]
        gaps = np.abs(expected.astype(np.float64) - got)
        difference = float(np.maximum(difference, gaps.max(initial=0.0)))  # keeps NaN
        share = float(np.maximum(share, (gaps / tolerance).max(initial=0.0)))
        if expected.ndim > 1:  # (N, classes, ...)
            same = np.mean(expected.argmax(axis=1) == got.argmax(axis=1))
            agreement = min(agreement, float(same))
    return Comparison(archive.stem, reference, second, difference, share, agreement)


def run_archive(archive: Path, device: str, repeats: int = 5) -> Run:
    """Prove the archive on "cpu" or "cuda", and time its golden input."""
    info = verify_archive(archive)
    gpu = "0" if device == "cuda" else ""
    with tempfile.TemporaryDirectory(prefix="medserve-device-") as folder:
        with zipfile.ZipFile(archive) as content:
            content.extractall(folder)
        command = [sys.executable, "-c", _WORKER, folder, info.name, gpu, str(repeats)]
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        run = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
        if run.returncode:
            last = (run.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise ServerFailedError(f"{archive.name} on {device}: {last}")
        said = json.loads(run.stdout.splitlines()[-1])
        with np.load(Path(folder) / "outputs.npz", allow_pickle=False) as arrays:
            outputs = dict(arrays)
    return Run(device, said["engine"], said["median_s"], outputs, said["tolerance"])
