"""Measure what the images of a training set are like, for `seen` of a model's description."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import yaml

from medserve.results.seen import (
    image_layout,
    image_quantiles,
    image_texture,
    layout_correlation,
)
from medserve.spec.seen import Range, SeenSpec

__all__ = ["measure_images", "measured_range", "print_section"]

_QUANTILES = 19  # at 0.05, 0.10 … 0.95
_FLAGGED = 0.01  # of the training images lie beyond the limits of histogram and layout


def measure_images(images: Iterable[npt.NDArray[np.float32]]) -> dict[str, Any]:
    """Return the members of `SeenSpec` on intensities, over all images as the network sees them."""
    rows = [
        (image_quantiles(each, _QUANTILES), image_texture(each), image_layout(each))
        for each in images
    ]
    quantiles, textures, layouts = (np.array(column) for column in zip(*rows, strict=True))
    mean, layout = quantiles.mean(axis=0).round(3), layouts.mean(axis=0).round(3)
    distances = np.abs(quantiles - mean).mean(axis=1)
    alike = [layout_correlation(each, layout) for each in layouts]
    return {
        "quantiles": tuple(mean.tolist()),
        "quantile_distance": round(float(np.quantile(distances, 1 - _FLAGGED)), 3),
        "texture": measured_range(textures, 3),
        "layout": tuple(layout.tolist()),
        "layout_correlation": round(float(np.quantile(alike, _FLAGGED)), 3),
    }


def measured_range(values: npt.NDArray[np.floating], digits: int) -> Range:
    """Return the least and the most of what was measured."""
    return round(float(values.min()), digits), round(float(values.max()), digits)


def print_section(seen: SeenSpec) -> None:
    """Write the section as the YAML that a `model-config.yaml` holds."""
    plain = msgspec.json.decode(msgspec.json.encode({"seen": seen}))  # tuples become lists
    yaml.safe_dump(plain, sys.stdout, sort_keys=False, default_flow_style=None, width=96)
