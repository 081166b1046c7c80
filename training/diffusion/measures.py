"""Every figure about a set of synthetic images, each beside what real images reach by it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from medserve.inference.fingerprints import FingerprintIndex
from training.classification.data import LabelledImages
from training.diffusion.appearance import Appearance, appearance
from training.diffusion.copies import CopyCheck, check_copies, nearest, nearest_pixels
from training.diffusion.distances import (
    Coverage,
    coverage,
    frechet_distance,
    kernel_distance,
    mean_similarity,
)

__all__ = ["Distances", "ImageSets", "Measured", "SetFeatures", "measure"]

Features = npt.NDArray[np.float64]

_SEEN_DRAWS = 5  # sets of training images, whose distances are averaged
_GRAIN = 5.0  # grey levels of noise on training images that the fingerprints must still know


@dataclass(frozen=True, eq=False)
class ImageSets:
    """Who is measured, by whom.

    Attributes:
        synthetic: n images.
        unseen: Real images that no training saw: what distances lead to.
        reference: n further real images that no training saw; they set the copy threshold, too.
        training: What the network learned from.
        fingerprints: By which serving withholds copies.
    """

    synthetic: LabelledImages
    unseen: LabelledImages
    reference: LabelledImages
    training: LabelledImages
    fingerprints: FingerprintIndex


@dataclass(frozen=True, eq=False)
class SetFeatures:
    """The features of every set of images, and the name of the network that they come from."""

    name: str
    synthetic: Features
    unseen: Features
    reference: Features
    training: Features


@dataclass(frozen=True)
class Distances:
    """How far n images are from the unseen ones.

    Attributes:
        frechet: Fréchet distance.
        kernel: Kernel distance.
        coverage: Precision and recall.
    """

    frechet: float
    kernel: float
    coverage: Coverage

    def to_json(self) -> dict[str, float]:
        """Figures by name."""
        return {
            "frechet": round(self.frechet, 5),
            "kernel": round(self.kernel, 5),
            "precision": round(self.coverage.precision, 4),
            "recall": round(self.coverage.recall, 4),
        }


@dataclass(frozen=True, eq=False)
class Measured:
    """All figures.

    Attributes:
        n: Synthetic images.
        synthetic: Their distances to the unseen images.
        reference: The same of n unseen real images: the best that can be asked for.
        training: Fréchet distance of n training images to the unseen ones, a mean of draws.
        similarity: Mean MS-SSIM within a class: of synthetic, and of unseen real images.
        looks: Of synthetic, and of unseen real images.
        pixels: Nearest training images in grey levels.
        features: Nearest training images in features.
        withheld: Share of synthetic images that serving withholds.
        withheld_unseen: Share of unseen real images that it would withhold.
        withheld_training: Share of training images, with a little noise, that it would withhold.
    """

    n: int
    synthetic: Distances
    reference: Distances
    training: float
    similarity: tuple[float, float]
    looks: tuple[Appearance, Appearance]
    pixels: CopyCheck
    features: CopyCheck
    withheld: npt.NDArray[np.bool_]
    withheld_unseen: float
    withheld_training: float

    @property
    def ratio(self) -> float:
        """Fréchet distance of synthetic images over that of as many real ones."""
        return self.synthetic.frechet / self.reference.frechet

    @property
    def copies(self) -> npt.NDArray[np.bool_]:
        """Synthetic images that are copies in grey levels or in features."""
        return np.asarray(self.pixels.copies | self.features.copies)

    @property
    def copy_rate(self) -> float:
        """Share of copies among the images that serving hands out."""
        kept = ~self.withheld
        return float(self.copies[kept].mean()) if kept.any() else 0.0

    def to_json(self) -> dict[str, Any]:
        """Single figures first: an archive's manifest takes those."""
        either_unseen = (self.pixels.unseen < self.pixels.threshold) | (
            self.features.unseen < self.features.threshold
        )
        return {
            "n": self.n,
            "frechet_distance": round(self.synthetic.frechet, 5),
            "frechet_distance_real": round(self.reference.frechet, 5),
            "frechet_ratio": round(self.ratio, 4),
            "kernel_distance": round(self.synthetic.kernel, 5),
            "kernel_distance_real": round(self.reference.kernel, 5),
            "copy_rate": round(self.copy_rate, 5),
            "synthetic": self.synthetic.to_json(),
            "real": self.reference.to_json(),
            "frechet_training": round(self.training, 5),
            "similarity": {
                "synthetic": round(self.similarity[0], 4),
                "real": round(self.similarity[1], 4),
            },
            "appearance": {
                "synthetic": self.looks[0].to_json(),
                "real": self.looks[1].to_json(),
            },
            "copies": {
                "rate_before_withholding": round(float(self.copies.mean()), 5),
                "rate_unseen_real": round(float(either_unseen.mean()), 5),
                "pixels": _check(self.pixels),
                "features": _check(self.features),
                "withheld": round(float(self.withheld.mean()), 5),
                "withheld_unseen_real": round(self.withheld_unseen, 5),
                "withheld_training_with_noise": round(self.withheld_training, 5),
            },
        }


def measure(image_sets: ImageSets, features: SetFeatures, seed: int = 0) -> Measured:
    """Measure; minutes for 512 images against 4,000."""
    n = len(image_sets.synthetic)
    draws = np.random.default_rng(seed)
    seen = [
        frechet_distance(
            features.training[
                draws.choice(len(features.training), min(n, len(features.training)), False)
            ],
            features.unseen,
        )
        for _ in range(_SEEN_DRAWS)
    ]
    known = image_sets.training.images
    pixels = [
        nearest_pixels(each.images, known)
        for each in (image_sets.synthetic, image_sets.reference, image_sets.unseen)
    ]
    found = [
        nearest(each, features.training)
        for each in (features.synthetic, features.reference, features.unseen)
    ]
    index = image_sets.fingerprints
    return Measured(
        n=n,
        synthetic=_distances(features.synthetic, features.unseen),
        reference=_distances(features.reference[:n], features.unseen),
        training=float(np.mean(seen)),
        similarity=(_similarity(image_sets.synthetic), _similarity(image_sets.unseen)),
        looks=(appearance(image_sets.synthetic.images), appearance(image_sets.unseen.images)),
        pixels=check_copies(pixels[0], pixels[1][0], pixels[2][0]),
        features=check_copies(found[0], found[1][0], found[2][0]),
        withheld=index.is_copy(image_sets.synthetic.images),
        withheld_unseen=float(index.is_copy(image_sets.unseen.images).mean()),
        withheld_training=float(index.is_copy(_grainy(known, seed)).mean()),
    )


def _distances(features: Features, unseen: Features) -> Distances:
    return Distances(
        frechet_distance(features, unseen),
        kernel_distance(features, unseen),
        coverage(unseen, features),
    )


def _similarity(images: LabelledImages) -> float:
    return mean_similarity(images.images, images.label_ids)


def _grainy(images: npt.NDArray[np.uint8], seed: int) -> npt.NDArray[np.uint8]:
    chosen = images[:: max(1, len(images) // 512)]
    noise = np.random.default_rng(seed).normal(0.0, _GRAIN, chosen.shape)
    return np.asarray((chosen + noise).clip(0, 255).round(), dtype=np.uint8)


def _check(check: CopyCheck) -> dict[str, float]:
    return {
        "threshold": round(check.threshold, 5),
        "rate": round(check.rate, 5),
        "rate_unseen_real": round(check.unseen_rate, 5),
        "median": round(float(np.median(check.synthetic)), 4),
        "median_unseen_real": round(float(np.median(check.unseen)), 4),
    }
