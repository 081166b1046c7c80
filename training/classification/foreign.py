"""Write pictures that no radiology model should take for its own.

    python -m training.classification.foreign --out-dir outputs/foreign

Photographs and pages of print come with scikit-image and scikit-learn; the rest is computed.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import numpy.typing as npt
import skimage.data
from PIL import Image as PillowImage
from sklearn.datasets import load_sample_images

from training.core.config import Setting, run

__all__ = ["ForeignConfig", "main"]

Pixels = npt.NDArray[np.uint8]

# Of those that scikit-image carries inside its wheel, so that nothing is downloaded.
_PHOTOGRAPHS = (
    "astronaut", "brick", "camera", "chelsea", "coffee", "coins", "grass", "gravel",
    "hubble_deep_field", "immunohistochemistry", "moon", "retina", "rocket",
)  # fmt: skip
_PRINT = ("page", "text")
_SIDE = 64  # pixels of the computed ones


@dataclass(frozen=True)
class ForeignConfig:
    """Write a folder of pictures for each kind of foreign image."""

    out_dir: Annotated[Path, Setting("receives one folder per kind")] = Path("outputs/foreign")
    crops: Annotated[int, Setting("squares cut from each photograph and page", minimum=1)] = 20
    computed: Annotated[int, Setting("pictures of each computed kind", minimum=2)] = 100
    seed: Annotated[int, Setting("of crops and noise", minimum=0)] = 0


def main(config: ForeignConfig) -> None:
    """Write all kinds as PNG."""
    generator = np.random.default_rng(config.seed)
    photographs = [getattr(skimage.data, name)() for name in _PHOTOGRAPHS]
    photographs += list(load_sample_images().images)
    pages = [getattr(skimage.data, name)() for name in _PRINT]
    kinds = {
        "photograph": _crops(photographs, config.crops, generator),
        "print": _crops(pages, 5 * config.crops, generator),
        "noise": _noise(config.computed, generator),
        "blank": _blank(config.computed),
        "gradient": _gradients(config.computed, generator),
    }
    for kind, pictures in kinds.items():
        folder = config.out_dir / kind
        folder.mkdir(parents=True, exist_ok=True)
        for number, picture in enumerate(pictures):
            PillowImage.fromarray(picture).save(folder / f"{number:04d}.png")


def _crops(pictures: list[Pixels], count: int, generator: np.random.Generator) -> Iterator[Pixels]:
    for picture in pictures:
        shortest = min(picture.shape[:2])
        for _ in range(count):
            side = int(generator.integers(shortest // 4, shortest + 1))
            top = int(generator.integers(picture.shape[0] - side + 1))
            left = int(generator.integers(picture.shape[1] - side + 1))
            yield np.ascontiguousarray(picture[top : top + side, left : left + side])


def _noise(count: int, generator: np.random.Generator) -> Iterator[Pixels]:
    """Uniform and normal noise, fine and coarse in turn."""
    for number in range(count):
        side = _SIDE >> (number % 3)  # 64, 32, 16 pixels, enlarged to 64
        if number % 2:
            values = generator.uniform(0.0, 255.0, (side, side))
        else:
            values = generator.normal(128.0, 50.0, (side, side))
        coarse = np.clip(values, 0.0, 255.0).astype(np.uint8)
        yield np.kron(coarse, np.ones((_SIDE // side, _SIDE // side), dtype=np.uint8))


def _blank(count: int) -> Iterator[Pixels]:
    for grey in np.linspace(0.0, 255.0, count):
        yield np.full((_SIDE, _SIDE), round(grey), dtype=np.uint8)


def _gradients(count: int, generator: np.random.Generator) -> Iterator[Pixels]:
    """Smooth ramps in any direction."""
    rows, columns = np.mgrid[0:_SIDE, 0:_SIDE] / (_SIDE - 1)
    for _ in range(count):
        angle = generator.uniform(0.0, 2.0 * np.pi)
        ramp = np.cos(angle) * rows + np.sin(angle) * columns
        ramp = (ramp - ramp.min()) / np.ptp(ramp)
        low, high = np.sort(generator.uniform(0.0, 255.0, 2))
        yield np.rint(low + (high - low) * ramp).astype(np.uint8)


if __name__ == "__main__":
    sys.exit(run(main, ForeignConfig))
