"""The way of a volume to the network and back: one source for training, evaluation and serving.

    Volume ─prepare→ Prepared (tensor and way back) ─segment→ Segmented (mask on the source's grid)

There: axes along the network's orientation, the region of interest, the network's spacing, its
intensities. Back: label by label to the source's spacing, into the region's place, axes as they
were. The mask therefore has the source's shape and affine to the last bit, whatever they are.

Where the spacing changed, scores come back and the largest wins there: labels would come back with
steps, and a structure by a fifth of a voxel aside. Where it did not, scores of the whole volume
exist only if a caller asks for probabilities or for their entropy, or if the model's rules need
them: regions, several networks, sums in 16 bits.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from medserve.errors import ConfigError, InvalidImageError
from medserve.imaging.geometry import AxisOrder, Geometry
from medserve.imaging.volume import Volume
from medserve.inference import components, sliding_window, volume_memory
from medserve.inference.argmax import argmax_channels
from medserve.inference.normalise import normalise
from medserve.inference.quality import MaskSums
from medserve.inference.regrid import grid_of
from medserve.inference.resample import resample_labels
from medserve.inference.roi import Box, crop, mask_box, nonzero_body, threshold_box
from medserve.inference.sliding_window import Predict, WorkLimits
from medserve.results.quality import doubts_about_dice, with_quality
from medserve.results.seen import doubts_about_image, doubts_about_volumes
from medserve.results.segmentation import Segmentation
from medserve.spec import ModelSpec
from medserve.spec.volumes import (
    NormalisationKind,
    Placement,
    Restored,
    RoiKind,
    ScoreKind,
    Sums,
    VolumeSpec,
)
from medserve.tasks.result import Doubt, DoubtReason

__all__ = ["Found", "Inverse", "Prepared", "Segmented", "VolumePipeline", "VolumeSettings"]

_Scores = npt.NDArray[np.float32]
_Mask = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Inverse:
    """How to put something on the network's grid back onto the grid that it came from.

    Attributes:
        source: The grid of the volume as it was given.
        order: From the source's axes to the network's orientation.
        box: The region of interest, in voxels of the reoriented source.
        region: The grid of that box.
        grid: The network's grid: the box at the network's spacing.
        foreground: The part of that grid that the network sees; None for all of it.
    """

    source: Geometry
    order: AxisOrder
    box: Box
    region: Geometry
    grid: Geometry
    foreground: Box | None = None

    def on_grid(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """(..., i, j, k) of what the network saw -> its whole grid, 0 elsewhere."""
        return array if self.foreground is None else self.foreground.paste(array, self.grid.shape)

    def apply(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """(..., I, J, K) on the source's grid -> the region, turned for the network; a view."""
        return self.box.cut(self.order.apply(array))

    def undo(self, array: npt.NDArray[Any], fill: float = 0) -> npt.NDArray[Any]:
        """(..., i, j, k) on the region's grid -> the source's grid, `fill` outside the region."""
        upright = self.source.reordered(self.order).shape
        return np.ascontiguousarray(self.order.undo(self.box.paste(array, upright, fill)))

    def undo_probabilities(self, probabilities: _Scores) -> _Scores:
        """(labels, i, j, k) on the region's grid -> the source's; background is certain outside."""
        full = np.empty((len(probabilities), *self.source.shape), dtype=np.float32)
        for label, channel in enumerate(probabilities):
            full[label] = self.undo(channel, fill=1.0 if label == 0 else 0.0)
        return full


@dataclass(frozen=True, eq=False)
class Prepared:
    """A volume as the network sees it.

    Attributes:
        tensor: float32 (C, i, j, k) in the network's orientation, spacing and intensities.
        inverse: To the source's grid.
    """

    tensor: _Scores = field(repr=False)
    inverse: Inverse


