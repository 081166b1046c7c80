"""Ready means proven: a worker reproduces its archive's golden answer before it serves."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medserve.errors import ModelNotReadyError

__all__ = ["GoldenPair", "archive_digest", "read_golden_pair"]

_MANIFEST = "medserve-manifest.json"
_TOLERANCE = "tolerance"


@dataclass(frozen=True, eq=False)
class GoldenPair:
    """A file, and what the network gave for it when the archive was built.

    Attributes:
        payload: The bytes of the file.
        outputs: Output name -> array with one row.
        tolerance: Largest absolute difference that an engine may make: (), or (K,) for each
            number of an output's last axis.
    """

    payload: bytes
    outputs: Mapping[str, npt.NDArray[np.float32]]
    tolerance: npt.NDArray[np.float64]

    def check(self, outputs: Mapping[str, npt.NDArray[np.float32]]) -> None:
        """Compare the worker's own outputs.

        Raises:
            ModelNotReadyError: an output is missing, has another shape or other values.
        """
        for name, expected in self.outputs.items():
            if name not in outputs:
                raise _not_ready(f"output {name}", f"only {', '.join(sorted(outputs))}")
            got = outputs[name]
            if got.shape != expected.shape:
                raise _not_ready(f"{name} of shape {expected.shape}", f"{got.shape}")
            difference = np.abs(got.astype(np.float64) - expected)
            if not (difference <= self.tolerance).all():  # so that NaN fails
                within = ", ".join(f"{each:g}" for each in self.tolerance.ravel())
                raise _not_ready(
                    f"{name} within {within} of the golden output",
                    f"a difference of {difference.max():g}",
                )


def read_golden_pair(folder: Path) -> GoldenPair:
    """Read `golden_input.*` and `golden_output.npz`.

    Raises:
        ModelNotReadyError: one of them is missing, double or cannot be read.
    """
    inputs = sorted(folder.glob("golden_input.*"))
    if len(inputs) != 1:
        raise _not_ready("one file golden_input.*", f"{len(inputs)}")
    try:
        with np.load(folder / "golden_output.npz", allow_pickle=False) as archive:
            arrays: dict[str, Any] = dict(archive)
        tolerance = np.asarray(arrays.pop(_TOLERANCE), dtype=np.float64)
    except (OSError, ValueError, KeyError) as error:
        raise _not_ready(f"golden_output.npz with {_TOLERANCE}", type(error).__name__) from error
    if not arrays:
        raise _not_ready("golden_output.npz with at least one output", "none")
    return GoldenPair(inputs[0].read_bytes(), arrays, tolerance)


def archive_digest(folder: Path) -> str:
    """Digest "sha256:…" of the archive's manifest; empty where there is no archive."""
    try:
        return "sha256:" + hashlib.sha256((folder / _MANIFEST).read_bytes()).hexdigest()
    except FileNotFoundError:
        return ""


def _not_ready(expected: str, got: str) -> ModelNotReadyError:
    return ModelNotReadyError(
        f"expected {expected}, got {got}; this worker would not answer as its archive was "
        "tested: build the archive again, or use the engine that it was built for"
    )
