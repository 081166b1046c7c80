"""OpenVINO: the fastest engine on the CPUs we measured, and the default there."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medserve.errors import ArchiveError
from medserve.inference.engines.engine import Inputs, Outputs, refuse
from medserve.spec import EngineName, Precision

if TYPE_CHECKING:
    import openvino

__all__ = ["OpenVinoEngine", "load"]

_PRECISIONS = {Precision.F32: "f32", Precision.BF16: "bf16"}


class OpenVinoEngine:
    """One compiled model with one request, run in the caller's thread."""

    name = EngineName.OPENVINO

    def __init__(self, model: openvino.CompiledModel) -> None:
        self._names = [port.get_any_name() for port in model.outputs]
        self._request = model.create_infer_request()

    def run(self, inputs: Inputs) -> Outputs:
        """A batch of N rows -> every output by name."""
        named: dict[int | str, Any]
        if isinstance(inputs, np.ndarray):
            named = {0: np.ascontiguousarray(inputs)}
        else:
            named = {name: np.ascontiguousarray(array) for name, array in inputs.items()}
        # Inputs are only read while the call lasts, so they need not be copied; outputs are
        # copied out, for the next call writes over them.
        results = self._request.infer(named, share_inputs=True)
        return {name: results[index] for index, name in enumerate(self._names)}


def load(path: Path, *, precision: Precision, threads: int, device: str) -> OpenVinoEngine:
    """Compile the ONNX file for the CPU."""
    openvino = _without_telemetry()
    if device != "cpu":
        raise refuse(EngineName.OPENVINO, f"device {device}", "use torchscript on CUDA")
    settings = {
        # Left alone, OpenVINO picks bf16 on processors that have it: answers move by 1e-2.
        "INFERENCE_PRECISION_HINT": _PRECISIONS[precision],
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,  # one request at a time; more streams would split the threads
        "PERFORMANCE_HINT": "LATENCY",
        # Left on, every process binds its thread to the same first core: two workers, one core.
        "ENABLE_CPU_PINNING": False,
    }
    try:
        return OpenVinoEngine(openvino.Core().compile_model(str(path), "CPU", settings))
    except RuntimeError as error:
        raise ArchiveError(f"openvino: {path.name} cannot be loaded ({error})") from error


def _without_telemetry() -> Any:
    """Import OpenVINO so that it reports to nobody.

    Its import sends a usage event over the internet and writes an identifier into the home
    folder, unless the package that does so cannot be imported; then it uses an empty stand-in.
    """
    modules: dict[str, Any] = sys.modules
    if "openvino" not in modules:
        modules.setdefault("openvino_telemetry", None)
    import openvino

    return openvino