@dataclass(frozen=True)
class VolumeSettings:
    """What one call may decide; `VolumePipeline.defaults` has the model's own choice.

    Attributes:
        flips: Average the scores over mirrored windows.
        largest_component: Keep only the largest piece of each label.
        fill_holes: Fill what a label encloses.
        probabilities: Also give the probability of each label.
        entropy: Also give the entropy of these probabilities.
        quality: Also tell the errors to expect, where the model's description says how.
        between: Called before each batch of windows, see `sliding_window.WorkLimits`.
    """

    flips: bool = False
    largest_component: bool = False
    fill_holes: bool = False
    probabilities: bool = False
    entropy: bool = False
    quality: bool = False
    between: Callable[[int, int], None] | None = None

    @property
    def wants_scores(self) -> bool:
        """Whether the scores of the whole volume are needed."""
        return self.probabilities or self.entropy


@dataclass(frozen=True, eq=False)
class Found:
    """What the network says, on its own grid: a mask or scores.

    Attributes:
        mask: Label ids uint8 (i, j, k), where that is all that is needed.
        scores: Blended scores (channels, i, j, k).
        sums: What a predicted Dice is made of, where it is asked for.
    """

    mask: _Mask | None = field(default=None, repr=False)
    scores: _Scores | None = field(default=None, repr=False)
    sums: MaskSums | None = field(default=None, repr=False)


@dataclass(frozen=True, eq=False)
class Segmented:
    """What the network found, on the source's grid.

    Attributes:
        segmentation: The mask.
        probabilities: float32 (labels, I, J, K), summing to 1; None unless asked for.
        entropy: float32 (I, J, K) from 0 (certain) to 1 (all labels alike); None unless asked for.
        predicted_dice: Of each label that was found, where it is asked for and can be told.
    """

    segmentation: Segmentation
    probabilities: _Scores | None = field(default=None, repr=False)
    entropy: _Scores | None = field(default=None, repr=False)
    predicted_dice: Mapping[str, float] = field(default_factory=dict)


