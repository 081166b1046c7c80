"""What every engine offers, and the one place that loads one by name."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from medserve.cores import available_cores
from medserve.errors import ArchiveError, ConfigError
from medserve.spec import EngineName, Precision

__all__ = ["ONNX_FILE", "TORCHSCRIPT_FILE", "Engine", "Inputs", "Outputs", "load_engine"]

# A batch (N, C, ...) for an artifact of one input, or an array with N rows for each input by name,
# in the order in which the artifact takes them.
Inputs = npt.NDArray[np.float32] | Mapping[str, npt.NDArray[Any]]
Outputs = dict[str, npt.NDArray[np.float32]]  # output name -> array with the batch as first axis

ONNX_FILE = "model.onnx"
TORCHSCRIPT_FILE = "model.pt"


class Engine(Protocol):
    """Executes one artifact; not for use by several threads at a time."""

    name: EngineName

    def run(self, inputs: Inputs) -> Outputs:
        """A batch of N rows -> every output of the artifact by name, N rows each."""


# engine -> (module here, artifact, what to install where the library is missing)
_ENGINES = {
    EngineName.OPENVINO: ("openvino", ONNX_FILE, "openvino"),
    EngineName.ONNXRUNTIME: ("onnxruntime", ONNX_FILE, "onnxruntime"),
    EngineName.TORCHSCRIPT: ("torchscript", TORCHSCRIPT_FILE, "torch"),
}


def load_engine(
    name: EngineName,
    folder: Path,
    *,
    precision: Precision = Precision.F32,
    threads: int = 1,
    device: str = "cpu",
) -> Engine:
    """Load the artifact in `folder` into the engine of that name.

    Args:
        name: Which engine.
        folder: Holds `model.onnx` or `model.pt`.
        precision: Arithmetic inside the network; inputs and outputs stay float32.
        threads: Threads that one call may use; 0: one for each core that this process may use.
        device: "cpu", or "cuda" / "cuda:1" for the engines that have it.

    Raises:
        ArchiveError: the artifact is missing or cannot be read.
        ConfigError: the library is not installed, or cannot do what was asked for.
    """
    module, artifact, library = _ENGINES[name]
    path = folder / artifact
    if not path.is_file():
        raise ArchiveError(f"{name}: expected the artifact {artifact} beside the handler, got none")
    threads = threads or available_cores()
    options = {"precision": precision, "threads": threads, "device": device}
    try:
        engine: Engine = importlib.import_module(f"{__package__}.{module}").load(path, **options)
    except ImportError as error:
        raise ConfigError(
            f"{name}: the library {library} cannot be imported ({error}); install it with "
            "pip install 'medserve[serve]', or choose another engine"
        ) from error
    return engine


def refuse(name: EngineName, asked: str, instead: str) -> ConfigError:
    """The error of an engine that cannot do what was asked for."""
    return ConfigError(f"{name}: {asked} is not supported; {instead}")
