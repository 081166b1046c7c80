"""Which changed copies of training images the fingerprints of an archive still know.

    python -m benchmarks.fingerprints --data-dir FOLDER [--size 64]

Nine of ten images of the folder are fingerprinted as training images. The limit is set where the
nearest 1 % of the others, which are real and unseen, lie. Then training images are changed, and
counted where they are still nearer than the limit.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table
from scipy import ndimage

from medserve.errors import MedserveError
from medserve.imaging.codecs import sniff
from medserve.inference.fingerprints import FingerprintIndex
from medserve.inference.fit import fit_grey
from medserve.spec import InputKind, InputSpec

__all__ = ["CHANGES", "known_shares", "main"]

_UNSEEN = 10  # every tenth image
_SHARE = 1.0  # per cent of the unseen images that lie below the limit
_CHANGED = 500  # training images at most

_Images = npt.NDArray[np.float64]


def _noisy(levels: float) -> Callable[[_Images], _Images]:
    def change(images: _Images) -> _Images:
        return images + np.random.default_rng(0).normal(0.0, levels, images.shape)

    return change


# What is done to images (N, 1, H, W) in grey levels.
CHANGES: Mapping[str, Callable[[_Images], _Images]] = {
    "unchanged": lambda images: images,
    "mirrored": lambda images: images[..., ::-1],
    "contrast 0.8, brightness + 20": lambda images: 0.8 * images + 20,
    "gamma 1.1": lambda images: 255 * (images / 255) ** 1.1,
    "noise of 4 grey levels": _noisy(4),
    "noise of 8 grey levels": _noisy(8),
    "noise of 16 grey levels": _noisy(16),
    "blurred, sigma 0.7 pixels": lambda images: ndimage.gaussian_filter(images, (0, 0, 0.7, 0.7)),
    "blurred, sigma 1 pixel": lambda images: ndimage.gaussian_filter(images, (0, 0, 1, 1)),
    "shifted by half a pixel": lambda images: ndimage.shift(images, (0, 0, 0, 0.5), order=1),
    "turned by 3 degrees": lambda images: ndimage.rotate(
        images, 3, axes=(3, 2), reshape=False, order=1
    ),
}


def known_shares(images: npt.NDArray[np.uint8]) -> dict[str, float]:
    """Change -> share of changed training images uint8 (N, 1, H, W) that are still known."""
    unseen = np.arange(len(images)) % _UNSEEN == 0
    training = images[~unseen]
    distances = FingerprintIndex.build(training, threshold=1.0).nearest(images[unseen])
    limit = float(np.percentile(distances, _SHARE))
    index = FingerprintIndex.build(training, limit)
    chosen = training[:: max(1, len(training) // _CHANGED)][:_CHANGED].astype(np.float64)
    return {
        name: float(index.is_copy(np.rint(change(chosen)).clip(0, 255).astype(np.uint8)).mean())
        for name, change in CHANGES.items()
    }


def _read(folder: Path, size: int) -> npt.NDArray[np.uint8]:
    limits = InputSpec((InputKind.RASTER, InputKind.DICOM), (size, size))
    planes = []
    for path in sorted(each for each in folder.rglob("*") if each.is_file()):
        try:
            image = sniff.decode(path.read_bytes(), limits)
        except MedserveError:
            continue
        planes.append(np.rint(255 * fit_grey(image, (size, size))).astype(np.uint8))
    if len(planes) < 2 * _UNSEEN:
        raise SystemExit(f"expected at least {2 * _UNSEEN} images in {folder}, got {len(planes)}")
    return np.stack(planes)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data-dir", type=Path, required=True, help="folder of images")
    parser.add_argument("--size", type=int, default=64, help="side that they are fitted into")
    options = parser.parse_args(arguments)
    images = _read(options.data_dir, options.size)
    table = Table("training images", "still known", title=f"{len(images)} images", box=None)
    table.columns[1].justify = "right"
    for name, share in known_shares(images).items():
        table.add_row(name, f"{100 * share:.1f} %")
    Console().print(table)


if __name__ == "__main__":
    main()
