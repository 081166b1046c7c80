"""Bring an image of any size to the plane that a network sees: one source for both sides."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from PIL import Image as PillowImage

from medserve.errors import ConfigError
from medserve.imaging import Image
from medserve.spec import Fit, InputSpec, Proportions

__all__ = [
    "Box",
    "Region",
    "fit_colour",
    "fit_grey",
    "fit_image",
    "fit_lanczos",
    "fitted_box",
    "middle_of",
    "place_image",
    "standardised",
]

_Plane = npt.NDArray[np.float32]
_Filter = PillowImage.Resampling

Region = tuple[float, float, float, float]
"""Left, top, right and bottom of a part of an image, in its pixels."""


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


def middle_of(image: Image, spec: InputSpec) -> Region | None:
    """Return the part of an image that fills the plane; None where all of it is seen.

    It is what torchvision's `Resize(side / middle)` and `CenterCrop(side)` leave, by their own
    rounding: the longer side is cut to whole pixels, and the middle starts on one.
    """
    if spec.proportions is not Proportions.CROPPED:
        return None
    high, wide = spec.size
    tall = image.height * image.aspect  # in widths of a pixel
    if tall * wide <= image.width * high:
        rows = round(high / spec.middle)
        columns = max(wide, int(rows * image.width / tall))
    else:
        columns = round(wide / spec.middle)
        rows = max(high, int(columns * tall / image.width))
    top, left = round((rows - high) / 2), round((columns - wide) / 2)
    down, across = image.height / rows, image.width / columns
    return left * across, top * down, (left + wide) * across, (top + high) * down


def fit_image(image: Image, spec: InputSpec) -> _Plane:
    """Return the plane float32 (C, H, W) that a classifier is trained on and served.

    It lies in [0, 1] where the description states no mean and deviation.

    Raises:
        ConfigError: the preprocessing gives another number of channels than the network reads.
    """
    height, width = spec.size
    fitted = _proportioned(image, spec)
    plane = _FITS[spec.fit](fitted, (height, width), middle_of(image, spec))
    if plane.shape[0] != spec.channels:
        raise ConfigError(
            f"input.fit {spec.fit} gives {plane.shape[0]} channels, but input.channels is "
            f"{spec.channels}; grey gives 1, colour and lanczos give 3"
        )
    return standardised(plane, spec)


def standardised(planes: _Plane, spec: InputSpec) -> _Plane:
    """Take the mean from each channel of planes (C, H, W) and divide it by its deviation.

    They stay as they are where the description states neither.
    """
    if not spec.mean:
        return planes
    mean, deviation = (
        np.array(each, dtype=np.float32)[:, np.newaxis, np.newaxis]
        for each in (spec.mean, spec.deviation)
    )
    return (planes - mean) / deviation


def place_image(image: Image, spec: InputSpec) -> Box:
    """Return where `fit_image` puts an image on the network's plane."""
    height, width = spec.size
    return _box(_proportioned(image, spec), (height, width), middle_of(image, spec))


def _proportioned(image: Image, spec: InputSpec) -> Image:
    """Give an image that is to be stretched pixels with which it has the plane's proportions."""
    if spec.proportions is not Proportions.STRETCHED:
        return image
    height, width = spec.size
    return replace(image, aspect=height * image.width / (width * image.height))


def fit_grey(image: Image, size: tuple[int, int], region: Region | None = None) -> _Plane:
    """Grey plane float32 (1, H, W) in [0, 1]: proportions kept, black padding, centred.

    With a region that part of the image fills the plane. Shrinking is antialiased (Pillow's
    bilinear filter widens with the scale); an image that has the size already, in square pixels,
    passes through unchanged to the last bit.
    """
    return _fit(image.grey(), _box(image, size, region), size, region)[np.newaxis]


def fit_colour(image: Image, size: tuple[int, int], region: Region | None = None) -> _Plane:
    """Like `fit_grey` with red, green and blue: (3, H, W); of a grey image all three are alike."""
    if not image.is_colour:
        return np.repeat(fit_grey(image, size, region), 3, axis=0)
    box = _box(image, size, region)
    return np.stack([_fit(image.array[..., channel], box, size, region) for channel in range(3)])


def fit_lanczos(image: Image, size: tuple[int, int], region: Region | None = None) -> _Plane:
    """Like `fit_colour`, but by Lanczos, as the public pictures of blood cells were shrunk.

    It keeps more of the granules by which cells differ; where it overshoots, it is cut.
    """
    box = _box(image, size, region)
    if not image.is_colour:
        grey = _fit(image.grey(), box, size, region, _Filter.LANCZOS)[np.newaxis]
        return np.repeat(grey.clip(0.0, 1.0), 3, axis=0)
    planes = [
        _fit(image.array[..., channel], box, size, region, _Filter.LANCZOS) for channel in range(3)
    ]
    return np.stack(planes).clip(0.0, 1.0)


_FITS = {Fit.GREY: fit_grey, Fit.COLOUR: fit_colour, Fit.LANCZOS: fit_lanczos}


def _box(image: Image, size: tuple[int, int], region: Region | None) -> Box:
    return fitted_box(image, size) if region is None else Box(0, 0, *size)


def _fit(
    plane: _Plane,
    box: Box,
    size: tuple[int, int],
    region: Region | None,
    resampling: _Filter = _Filter.BILINEAR,
) -> _Plane:
    if plane.shape == size == (box.height, box.width) and region is None:
        return np.ascontiguousarray(plane)
    picture = PillowImage.fromarray(np.ascontiguousarray(plane))
    resized = picture.resize((box.width, box.height), resampling, box=region)
    fitted = np.zeros(size, dtype=np.float32)
    rows, columns = slice(box.top, box.top + box.height), slice(box.left, box.left + box.width)
    fitted[rows, columns] = np.asarray(resized, dtype=np.float32)
    return fitted
