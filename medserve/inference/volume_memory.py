"""What a volume takes in memory on its way to the network and back, known from its header."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from medserve.errors import ConfigError
from medserve.imaging.geometry import Geometry, Shape
from medserve.imaging.volume import Volume, VolumeLimits
from medserve.inference.memory import mib, refuse_above
from medserve.inference.regrid import grid_of
from medserve.inference.sliding_window import SlidingWindow
from medserve.spec import ModelSpec
from medserve.spec.volumes import ResamplingKind, Restored, RoiKind, Sums

__all__ = ["Extras", "check", "check_limit", "limits", "peak_bytes", "windows"]

_FLOAT = 4  # bytes
# Bytes a voxel of each step, counted in the code that it names.
_READ = 16  # nifti: expanded as float64, then rescaled beside it
_LINEAR = 12  # resample.linear: the values, one axis moved to the front, the answer
_SPLINE = 32  # regrid.SplineGrid: values as float64, filtered, zoomed, and the answer of planes
_BODY = 3  # roi.nonzero_body: two masks and their union
_NORMALISE = 16  # normalise.percentile: values, those that count, their sorted copy, the answer
_REGION = 10  # roi.threshold_box: bright voxels, their pieces as int32 with bincount's copy; and
# the volume once more, in the order in which np.histogram wants it
_RELABEL = 23  # resample.linear (12) for one label beside argmax_channels (11)
_MASK = 2  # the region's and the source's
_TIDY = 10  # components: pieces as int32, bincount's copy, two masks
_SOFTMAX = 4  # a label: restored scores, in place
_ENCODE = 4  # nifti.encode, for each byte: itself, its copy, header and copy, gzip


class Extras(Protocol):
    """What a call asks for beside the mask."""

    @property
    def probabilities(self) -> bool:
        """Whether each label's probability is asked for."""

    @property
    def entropy(self) -> bool:
        """Whether the entropy is asked for."""


@dataclass(frozen=True)
class _Mask:
    """A call that asks for nothing beside the mask."""

    probabilities: bool = False
    entropy: bool = False


def limits(spec: ModelSpec) -> VolumeLimits:
    """What codecs refuse for a model: volumes that would not even be read in its memory."""
    assert spec.volume is not None  # the caller has a pipeline
    readable = spec.volume.max_memory_bytes // _READ
    return VolumeLimits(
        max_voxels=readable,
        max_expanded_bytes=spec.volume.max_memory_bytes,
        min_side=spec.input.min_side,
    )


def check_limit(spec: ModelSpec) -> None:
    """Refuse a configuration under which not even one window could be answered.

    Raises:
        ConfigError: the limit is too low for the network.
    """
    assert spec.volume is not None
    spacing_mm = [mm or 1.0 for mm in spec.volume.spacing_mm or (0.0, 0.0, 0.0)]
    window = Geometry.from_spacing(windows(spec).size, spacing_mm)
    least = peak_bytes(spec, window, _FLOAT, _Mask())
    if least > spec.volume.max_memory_bytes:
        raise ConfigError(
            f"{spec.name}: expected max_memory_bytes of at least {mib(least)}, which a volume of "
            f"one window takes, got {mib(spec.volume.max_memory_bytes)}"
        )


def check(spec: ModelSpec, volume: Volume, extras: Extras) -> None:
    """Refuse a call that would take more memory than the model allows.

    Raises:
        PayloadTooLargeError: the message says how many voxels of this spacing would fit.
    """
    assert spec.volume is not None
    own = volume.geometry

    def needed(shape: Shape) -> int:
        geometry = Geometry(shape, own.affine)
        return peak_bytes(spec, geometry, volume.array.dtype.itemsize, extras)

    refuse_above(spec.volume.max_memory_bytes, own.shape, needed)


def peak_bytes(spec: ModelSpec, geometry: Geometry, itemsize: int, extras: Extras) -> int:
    """The largest of what each step holds at once, the network's own memory included.

    The region of interest is not known before the voxels are read: it counts as the whole volume.

    Args:
        spec: The model.
        geometry: The grid of the volume.
        itemsize: Bytes of a voxel as it was read.
        extras: What the call asks for.
    """
    if spec.volume is None:
        raise ConfigError(f"{spec.name}: expected the section 'volume', there is none")
    rules, channels = spec.volume, spec.input.channels
    upright = geometry.reordered(geometry.axis_order(rules.orientation))
    seen = grid_of(rules.resampling, rules.spacing_mm, spec.input.size).shape(upright)
    classes = max(len(spec.labels), len(rules.regions))
    voxels, prepared = math.prod(geometry.shape), math.prod(seen)
    source, tensor = channels * voxels * itemsize, channels * prepared * _FLOAT
    if source + tensor > spec.volume.max_memory_bytes:
        return source + tensor  # windows of such a grid are not even worth counting
    is_resized = seen != upright.shape
    maps = classes * extras.probabilities + extras.entropy  # float32 on the source's grid
    is_whole = is_resized and rules.restored is not Restored.LABELS
    is_whole = is_whole or bool(maps or rules.regions) or rules.ensemble > 1
    is_whole = is_whole or rules.blending.sums is Sums.F16
    scores = classes * prepared * _FLOAT if is_whole else 0
    region = 0 if rules.roi.kind is RoiKind.NONE else (_REGION + itemsize) * voxels
    region = _BODY * voxels if rules.roi.kind is RoiKind.NONZERO else region
    pasted = 0  # one channel of what the network saw, on its whole grid
    if rules.roi.kind is RoiKind.FOREGROUND:
        region = (_BODY + _FLOAT) * prepared  # what is above 0, and a copy of its box
        pasted = _FLOAT * prepared
    resized = max(voxels, prepared) if is_resized else 0
    is_spline = rules.resampling.kind is ResamplingKind.SPLINE
    resampling = _SPLINE if is_spline else _LINEAR
    relabelling = resampling + _RELABEL - _LINEAR
    measured = voxels if rules.resampling.normalise_first else prepared
    ready = tensor - prepared * _FLOAT  # the channels before the last one
    running = windows(spec).memory_bytes(
        seen, channels, rules.ensemble * classes, whole_scores=scores > 0
    )
    steps = (
        ready + max(region, resampling * resized, _NORMALISE * measured),
        running + rules.network_bytes,
        tensor + scores + pasted + relabelling * resized + (_MASK + _TIDY) * voxels,
        tensor + scores + pasted + (_SOFTMAX * classes + _MASK if maps else 0) * voxels
        + maps * _FLOAT * voxels,
        (_MASK + _ENCODE + maps * _FLOAT * _ENCODE) * voxels,
    )  # fmt: skip
    return source + max(steps)


def windows(spec: ModelSpec) -> SlidingWindow:
    """Return the windows of a model; those of a network for planes are one plane deep."""
    assert spec.volume is not None
    rules = spec.volume
    i, j, k = spec.input.size if len(spec.input.size) == 3 else (1, *spec.input.size)
    return SlidingWindow((i, j, k), rules.overlap, rules.window_batch, blending=rules.blending)
