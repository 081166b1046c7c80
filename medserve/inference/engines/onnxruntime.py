"""ONNX Runtime: second on CPUs, and CUDA where its GPU build is installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from medserve.errors import ArchiveError
from medserve.inference.engines.engine import Inputs, Outputs, refuse
from medserve.spec import EngineName, Precision

__all__ = ["OnnxRuntimeEngine", "load"]

_ONLY_ERRORS = 3  # its own scale: 2 would print a warning per unused initialiser


class OnnxRuntimeEngine:
    """One inference session."""

    name = EngineName.ONNXRUNTIME

    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        self._session = session
        self._input = session.get_inputs()[0].name
        self._names = [each.name for each in session.get_outputs()]

    def run(self, inputs: Inputs) -> Outputs:
        """A batch of N rows -> every output by name."""
        named = {self._input: inputs} if isinstance(inputs, np.ndarray) else dict(inputs)
        arrays = self._session.run(self._names, named)
        return dict(zip(self._names, arrays, strict=True))


def load(path: Path, *, precision: Precision, threads: int, device: str) -> OnnxRuntimeEngine:
    """Open the ONNX file with threads of its own, on CUDA if asked for and built in."""
    if precision is not Precision.F32:
        raise refuse(EngineName.ONNXRUNTIME, f"precision {precision}", "use f32 or openvino")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _ONLY_ERRORS
    # Waiting threads would burn the cores that the other workers need.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return OnnxRuntimeEngine(
            onnxruntime.InferenceSession(str(path), options, providers=_providers(device))
        )
    except Exception as error:  # its errors have no common base below Exception
        raise ArchiveError(f"onnxruntime: {path.name} cannot be loaded ({error})") from error


def _providers(device: str) -> list[Any]:
    if device == "cpu":
        return ["CPUExecutionProvider"]
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        raise refuse(
            EngineName.ONNXRUNTIME, f"device {device}", "install onnxruntime-gpu or use torchscript"
        )
    number = int(device.partition(":")[2] or 0)
    return [("CUDAExecutionProvider", {"device_id": number}), "CPUExecutionProvider"]
