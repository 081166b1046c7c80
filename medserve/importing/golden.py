"""The golden input of an imported model: computed, or an example of its user."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image as pillow

from medserve.errors import ConfigError
from medserve.imaging import Image
from medserve.imaging.codecs import frame_file, nifti, sniff
from medserve.imaging.codecs.channels import decode_channels
from medserve.imaging.codecs.volume_file import ReadOptions
from medserve.imaging.frames import FrameLimits
from medserve.imaging.geometry import Geometry
from medserve.imaging.volume import Volume, VolumeLimits
from medserve.spec import InputKind, ModelSpec
from medserve.spec.volumes import NormalisationKind, NormalisationSpec, Placement

__all__ = [
    "GoldenPictures",
    "GoldenVolume",
    "as_png",
    "computed",
    "computed_pictures",
    "read_example",
    "read_pictures",
]

_FINER = 0.87  # of the network's spacing, so that a volume is resampled on its way
_SHARE = 0.9  # of the network's input, so that one window holds it
_PLANES = 3  # where the network sees planes of any distance
_PLANE_DISTANCE_MM = 3.0
_PICTURES = 16
_LARGER = 1.3  # than the network's input is a computed picture
_RIM = 1  # voxels of 0, which models that crop cut off


@dataclass(frozen=True, eq=False)
class GoldenVolume:
    """A file, and what is in it.

    Attributes:
        payload: A NIfTI file; of several channels a four-dimensional one.
        volumes: One for each channel.
        is_computed: Whether it is nobody's image.
    """

    payload: bytes = field(repr=False)
    volumes: tuple[Volume, ...] = field(repr=False)
    is_computed: bool


def computed(spec: ModelSpec) -> GoldenVolume:
    """Return balls in noise, in the range of intensities that the model expects."""
    assert spec.volume is not None
    rules = spec.volume
    size = spec.input.size if len(spec.input.size) == 3 else (1, *spec.input.size)
    codes = rules.orientation
    axes = Geometry.from_spacing((1, 1, 1), (1.0, 1.0, 1.0)).axis_order(codes).axes
    shape, spacing_mm = [0, 0, 0], [0.0, 0.0, 0.0]
    for axis, side, wanted in zip(axes, size, rules.spacing_mm or (1.0, 1.0, 1.0), strict=True):
        if wanted == 0.0 and side == 1:
            shape[axis], spacing_mm[axis] = _PLANES, _PLANE_DISTANCE_MM
        else:
            spacing_mm[axis] = _FINER * (wanted or 1.0)
            is_whole = rules.blending.placement is Placement.WHOLE and not wanted
            shape[axis] = side if is_whole else max(4, int(_SHARE * side / _FINER))
    geometry = Geometry.from_spacing(shape, spacing_mm)
    return _written(
        tuple(Volume(_balls(geometry, steps[0], seed), geometry)
              for seed, steps in enumerate(rules.steps)),
        list(rules.channels), is_computed=True,
    )  # fmt: skip


def read_example(files: Sequence[Path], spec: ModelSpec) -> GoldenVolume:
    """Read a user's own volume: one NIfTI file, or one for each channel.

    Raises:
        ConfigError: a file cannot be read.
        InvalidImageError: it is no volume that the model takes.
    """
    assert spec.volume is not None
    names = list(spec.volume.channels)
    try:
        payloads = [path.read_bytes() for path in files]
    except OSError as error:
        raise ConfigError(
            f"--example: expected NIfTI files, got {error.filename} ({error.strerror})"
        ) from error
    volumes = decode_channels(payloads, names, spec.input.kinds, VolumeLimits(), ReadOptions())
    if len(payloads) == 1:
        return GoldenVolume(payloads[0], volumes, is_computed=False)
    return _written(volumes, names, is_computed=False)


@dataclass(frozen=True, eq=False)
class GoldenPictures:
    """Files of pictures, and what is in them; the first one travels in the archive.

    Attributes:
        payloads: The files.
        images: One for each.
        is_computed: Whether they are nobody's images.
    """

    payloads: tuple[bytes, ...] = field(repr=False)
    images: tuple[Image, ...] = field(repr=False)
    is_computed: bool


def computed_pictures(spec: ModelSpec) -> GoldenPictures:
    """Return discs in noise, of other sides than the network's input."""
    if InputKind.RASTER not in spec.input.kinds:
        raise ConfigError(
            "expected --example with files that the model reads: its input.kinds leave out "
            "raster, which computed pictures are"
        )
    payloads = tuple(as_png(_discs(spec, seed)) for seed in range(_PICTURES))
    images = tuple(_first_frame(each, spec) for each in payloads)
    return GoldenPictures(payloads, images, is_computed=True)


