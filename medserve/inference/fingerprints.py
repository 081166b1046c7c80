"""Whether an image lies too near to one that the network was trained on.

A generator may repeat its training images. An archive that withholds such copies has to know them,
and must not bring them along: it holds a fingerprint of each, 64 numbers of 8 bits.

    image ─area average→ 16 x 16 grey ─zero mean, unit norm→ (256,) ─projection→ (64,) ─round→ int8

The projection is a randomised Hadamard transform (Ailon & Chazelle, SIAM J. Comput. 2009): 64 of
256 orthogonal directions, chosen and signed by fixed random bits. It keeps distances, up to about
9 % (Johnson & Lindenstrauss), and loses three quarters of a thumbnail that is itself too small to
show more than an outline. Brightness and contrast play no part, and a mirrored copy is found too.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from medserve.errors import ArchiveError, ConfigError

__all__ = ["FINGERPRINTS_FILE", "FingerprintIndex"]

FINGERPRINTS_FILE = "fingerprints.npz"

_Images = npt.NDArray[np.uint8]
_Array = npt.NDArray[np.float32]

_SIDE = 16  # of the thumbnail
_NUMBERS = 64
_SEED = 20_061_120
_LEAST_CONTRAST = 1e-3  # of the grey range; less is a blank image, which is nobody's copy
_FORMAT = 1
_ROWS = 512  # images compared at a time; bounds memory


@dataclass(frozen=True, eq=False)
class FingerprintIndex:
    """Fingerprints of all training images.

    Attributes:
        codes: int8 (N, 64).
        scale: What one unit of `codes` stands for.
        threshold: Distance under which an image counts as a copy.
    """

    codes: npt.NDArray[np.int8]
    scale: float
    threshold: float

    @classmethod
    def build(cls, images: _Images, threshold: float) -> FingerprintIndex:
        """Take the fingerprints of training images uint8 (N, C, H, W).

        Args:
            images: Grey or colour; at least one.
            threshold: From the distances between real images: what is nearer than two different
                real images ever are is a copy.
        """
        if not len(images) or not threshold > 0:
            raise ConfigError(
                f"fingerprints: expected images and a threshold above 0, got {len(images)} and "
                f"{threshold:g}"
            )
        prints = _fingerprints(images)
        scale = float(np.abs(prints).max()) / 127 or 1.0
        return cls(np.rint(prints / np.float32(scale)).astype(np.int8), scale, threshold)

    def nearest(self, images: _Images) -> _Array:
        """Distance of each image uint8 (N, C, H, W) to the nearest training image, float32 (N,).

        Between the thumbnails as unit vectors, so from 0 to 2, the image or its mirror image,
        whichever is nearer; infinite for a blank image.
        """
        found = [
            self._nearest(images[start : start + _ROWS]) for start in range(0, len(images), _ROWS)
        ]
        return np.concatenate(found) if found else np.empty(0, dtype=np.float32)

    def is_copy(self, images: _Images) -> npt.NDArray[np.bool_]:
        """Whether each image uint8 (N, C, H, W) is nearer than the threshold, bool (N,)."""
        return np.asarray(self.nearest(images) < self.threshold)

    def _nearest(self, images: _Images) -> _Array:
        known = self.codes.astype(np.float32) * np.float32(self.scale)  # (N, 64)
        lengths = np.square(known).sum(axis=1)
        best = np.full(len(images), np.inf, dtype=np.float32)
        for seen in (images, images[..., ::-1]):
            prints = _fingerprints(seen)
            squared = np.square(prints).sum(axis=1)[:, None] + lengths - 2 * prints @ known.T
            best = np.minimum(best, squared.min(axis=1))
        # 64 of 256 directions hold a quarter of the squared distance on average.
        distance = np.sqrt(np.maximum(best, 0) * np.float32(_SIDE**2 / _NUMBERS))
        return np.where(_is_blank(images), np.float32(np.inf), distance)

    def save(self, path: Path) -> None:
        """Write as .npz, the same bytes for the same fingerprints."""
        np.savez(
            path,
            codes=self.codes,
            scale=np.float64(self.scale),
            threshold=np.float64(self.threshold),
            format=np.int64(_FORMAT),
        )

    @classmethod
    def load(cls, path: Path) -> FingerprintIndex:
        """Read what `save` wrote.

        Raises:
            ArchiveError: missing, damaged, or of another format.
        """
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as content:
                codes, found = content["codes"], int(content["format"])
                scale, threshold = float(content["scale"]), float(content["threshold"])
        except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
            raise ArchiveError(
                f"expected fingerprints of the training images in {path.name}, got none "
                f"({type(error).__name__}); a model that makes images is not served without"
            ) from error
        shaped = codes.dtype == np.int8 and codes.shape == (len(codes), _NUMBERS) and len(codes)
        if found != _FORMAT or not shaped or not (scale > 0 and threshold > 0):
            raise ArchiveError(
                f"{path.name}: expected fingerprints of format {_FORMAT}, int8 (N, {_NUMBERS}), "
                f"got format {found}, {codes.dtype} {codes.shape}; build it again"
            )
        return cls(codes, scale, threshold)


def _fingerprints(images: _Images) -> _Array:
    """Images uint8 (N, C, H, W) -> (N, 64) float32, each of a vector of length 1 or 0."""
    centred = _thumbnails(images)
    centred -= centred.mean(axis=1, keepdims=True)
    length = np.sqrt(np.square(centred).sum(axis=1, keepdims=True))
    return np.asarray(centred / np.maximum(length, 1e-6) @ _projection(), dtype=np.float32)


def _is_blank(images: _Images) -> npt.NDArray[np.bool_]:
    return np.asarray(_thumbnails(images).std(axis=1) < 255 * _LEAST_CONTRAST)


def _thumbnails(images: _Images) -> _Array:
    """Area averages of the mean of all channels, float32 (N, 256)."""
    if images.ndim != 4 or min(images.shape[2:]) < _SIDE:
        raise ConfigError(
            f"fingerprints: expected images (N, C, H, W) of at least {_SIDE} pixels, got shape "
            f"{images.shape}"
        )
    grey = images.astype(np.float32).mean(axis=1)  # (N, H, W)
    rows, columns = _shares(grey.shape[1]), _shares(grey.shape[2])
    return np.ascontiguousarray((rows @ grey @ columns.T).reshape(len(images), -1))


@cache
def _shares(side: int) -> _Array:
    """How much of each of `side` pixels lies in each of 16 equal parts, (16, side)."""
    edges = np.arange(_SIDE + 1) * side / _SIDE
    pixel = np.arange(side)
    inside = np.minimum(edges[1:, None], pixel + 1) - np.maximum(edges[:-1, None], pixel)
    return np.asarray(inside.clip(min=0) * _SIDE / side, dtype=np.float32)


@cache
def _projection() -> _Array:
    """(256, 64) with orthonormal columns: exact, so that every machine makes the same one."""
    size = _SIDE**2
    hadamard = np.ones((1, 1), dtype=np.int8)
    while len(hadamard) < size:  # Sylvester's construction
        hadamard = np.block([[hadamard, hadamard], [hadamard, -hadamard]])
    # The raw stream of bits is the one part of NumPy's generators that is promised to stay.
    drawn = np.random.PCG64(_SEED).random_raw(2 * size)
    signs = np.where(drawn[:size] >> np.uint64(63), 1, -1)
    chosen = np.argsort(drawn[size:], kind="stable")[:_NUMBERS]
    return np.asarray((hadamard[chosen] * signs).T / np.sqrt(size), dtype=np.float32)
