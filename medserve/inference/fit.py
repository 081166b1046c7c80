"""Bring an image of any size to the plane that a network sees: one source for both sides."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from PIL import Image as PillowImage

from medserve.errors import ConfigError
from medserve.imaging import Image
from medserve.spec import Fit, InputSpec, Proportions

__all__ = ["Box", "fit_colour", "fit_grey", "fit_image", "fit_lanczos", "fitted_box", "place_image"]

_Plane = npt.NDArray[np.float32]
_Filter = PillowImage.Resampling


@dataclass(frozen=True)
class Box:
    """Where an image lies on a plane: pixels from the top and the left, and its size there."""

    top: int
    left: int
    height: int
    width: int


def fitted_box(image: Image, size: tuple[int, int]) -> Box:
    """Where an image lies on a plane of that size (H, W): whole, centred, true to scale."""
    tall = image.height * image.aspect  # in widths of a pixel
    scale = min(size[0] / tall, size[1] / image.width)
    height = min(size[0], max(1, round(tall * scale)))
    width = min(size[1], max(1, round(image.width * scale)))
    return Box((size[0] - height) // 2, (size[1] - width) // 2, height, width)


def fit_image(image: Image, spec: InputSpec) -> _Plane:
    """Return the plane float32 (C, H, W) that a classifier is trained on and served.

    It lies in [0, 1] where the description states no mean and deviation.

    Raises:
        ConfigError: the preprocessing gives another number of channels than the network reads.
    """
    height, width = spec.size
    plane = _FITS[spec.fit](_proportioned(image, spec), (height, width))
    if plane.shape[0] != spec.channels:
        raise ConfigError(
            f"input.fit {spec.fit} gives {plane.shape[0]} channels, but input.channels is "
            f"{spec.channels}; grey gives 1, colour and lanczos give 3"
        )
    if not spec.mean:
        return plane
    mean, deviation = (
        np.array(each, dtype=np.float32)[:, np.newaxis, np.newaxis]
        for each in (spec.mean, spec.deviation)
    )
    return (plane - mean) / deviation


def place_image(image: Image, spec: InputSpec) -> Box:
    """Return where `fit_image` puts an image on the network's plane."""
    height, width = spec.size
    return fitted_box(_proportioned(image, spec), (height, width))


def _proportioned(image: Image, spec: InputSpec) -> Image:
    """Give an image that is to be stretched pixels with which it has the plane's proportions."""
    if spec.proportions is Proportions.KEPT:
        return image
    height, width = spec.size
    return replace(image, aspect=height * image.width / (width * image.height))


def fit_grey(image: Image, size: tuple[int, int]) -> _Plane:
    """Grey plane float32 (1, H, W) in [0, 1]: proportions kept, black padding, centred.

    Shrinking is antialiased (Pillow's bilinear filter widens with the scale); an image that has
    the size already, in square pixels, passes through unchanged to the last bit.
    """
    return _fit(image.grey(), fitted_box(image, size), size)[np.newaxis]


def fit_colour(image: Image, size: tuple[int, int]) -> _Plane:
    """Like `fit_grey` with red, green and blue: (3, H, W); of a grey image all three are alike."""
    if not image.is_colour:
        return np.repeat(fit_grey(image, size), 3, axis=0)
    box = fitted_box(image, size)
    return np.stack([_fit(image.array[..., channel], box, size) for channel in range(3)])


def fit_lanczos(image: Image, size: tuple[int, int]) -> _Plane:
    """Like `fit_colour`, but by Lanczos, as the public pictures of blood cells were shrunk.

    It keeps more of the granules by which cells differ; where it overshoots, it is cut.
    """
    box = fitted_box(image, size)
    if not image.is_colour:
        grey = _fit(image.grey(), box, size, _Filter.LANCZOS)[np.newaxis]
        return np.repeat(grey.clip(0.0, 1.0), 3, axis=0)
    planes = [_fit(image.array[..., channel], box, size, _Filter.LANCZOS) for channel in range(3)]
    return np.stack(planes).clip(0.0, 1.0)


_FITS = {Fit.GREY: fit_grey, Fit.COLOUR: fit_colour, Fit.LANCZOS: fit_lanczos}


def _fit(
    plane: _Plane, box: Box, size: tuple[int, int], resampling: _Filter = _Filter.BILINEAR
) -> _Plane:
    if plane.shape == size == (box.height, box.width):
        return np.ascontiguousarray(plane)
    resized = PillowImage.fromarray(plane).resize((box.width, box.height), resampling)
    fitted = np.zeros(size, dtype=np.float32)
    rows, columns = slice(box.top, box.top + box.height), slice(box.left, box.left + box.width)
    fitted[rows, columns] = np.asarray(resized, dtype=np.float32)
    return fitted