def read_pictures(files: Sequence[Path], spec: ModelSpec) -> GoldenPictures:
    """Read a user's own pictures.

    Raises:
        ConfigError: a file cannot be read.
        InvalidImageError: it is no picture that the model takes.
    """
    try:
        payloads = tuple(path.read_bytes() for path in files)
    except OSError as error:
        raise ConfigError(
            f"--example: expected pictures, got {error.filename} ({error.strerror})"
        ) from error
    images = tuple(_first_frame(each, spec) for each in payloads)
    return GoldenPictures(payloads, images, is_computed=False)


def as_png(array: npt.NDArray[Any]) -> bytes:
    """Write values 0 to 255, (H, W) or (H, W, 3), as a PNG file."""
    target = io.BytesIO()
    pillow.fromarray(array.astype(np.uint8)).save(target, "PNG")
    return target.getvalue()


def _first_frame(payload: bytes, spec: ModelSpec) -> Image:
    """Decode a file as the handler of its task does."""
    if spec.frame is None:
        return sniff.decode(payload, spec.input)
    stack = frame_file.decode(payload, FrameLimits(spec.input, spec.frame.max_frames))
    return replace(stack.read(0), aspect=stack.grid.aspect)


def _discs(spec: ModelSpec, seed: int) -> npt.NDArray[np.uint8]:
    random = np.random.default_rng(seed)
    height, width = (max(spec.input.min_side, round(_LARGER * side)) for side in spec.input.size)
    rows, columns = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    planes = []
    for _ in range(spec.input.channels):
        plane = random.normal(0.3, 0.05, (height, width))
        for _ in range(4):
            down, across, radius = *random.uniform(-0.7, 0.7, 2), random.uniform(0.1, 0.5)
            near = np.hypot(rows - down, columns - across) < radius
            plane += random.uniform(-0.2, 0.5) * near
        planes.append(plane)
    grey = np.rint(255 * np.clip(np.stack(planes, axis=-1), 0, 1)).astype(np.uint8)
    return grey[..., 0] if spec.input.channels == 1 else grey


def _written(
    volumes: tuple[Volume, ...], names: Sequence[str], *, is_computed: bool
) -> GoldenVolume:
    if len(volumes) == 1:
        return GoldenVolume(nifti.encode(volumes[0]), volumes, is_computed)
    maps = np.stack([np.asarray(each.array, dtype=np.float32) for each in volumes])
    payload = nifti.encode_maps(maps, names, volumes[0])
    stored = tuple(nifti.decode(payload, channel=channel) for channel in range(len(maps)))
    return GoldenVolume(payload, stored, is_computed)


def _balls(geometry: Geometry, step: NormalisationSpec, seed: int) -> npt.NDArray[np.float32]:
    random = np.random.default_rng(seed)
    low, high = _range(step)
    places = np.stack(
        np.meshgrid(*(np.linspace(-1, 1, side) for side in geometry.shape), indexing="ij")
    )
    image = random.normal(0.3, 0.05, geometry.shape)
    for _ in range(5):
        centre = random.uniform(-0.6, 0.6, (3, 1, 1, 1))
        distance = np.sqrt(((places - centre) ** 2).sum(axis=0))
        image += random.uniform(0.2, 0.5) * (distance < random.uniform(0.2, 0.5))
    scaled = (low + (high - low) * image).astype(np.float32)
    inner = np.zeros_like(scaled)
    cut = tuple(
        slice(_RIM, -_RIM) if side > 2 * _RIM + _PLANES else slice(None) for side in scaled.shape
    )
    inner[cut] = scaled[cut]
    return inner


def _range(step: NormalisationSpec) -> tuple[float, float]:
    """Return the intensities between which a usual image of the model lies."""
    if step.kind is NormalisationKind.STANDARD and np.isfinite([step.low, step.high]).all():
        return step.low, step.high
    if step.kind is NormalisationKind.STANDARD:
        return step.mean - 2 * step.deviation, step.mean + 2 * step.deviation
    if step.kind is NormalisationKind.WINDOW:
        return step.low, step.high
    if step.kind is NormalisationKind.NONE:
        return 0.0, 1.0
    return 0.0, 1000.0
