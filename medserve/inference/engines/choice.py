"""Which engine a worker uses, with how many threads, on which device.

Environment: MEDSERVE_ENGINE overrides the engine's name, MEDSERVE_ENGINE_THREADS the number of
threads (`medserve serve` sets it to cores / workers), MEDSERVE_DEVICE=cuda takes a GPU where the
worker finds one, whatever `deviceType` the model names. Precedence: environment, then the model's
`model-config.yaml`, then the machine.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from medserve.cores import available_cores
from medserve.errors import ConfigError
from medserve.spec import EngineName, ModelSpec, Precision

__all__ = ["EngineChoice", "choose"]


@dataclass(frozen=True)
class EngineChoice:
    """What `load_engine` is to load."""

    name: EngineName
    precision: Precision
    threads: int
    device: str


def choose(
    spec: ModelSpec, gpu: int | None = None, environment: Mapping[str, str] = os.environ
) -> EngineChoice:
    """Settle engine, threads and device for one worker of a model.

    Args:
        spec: The model.
        gpu: Number of the GPU that TorchServe assigned to the worker; None on the CPU.
        environment: Where the overrides are looked up.

    Raises:
        ConfigError: an override has a value that cannot work.
    """
    override = environment.get("MEDSERVE_ENGINE", "")
    if override and override not in list(EngineName):
        allowed = ", ".join(EngineName)
        raise ConfigError(f"MEDSERVE_ENGINE: expected one of {allowed}, got {override!r}")
    name = EngineName(override) if override else spec.engine.name
    if gpu is None and environment.get("MEDSERVE_DEVICE") == "cuda" and _finds_cuda():
        gpu = 0
    if gpu is not None and not override:
        name = EngineName.TORCHSCRIPT  # OpenVINO does not run on CUDA, ONNX Runtime in one build
    on_gpu = gpu is not None and name is not EngineName.OPENVINO
    return EngineChoice(
        name=name,
        precision=Precision.F32 if on_gpu else spec.engine.precision,
        threads=_threads(spec, environment),
        device=f"cuda:{gpu}" if on_gpu else "cpu",
    )


def _finds_cuda() -> bool:
    """Asked only where a GPU is wanted: torch is slow to import."""
    import torch

    return torch.cuda.is_available()


def _threads(spec: ModelSpec, environment: Mapping[str, str]) -> int:
    stated = environment.get("MEDSERVE_ENGINE_THREADS", "")
    if stated:
        if not stated.isascii() or not stated.isdigit() or int(stated) < 1:
            raise ConfigError(f"MEDSERVE_ENGINE_THREADS: expected a number >= 1, got {stated!r}")
        return int(stated)
    return spec.engine.threads or max(1, available_cores() // spec.serving.min_workers)