class VolumePipeline:
    """The way of one model's volumes, as its configuration describes it."""

    def __init__(self, spec: ModelSpec) -> None:
        if spec.volume is None:
            raise ConfigError(f"{spec.name}: expected the section 'volume', there is none")
        self.spec = spec
        self.volume: VolumeSpec = spec.volume
        self.window = volume_memory.windows(spec)
        self.grid = grid_of(self.volume.resampling, self.volume.spacing_mm, spec.input.size)
        volume_memory.check_limit(spec)
        self._classes = len(self.volume.regions) or len(spec.labels)

    def defaults(self) -> VolumeSettings:
        """What the model's configuration says where a caller does not."""
        return VolumeSettings(
            flips=self.volume.flips,
            largest_component=self.volume.largest_component,
            fill_holes=self.volume.fill_holes,
            quality=True,
        )

    def prepare(
        self, volume: Volume | Sequence[Volume], options: VolumeSettings | None = None
    ) -> Prepared:
        """Volume -> what the network sees of it.

        Args:
            volume: The image, or one for each channel of the network, all on the same grid.
            options: By default `defaults()`.

        Raises:
            PayloadTooLargeError: this call would take more memory than the model allows.
            InvalidImageError: the volume is smaller than anything that the network knows, or
                there is another number of channels, or they lie on different grids.
        """
        channels = [volume] if isinstance(volume, Volume) else list(volume)
        self._refuse_other_channels(channels)
        order = channels[0].geometry.axis_order(self.volume.orientation)
        geometry = channels[0].geometry.reordered(order)
        self._refuse_small(geometry)
        volume_memory.check(self.spec, channels[0], options or self.defaults())
        upright = [Volume(order.apply(each.array), geometry) for each in channels]
        body = self._body(upright)
        box = self._region(upright[0], body)
        parts = [crop(each, box) for each in upright]
        region = parts[0].geometry
        seen = None if body is None else box.cut(body)
        arrays = [
            self._channel(part, steps, seen)
            for part, steps in zip(parts, self.volume.steps, strict=True)
        ]
        grid = region.with_shape(self.grid.shape(region))
        self._refuse_other_size(grid)
        tensor = np.stack(arrays) if len(arrays) > 1 else arrays[0][np.newaxis]
        inner = None
        if self.volume.roi.kind is RoiKind.FOREGROUND:
            inner = mask_box(np.any(tensor > 0, axis=0))
            tensor = np.ascontiguousarray(inner.cut(tensor))
        return Prepared(tensor, Inverse(channels[0].geometry, order, box, region, grid, inner))

    def prepare_labels(self, mask: _Mask, inverse: Inverse) -> _Mask:
        """A reference mask (I, J, K) on the source's grid -> the network's grid, for training."""
        part = inverse.apply(mask)
        if part.shape == inverse.grid.shape:
            return np.ascontiguousarray(part)
        return resample_labels(part, inverse.region, self.volume.spacing_mm)[0]

    def segment(
        self, prepared: Prepared, predict: Predict, options: VolumeSettings | None = None
    ) -> Segmented:
        """Run the network over the volume; the mask lies on the source's grid.

        Args:
            prepared: What `prepare` gave.
            predict: The network: windows (N, C, i, j, k) -> logits (N, labels, i, j, k).
            options: By default `defaults()`.

        Raises:
            DeadlineError: `options.between` found that time is up.
            ValueError: the network answers with another shape.
        """
        return self.restore(self.infer(prepared, predict, options), prepared.inverse, options)

    def infer(
        self, prepared: Prepared, predict: Predict, options: VolumeSettings | None = None
    ) -> Found:
        """The first half of `segment`: what the network says, on its own grid."""
        options = options or self.defaults()
        inverse = prepared.inverse
        rules = self.volume
        is_changed = inverse.grid.shape != inverse.region.shape
        sums = self._sums() if options.quality else None
        if (
            options.wants_scores
            or (is_changed and rules.restored is not Restored.LABELS)
            or (rules.ensemble > 1 or rules.regions or rules.blending.sums is Sums.F16)
        ):
            scores = self.scores(prepared, predict, options)
            if sums is not None:
                sums.add(scores, None, argmax_channels(scores))
            return Found(scores=scores, sums=sums)
        mask = sliding_window.labels(
            prepared.tensor, self._predict(predict, options), self.window,
            self._classes, WorkLimits(between=options.between),
            None if sums is None else sums.add,
        )  # fmt: skip
        return Found(mask=mask, sums=sums)

    def restore(
        self, found: Found, inverse: Inverse, options: VolumeSettings | None = None
    ) -> Segmented:
        """The second half: on the source's grid, tidied."""
        segmented = self._restore(found, inverse, options or self.defaults())
        quality = self.volume.quality
        if quality is None or not (options or self.defaults()).quality:
            return segmented
        predicted = {}
        if found.sums is not None and quality.dice is not None:
            predicted = found.sums.predicted_dice(quality.dice, self.spec.labels)
        plain = segmented.segmentation
        measured = plain.with_measures(with_quality(plain.measures, quality, predicted))
        return replace(segmented, segmentation=measured, predicted_dice=predicted)

    def doubts(self, prepared: Prepared, segmented: Segmented) -> tuple[Doubt, ...]:
        """Tell what about a volume and its mask is out of the ordinary."""
        seen, quality = self.volume.seen, self.volume.quality
        volumes_ml = segmented.segmentation.volumes_ml
        doubts: tuple[Doubt, ...] = ()
        if seen is not None:
            grid = prepared.inverse.grid
            size_mm = [n * mm for n, mm in zip(grid.shape, grid.spacing_mm, strict=True)]
            doubts += doubts_about_image(seen, prepared.tensor[0], size_mm)
        if not any(volumes_ml.values()):
            doubts += (Doubt(DoubtReason.EMPTY, "none of the labels was found"),)
        if seen is not None:
            doubts += doubts_about_volumes(seen, volumes_ml)
        if quality is not None and quality.dice is not None:
            doubts += doubts_about_dice(quality.dice, segmented.predicted_dice)
        return doubts

    def _restore(self, found: Found, inverse: Inverse, options: VolumeSettings) -> Segmented:
        mask = found.mask
        if mask is None and self.volume.restored is Restored.LABELS:
            assert found.scores is not None  # one of the two is there
            mask = self._winners(found.scores)
        segmentation = None if mask is None else self._labelled(mask, inverse, options)
        if segmentation is not None and not options.wants_scores:
            return Segmented(segmentation)
        assert found.scores is not None
        if not options.wants_scores:
            labels = self._winners(self._restored(found.scores, inverse))
            return Segmented(self._tidied(labels, inverse, options))
        probabilities = np.stack(list(self._restored(found.scores, inverse)))
        if segmentation is None:
            segmentation = self._tidied(self._winners(probabilities), inverse, options)
        self._to_probabilities(probabilities)
        return Segmented(
            segmentation,
            self._all_labels(probabilities, inverse) if options.probabilities else None,
            inverse.undo(self._entropy(probabilities)) if options.entropy else None,
        )

    def scores(
        self, prepared: Prepared, predict: Predict, options: VolumeSettings | None = None
    ) -> _Scores:
        """Blended scores (channels, i, j, k) on the network's grid: the mean of all networks."""
        options = options or self.defaults()
        networks = self.volume.ensemble
        found = sliding_window.scores(
            prepared.tensor, self._predict(predict, options), self.window,
            networks * self._classes, WorkLimits(between=options.between),
        )  # fmt: skip
        if networks == 1:
            return found
        total = found[: self._classes]
        for first in range(self._classes, len(found), self._classes):
            total += found[first : first + self._classes]  # in the type of the sums
        total /= networks
        return total.copy()  # so that the scores of the single networks can go

    def golden_window(self, prepared: Prepared) -> _Scores:
        """The window (1, C, i, j, k) in the middle: what a golden pair holds the logits of."""
        shape, size = prepared.tensor.shape[1:], self.window.size
        i, j, k = ((side - length) // 2 for side, length in zip(shape, size, strict=True))
        window = np.zeros((1, prepared.tensor.shape[0], *size), dtype=np.float32)
        sliding_window.cut(prepared.tensor, (i, j, k), self.window, window[0])
        return window if len(self.spec.input.size) == 3 else window[:, :, 0]

    @property
    def _temperature(self) -> float:
        return 1.0 if self.volume.quality is None else self.volume.quality.temperature

    def _sums(self) -> MaskSums | None:
        """Return what counts the voxels of a mask, where the model predicts its Dice."""
        quality = self.volume.quality
        if quality is None or quality.dice is None:
            return None
        return MaskSums(len(self.spec.labels), quality.temperature)

    def _labelled(self, mask: _Mask, inverse: Inverse, options: VolumeSettings) -> Segmentation:
        """Labels of what the network saw -> the source's grid, tidied before or after."""
        whole = inverse.on_grid(mask)
        if self.volume.restored is not Restored.LABELS:
            return self._tidied(whole, inverse, options)
        back = self.grid.scores(self._tidy(whole, options), inverse.region)
        labels = np.ascontiguousarray(inverse.undo(np.rint(back).astype(np.uint8)))
        return Segmentation(labels, inverse.source, self.spec.labels)

    def _tidied(self, mask: _Mask, inverse: Inverse, options: VolumeSettings) -> Segmentation:
        """A mask on the region's grid -> the source's grid."""
        full = self._tidy(inverse.undo(mask), options)
        return Segmentation(full, inverse.source, self.spec.labels)

    def _tidy(self, mask: _Mask, options: VolumeSettings) -> _Mask:
        """Keep the largest pieces and fill holes, as far as a call asks for it."""
        if options.largest_component:
            mask = self._largest(mask)
        return components.fill_holes(mask) if options.fill_holes else mask

    def _largest(self, mask: _Mask) -> _Mask:
        """Keep the largest piece of what the model counts as one structure."""
        if not self.volume.largest_of:
            return components.largest_component(mask)
        number = self.spec.labels.index
        groups = [[number(label) for label in group] for group in self.volume.largest_of]
        return components.largest_union(mask, groups)

    def _predict(self, predict: Predict, options: VolumeSettings) -> Predict:
        axes = self.volume.flip_axes
        inner = predict if len(self.spec.input.size) == 3 else _of_planes(predict)
        return _mirrored(inner, axes) if options.flips and axes else inner

    def _channel(
        self, part: Volume, steps: Sequence[Any], body: npt.NDArray[np.bool_] | None
    ) -> _Scores:
        """One channel of the region -> the network's grid and intensities."""
        if self.volume.resampling.normalise_first:
            return self.grid.image(normalise(part.array, steps, body), part.geometry)
        return normalise(self.grid.image(part.array, part.geometry), steps)

    def _body(self, upright: Sequence[Volume]) -> npt.NDArray[np.bool_] | None:
        """What is not 0, where the region or the normalisation of a channel asks for it."""
        counted = any(
            step.kind is NormalisationKind.Z_SCORE_BODY
            for steps in self.volume.steps
            for step in steps
        )
        if not counted and self.volume.roi.kind is not RoiKind.NONZERO:
            return None
        body = nonzero_body([each.array for each in upright])
        return body if body.any() else np.ones_like(body)

    def _region(self, upright: Volume, body: npt.NDArray[np.bool_] | None) -> Box:
        roi = self.volume.roi
        if roi.kind in (RoiKind.NONE, RoiKind.FOREGROUND):  # the latter is found later
            return Box.whole(upright.geometry.shape)
        if roi.kind is RoiKind.NONZERO:
            assert body is not None  # `_body` sees to it
            return mask_box(body)
        threshold = roi.threshold if roi.kind is RoiKind.THRESHOLD else None
        return threshold_box(upright, threshold, roi.margin_mm, largest_only=roi.largest_only)

    def _restored(self, scores: _Scores, inverse: Inverse) -> Iterator[_Scores]:
        """Scores -> each channel on the region's grid, one at a time."""
        rules = self.volume
        if rules.restored is not Restored.LOGITS and rules.scores is ScoreKind.LOGITS:
            scores = _sigmoid(scores) if rules.regions else _softmax(scores)
        region = inverse.region
        return (self.grid.scores(inverse.on_grid(channel), region) for channel in scores)

    def _winners(self, channels: Iterator[_Scores] | _Scores) -> _Mask:
        """Channels, restored or to be restored as labels -> label ids uint8 on their grid."""
        rules = self.volume
        if not rules.regions:
            return argmax_channels(channels)
        is_probable = rules.restored is Restored.PROBABILITIES
        is_probable = is_probable or rules.scores is ScoreKind.PROBABILITIES
        limit = 0.5 if is_probable else 0.0  # sigmoid(0) is a half
        inside = [channel > limit for channel in channels]
        mask = np.zeros(inside[0].shape, dtype=np.uint8)
        for label, channel in rules.regions.items():
            mask[inside[channel]] = self.spec.labels.index(label)
        return mask

    def _to_probabilities(self, restored: _Scores) -> None:
        """Turn restored scores into probabilities, in place."""
        if self.volume.restored is Restored.LOGITS:
            restored /= np.float32(self._temperature)
            restored[:] = _sigmoid(restored) if self.volume.regions else _softmax(restored)
        if self.volume.roi.kind is RoiKind.FOREGROUND and not self.volume.regions:
            restored[0] += 1 - restored.sum(axis=0)  # outside of it there is nothing else

    def _all_labels(self, probabilities: _Scores, inverse: Inverse) -> _Scores:
        """Probabilities of channels -> (labels, I, J, K) on the source's grid.

        Regions may overlap; the background's probability is then that of no region at all.
        """
        if not self.volume.regions:
            return inverse.undo_probabilities(probabilities)
        labels = np.zeros((len(self.spec.labels), *probabilities.shape[1:]), dtype=np.float32)
        labels[0] = 1.0 - probabilities.max(axis=0)
        for label, channel in self.volume.regions.items():
            labels[self.spec.labels.index(label)] = probabilities[channel]
        return inverse.undo_probabilities(labels)

    def _entropy(self, probabilities: _Scores) -> _Scores:
        """Of labels that exclude each other Shannon's; of regions that of the least certain."""
        if not self.volume.regions:
            return _entropy(probabilities)
        each = [_entropy(np.stack([channel, 1 - channel])) for channel in probabilities]
        return np.asarray(np.max(each, axis=0))

    def _refuse_other_channels(self, channels: Sequence[Volume]) -> None:
        names = list(self.volume.channels)
        if len(channels) != (len(names) or 1):
            wanted = f"{len(names)} images ({', '.join(names)})" if names else "one image"
            raise InvalidImageError(
                f"expected {wanted} of one grid, got {len(channels)}; send them in this order"
            )
        for name, each in zip(names[1:], channels[1:], strict=True):
            if not each.geometry.matches(channels[0].geometry):
                raise InvalidImageError(
                    f"expected {name} on the grid of {names[0]}, got another grid; resample one "
                    f"to the other"
                )

    def _refuse_other_size(self, grid: Geometry) -> None:
        whole, size = self.volume.blending.placement is Placement.WHOLE, self.window.size
        if whole and grid.shape != size:
            wanted, got = (" x ".join(map(str, shape)) for shape in (size, grid.shape))
            raise InvalidImageError(
                f"expected a volume of {wanted} voxels, got {got}: this model sees a whole volume "
                f"at once; crop or resample it"
            )

    def _refuse_small(self, upright: Geometry) -> None:
        least = self.spec.input.min_side
        extent = [n * mm for n, mm in zip(upright.shape, upright.spacing_mm, strict=True)]
        wanted = self.volume.spacing_mm or (0.0, 0.0, 0.0)
        needed = [least * (mm or own) for mm, own in zip(wanted, upright.spacing_mm, strict=True)]
        if least == 1:
            return  # the model takes what there is
        if any(has < wants for has, wants in zip(extent, needed, strict=True)):
            raise InvalidImageError(
                f"expected a volume of at least {_millimetres(needed)}, got "
                f"{_millimetres(extent)}; send the whole volume, and check its spacing"
            )


def _millimetres(lengths: list[float]) -> str:
    return " x ".join(f"{length:.3g}" for length in lengths) + " mm"


def _mirrored(predict: Predict, axes: tuple[int, ...]) -> Predict:
    """The mean of a network's scores over a window and all its mirror images."""
    chosen = sorted(set(axes))
    combinations = [
        tuple(2 + axis for axis in subset)
        for count in range(1, len(chosen) + 1)
        for subset in itertools.combinations(chosen, count)
    ]

    def mean(windows: _Scores) -> _Scores:
        total = predict(windows).copy()  # an engine may keep what it returned
        for flipped in combinations:
            total += np.flip(predict(np.ascontiguousarray(np.flip(windows, flipped))), flipped)
        total /= np.float32(1 + len(combinations))
        return total

    return mean


def _of_planes(predict: Predict) -> Predict:
    """A network for planes as one for windows of a single plane, across the first axis."""

    def predicted(windows: _Scores) -> _Scores:
        return predict(windows[:, :, 0])[:, :, np.newaxis]  # (N, C, 1, h, w) -> (N, C, h, w)

    return predicted


def _sigmoid(scores: _Scores) -> _Scores:
    """Logits -> probabilities of regions, float32."""
    logits = np.asarray(scores, dtype=np.float32)
    return np.asarray(np.exp(-np.logaddexp(np.float32(0), -logits)))


def _softmax(scores: _Scores) -> _Scores:
    """Logits (labels, ...) -> probabilities, in place."""
    scores -= scores.max(axis=0)
    np.exp(scores, out=scores)
    scores /= scores.sum(axis=0)
    return scores


def _entropy(probabilities: _Scores) -> _Scores:
    """(labels, ...) -> Shannon's entropy over its largest value, in [0, 1]."""
    total = np.zeros(probabilities.shape[1:], dtype=np.float32)
    for channel in probabilities:
        total -= channel * np.log(np.maximum(channel, np.finfo(np.float32).tiny))
    total /= np.float32(np.log(len(probabilities)))
    return np.clip(total, 0.0, 1.0, out=total)
