"""How long a speckle filter takes, against a scalar loop over pixels of the same equations.

    python -m benchmarks.filters --size 384 --iterations 10

Interleaved rounds, the median counts; one thread, as in a worker. Anisotropic diffusion is also
timed against medpy's, where that is installed.
"""

from __future__ import annotations

import importlib.util
import json
import math
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import numpy.typing as npt

from benchmarks.machine import describe_machine
from medserve.inference import filters
from medserve.spec.frames import FilterKind, FilterSpec
from training.core.config import Setting, run

__all__ = ["FiltersConfig", "loop_perona_malik", "main"]

_Plane = npt.NDArray[np.float32]


@dataclass(frozen=True)
class FiltersConfig:
    """Time the speckle filters."""

    size: Annotated[int, Setting("rows and columns of the frame", minimum=16)] = 384
    iterations: Annotated[int, Setting("steps of a diffusion", minimum=1)] = 10
    rounds: Annotated[int, Setting("of which the median counts", minimum=1)] = 5
    loop: Annotated[bool, Setting("also time the loop over pixels; seconds a round")] = True
    out: Annotated[Path | None, Setting("JSON file for the results")] = None


def main(config: FiltersConfig) -> None:
    """Print a table; milliseconds a frame."""
    generator = np.random.default_rng(seed=0)
    noise = generator.normal(size=(config.size, config.size))
    plane = np.clip(0.3 + 0.1 * noise, 0, 1).astype(np.float32)
    contenders = _contenders(plane, config)
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(config.rounds):
        for name, work in contenders.items():
            started = time.perf_counter()
            work()
            times[name].append(1000 * (time.perf_counter() - started))
    medians = {name: round(statistics.median(each), 2) for name, each in times.items()}
    print(f"{config.size} x {config.size} pixels, {config.iterations} steps")
    for name, milliseconds in medians.items():
        print(f"{name:28} {milliseconds:10.2f} ms")
    if config.out is not None:
        content = {
            "machine": describe_machine(),
            "size": config.size,
            "iterations": config.iterations,
            "ms": medians,
        }
        config.out.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _contenders(plane: _Plane, config: FiltersConfig) -> dict[str, Callable[[], object]]:
    def ours(kind: FilterKind) -> Callable[[], object]:
        spec = FilterSpec(kind, config.iterations, step=0.2, contrast=0.1)
        return lambda: filters.apply(plane, spec)

    contenders: dict[str, Callable[[], object]] = {
        "Gaussian": ours(FilterKind.GAUSSIAN),
        "Perona-Malik": ours(FilterKind.PERONA_MALIK),
        "SRAD": ours(FilterKind.SRAD),
    }
    if importlib.util.find_spec("medpy") is not None:
        smoothing = importlib.import_module("medpy.filter.smoothing")
        contenders["Perona-Malik, medpy"] = lambda: smoothing.anisotropic_diffusion(
            plane, niter=config.iterations, kappa=0.1, gamma=0.2, option=1
        )
    if config.loop:
        contenders["Perona-Malik, pixel by pixel"] = lambda: loop_perona_malik(
            plane, config.iterations, step=0.2, contrast=0.1
        )
    return contenders


def loop_perona_malik(plane: _Plane, iterations: int, step: float, contrast: float) -> _Plane:
    """Perona and Malik's scheme as their paper writes it, one pixel after the other."""
    values = [[float(each) for each in row] for row in plane]
    height, width = plane.shape
    for _ in range(iterations):
        changed = [row.copy() for row in values]
        for i in range(height):
            for j in range(width):
                for k, m in ((i - 1, j), (i + 1, j), (i, j - 1), (i, j + 1)):
                    if 0 <= k < height and 0 <= m < width:
                        difference = values[k][m] - values[i][j]
                        conducted = math.exp(-((difference / contrast) ** 2)) * difference
                        changed[i][j] += step * conducted
        values = changed
    return np.array(values, dtype=np.float32)


if __name__ == "__main__":
    sys.exit(run(main, FiltersConfig))
