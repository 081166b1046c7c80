"""The way of a frame to the network and back: one source for training, evaluation and serving.

    Image ─prepare→ PreparedFrame (plane and way back) ─network→ logits ─find→ FoundFrame

There: the crop, the network's size with true proportions (of lengths where pixels are known to be
oblong, else of pixels), the speckle filter, the
intensities, padding. Back: the logits of the crop alone, interpolated to its pixels, the
threshold, the tidying, and the crop's place in the frame. A mask therefore has the frame's own
(H, W), whatever they are. Frames are worked on batch by batch: a stack of any length needs the
memory of one batch.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from PIL import Image as pillow
from scipy import ndimage

from medserve.errors import ConfigError
from medserve.imaging.image import Image
from medserve.imaging.ultrasound_check import looks_like_ultrasound
from medserve.inference import filters
from medserve.inference.components import fill_holes, largest_component
from medserve.inference.fit import standardised
from medserve.inference.normalise import Normalisation
from medserve.inference.quality import MaskSums
from medserve.results.quality import doubts_about_dice
from medserve.results.seen import doubts_about_image, doubts_about_shares
from medserve.spec import ModelSpec, Proportions
from medserve.spec.frames import Activation, CropKind, CropSpec, FrameSpec, Interpolation
from medserve.spec.volumes import ScoreKind
from medserve.tasks.result import Doubt, DoubtReason

__all__ = [
    "FoundFrame",
    "FrameBox",
    "FrameInverse",
    "FramePipeline",
    "FrameSettings",
    "PredictFrames",
    "PreparedFrame",
    "content_box",
]

_Plane = npt.NDArray[np.float32]
_Mask = npt.NDArray[np.uint8]

PredictFrames = Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float32]]
"""Frames float32 (N, C, H, W) -> scores float32 (N, K, H, W), see `FramePipeline.outputs`."""

_SQUARES = 96  # along the longer side of a frame, when its content is looked for
_LEAST = 1e-7  # of a probability in float32, so that its log-odds are finite
_RESAMPLING = {
    Interpolation.NEAREST: pillow.Resampling.NEAREST,
    Interpolation.AREA: pillow.Resampling.BOX,
    Interpolation.BILINEAR: pillow.Resampling.BILINEAR,
    Interpolation.BICUBIC: pillow.Resampling.BICUBIC,
    Interpolation.LANCZOS: pillow.Resampling.LANCZOS,
}


@dataclass(frozen=True)
class FrameBox:
    """A rectangle of pixels: the first row and column, and those behind the last."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.bottom - self.top, self.right - self.left

    @property
    def edges(self) -> tuple[int, int, int, int]:
        """Top, left, bottom, right."""
        return self.top, self.left, self.bottom, self.right

    @property
    def slices(self) -> tuple[slice, slice]:
        """For an array (H, W)."""
        return slice(self.top, self.bottom), slice(self.left, self.right)


@dataclass(frozen=True)
class FrameInverse:
    """How to put a plane of the network back onto the frame that it came from.

    Attributes:
        source: (H, W) of the frame as it was given.
        crop: What the network sees, in pixels of the frame.
        inner: Where it lies in the network's plane; the rest is padding.
    """

    source: tuple[int, int]
    crop: FrameBox
    inner: FrameBox


@dataclass(frozen=True, eq=False)
class PreparedFrame:
    """A frame as the network sees it.

    Attributes:
        plane: float32 (C, H, W).
        inverse: To the frame's own pixels.
    """

    plane: _Plane = field(repr=False)
    inverse: FrameInverse

    @property
    def seen(self) -> _Plane:
        """The first channel of the crop on the network's plane (h, w), without padding."""
        return np.asarray(self.plane[0][self.inverse.inner.slices])


@dataclass(frozen=True)
class FrameSettings:
    """What one call may decide; `FramePipeline.defaults` has the model's own choice.

    Attributes:
        threshold: Probability from which a pixel belongs to a structure; of a sigmoid's.
        flips: Average the logits with those of the mirror image.
        largest_component: Keep only the largest piece of each structure.
        fill_holes: Fill what it encloses.
        aspect: Height of a pixel over its width.
        between: Called before each batch with the number of frames that are done; may raise to
            stop the work.
    """

    threshold: float = 0.5
    flips: bool = False
    largest_component: bool = False
    fill_holes: bool = False
    aspect: float = 1.0
    between: Callable[[int], None] | None = None


@dataclass(frozen=True, eq=False)
class FoundFrame:
    """What the network found, on the frame's own pixels.

    Attributes:
        mask: Label ids uint8 (H, W): 0 background, 1 the first structure.
        crop: What of the frame the network saw.
        seen: float32 (h, w), the crop as the network saw it, without padding.
        predicted_dice: Of the only structure, where it was found and the description says how.
        sums: What that is made of.
    """

    mask: _Mask = field(repr=False)
    crop: FrameBox
    seen: _Plane = field(repr=False)
    predicted_dice: float | None = None
    sums: MaskSums | None = field(default=None, repr=False)


class FramePipeline:
    """What a model's configuration says about frames, as functions of frames."""

    def __init__(self, spec: ModelSpec) -> None:
        if spec.frame is None:
            raise ConfigError(f"{spec.name}: expected a section 'frame' in model-config.yaml")
        self.spec = spec
        self.frame: FrameSpec = spec.frame
        self.size: tuple[int, int] = (spec.input.size[0], spec.input.size[1])
        self._normalise = Normalisation.of(spec.frame.normalisation)

    @property
    def outputs(self) -> int:
        """Channels of the network's answer: a label's each, or a structure's with sigmoid."""
        return len(self.spec.labels) - (self.frame.activation is Activation.SIGMOID)

    @property
    def defaults(self) -> FrameSettings:
        """The model's own choice."""
        return FrameSettings(
            threshold=self.frame.threshold,
            flips=self.frame.flips,
            largest_component=self.frame.largest_component,
            fill_holes=self.frame.fill_holes,
        )

    def prepare(self, image: Image, aspect: float = 1.0) -> PreparedFrame:
        """A frame of any size -> the network's plane.

        A network of one channel sees the luma of a colour frame; for one of three channels those
        of a grey frame are alike.

        Args:
            image: The frame.
            aspect: Height of a pixel over its width; lengths keep their proportions.
        """
        grey, wanted = image.grey(), self.spec.input.channels
        inverse = self._inverse(grey, aspect)
        is_colour = wanted > 1 and image.is_colour
        seen = np.moveaxis(image.array, 2, 0) if is_colour else (grey,)
        planes = np.zeros((wanted, *self.size), dtype=np.float32)
        for place, channel in enumerate(seen):
            part = channel[inverse.crop.slices]
            resized = _resize(part, inverse.inner.shape, self.frame.interpolation)
            filtered = filters.apply(resized, self.frame.filter)
            planes[place][inverse.inner.slices] = self._normalise(filtered)
        planes[len(seen) :] = planes[0]
        return PreparedFrame(standardised(planes, self.spec.input), inverse)

    def prepare_mask(self, mask: npt.NDArray[np.integer], inverse: FrameInverse) -> _Mask:
        """A mask (H, W) of the frame, for training -> uint8 (h, w) on the network's plane.

        By the nearest pixel: no label appears that was not there.
        """
        if mask.shape != inverse.source:
            raise ValueError(f"expected a mask of shape {inverse.source}, got {mask.shape}")
        part = np.ascontiguousarray(mask[inverse.crop.slices], dtype=np.uint8)
        plane = np.zeros(self.size, dtype=np.uint8)
        plane[inverse.inner.slices] = _resize(part, inverse.inner.shape, Interpolation.NEAREST)
        return plane

    def find(
        self, logits: _Plane, prepared: PreparedFrame, options: FrameSettings | None = None
    ) -> FoundFrame:
        """Logits (K, h, w) of one frame -> what they say about its own pixels."""
        chosen, inverse = options or self.defaults, prepared.inverse
        inside = [
            np.ascontiguousarray(each[inverse.inner.slices], dtype=np.float32) for each in logits
        ]
        sums = self._sums(inside[0], _log_odds(chosen.threshold))
        own = [_resize(each, inverse.crop.shape, Interpolation.BILINEAR) for each in inside]
        found = self.decided(own, chosen.threshold)
        if chosen.largest_component:
            found = largest_component(found[..., np.newaxis])[..., 0]
        if chosen.fill_holes:
            found = fill_holes(found)
        mask = np.zeros(inverse.source, dtype=np.uint8)
        mask[inverse.crop.slices] = found
        predicted = None if sums is None else self._predicted_dice(sums)
        return FoundFrame(mask, inverse.crop, prepared.seen, predicted, sums)

    def as_logits(self, scores: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Return logits (N, K, h, w) of what the network answers."""
        if self.frame.scores is ScoreKind.LOGITS:
            return scores
        shares = np.clip(scores, _LEAST, 1.0 - _LEAST)
        if self.frame.activation is Activation.SOFTMAX:
            return np.log(shares)
        return np.log(shares / (1.0 - shares))

    def decided(self, logits: Sequence[npt.NDArray[np.float32]], threshold: float) -> _Mask:
        """Return the label ids (...) that the logits (...) of each output say.

        The largest wins, of equal ones the first; with sigmoid it has to reach the threshold.
        """
        is_softmax = self.frame.activation is Activation.SOFTMAX
        best: np.float32 | npt.NDArray[np.float32] = (
            np.float32(-np.inf) if is_softmax else _log_odds(threshold)
        )
        ids = np.zeros(logits[0].shape, dtype=np.uint8)
        for place in reversed(range(len(logits))):
            np.copyto(ids, np.uint8(place + (not is_softmax)), where=logits[place] >= best)
            best = np.maximum(best, logits[place])
        return ids

    def logits(
        self, planes: npt.NDArray[np.float32], predict: PredictFrames, flips: bool
    ) -> npt.NDArray[np.float32]:
        """Logits (N, K, h, w) of prepared planes (N, C, h, w), mirrored ones averaged in."""
        answer = self.as_logits(predict(planes))
        if flips:
            mirrored = self.as_logits(predict(np.ascontiguousarray(planes[..., ::-1])))
            answer = np.float32(0.5) * (answer + mirrored[..., ::-1])
        return answer

    def segment(
        self,
        images: Iterable[Image],
        predict: PredictFrames,
        options: FrameSettings | None = None,
    ) -> Iterator[FoundFrame]:
        """One answer for each frame, in order; frames are taken and answered batch by batch."""
        chosen = options or self.defaults
        frames = iter(images)
        done = 0
        while batch := list(itertools.islice(frames, self.frame.batch)):
            if chosen.between is not None:
                chosen.between(done)
            yield from self._segment_batch(batch, predict, chosen)
            done += len(batch)

    def is_unlike_ultrasound(self, image: Image) -> bool:
        """Whether a frame does not look like B-mode ultrasound, to a model of ultrasound."""
        return self.frame.ultrasound and not looks_like_ultrasound(image)

    def doubts(self, found: FoundFrame, size_mm: Sequence[float] | None) -> tuple[Doubt, ...]:
        """Tell what about a frame and its mask is out of the ordinary.

        That nothing was found is out of the ordinary, but where the description says of which
        frames it is an answer.

        Args:
            found: What the network found.
            size_mm: Extent of what it saw, down and across; None where it is not known.
        """
        # Both sections are of models with one structure alone.
        seen, quality, label = self.frame.seen, self.frame.quality, self.spec.labels[1]
        doubts: tuple[Doubt, ...] = ()
        if seen is not None:
            doubts += doubts_about_image(seen, found.seen, size_mm)
            share = float(found.mask[found.crop.slices].mean())
            doubts += doubts_about_shares(seen, {label: share}) if share else ()
        if quality is not None and quality.dice is not None and found.predicted_dice is not None:
            doubts += doubts_about_dice(quality.dice, {label: found.predicted_dice})
        if not found.mask.any() and not self._is_absent(found):
            doubts += (Doubt(DoubtReason.EMPTY, "nothing was found in the frame"),)
        return doubts

    def _is_absent(self, found: FoundFrame) -> bool:
        """Whether a frame without a mask is an answer, not a structure that was missed."""
        quality = self.frame.quality
        if quality is None or quality.absent_below is None or found.sums is None:
            return False
        return found.sums.promised < quality.absent_below

    def _sums(self, logits: _Plane, limit: np.float32) -> MaskSums | None:
        """Count the pixels of a mask (h, w), where the model says what follows from them."""
        if self.frame.quality is None:
            return None
        sums = MaskSums(2, self.frame.quality.temperature)
        sums.add(np.stack([np.zeros_like(logits), logits]), None, (logits >= limit).view(np.uint8))
        return sums

    def _predicted_dice(self, sums: MaskSums) -> float | None:
        assert self.frame.quality is not None  # `_sums` saw to it
        if self.frame.quality.dice is None:
            return None
        found = sums.predicted_dice(self.frame.quality.dice, self.spec.labels)
        return found.get(self.spec.labels[1])

    def _segment_batch(
        self, images: Sequence[Image], predict: PredictFrames, options: FrameSettings
    ) -> list[FoundFrame]:
        prepared = [self.prepare(image, options.aspect) for image in images]
        planes = np.stack([each.plane for each in prepared])
        answers = self.logits(planes, predict, options.flips)
        return [
            self.find(answer, each, options) for answer, each in zip(answers, prepared, strict=True)
        ]

    def _inverse(self, grey: _Plane, aspect: float) -> FrameInverse:
        height, width = grey.shape
        crop = _crop_box(grey, self.frame.crop, aspect)
        rows, columns = crop.shape
        high, wide = self.size
        if self.spec.input.proportions is Proportions.KEPT:
            tall = rows * aspect  # in widths of a pixel
            scale = min(self.size[0] / tall, self.size[1] / columns)
            high = min(self.size[0], max(1, round(tall * scale)))
            wide = min(self.size[1], max(1, round(columns * scale)))
        top, left = (self.size[0] - high) // 2, (self.size[1] - wide) // 2
        inner = FrameBox(top, left, top + high, left + wide)
        return FrameInverse((height, width), crop, inner)


def content_box(grey: _Plane, level: float, margin: float, aspect: float = 1.0) -> FrameBox:
    """The box around the largest piece of a frame that is not black.

    Small squares whose mean reaches `level` count, gaps of one square are bridged (shadows,
    speckle), and text beside the scan is another piece.

    Args:
        grey: float32 (H, W) in [0, 1].
        level: Mean intensity from which a square counts.
        margin: Kept around, as a share of the content's longer side.
        aspect: Height of a pixel over its width.

    Returns:
        The box; the whole frame where nothing is brighter.
    """
    height, width = grey.shape
    tall = height * aspect  # in widths of a pixel
    side = max(1, math.ceil(max(tall, width) / _SQUARES))  # widths of a pixel in a square
    rows, columns = math.ceil(tall / side), math.ceil(width / side)
    coarse = _resize(grey, (rows, columns), Interpolation.AREA)
    bright = np.pad(coarse >= level, 1)
    bright = ndimage.binary_closing(bright, structure=np.ones((3, 3), dtype=np.bool_))[1:-1, 1:-1]
    pieces, count = ndimage.label(bright, structure=np.ones((3, 3), dtype=np.int8))
    if count == 0:
        return FrameBox(0, 0, height, width)
    largest = int(np.bincount(pieces.ravel())[1:].argmax())
    vertical, horizontal = ndimage.find_objects(pieces)[largest]
    down, across = height / rows, width / columns
    kept = margin * max(
        (vertical.stop - vertical.start) * down * aspect,
        (horizontal.stop - horizontal.start) * across,
    )
    kept_rows = kept / aspect
    return FrameBox(
        max(0, int(vertical.start * down - kept_rows)),
        max(0, int(horizontal.start * across - kept)),
        min(height, int(np.ceil(vertical.stop * down + kept_rows))),
        min(width, int(np.ceil(horizontal.stop * across + kept))),
    )


def _crop_box(grey: _Plane, crop: CropSpec, aspect: float) -> FrameBox:
    height, width = grey.shape
    if crop.kind is CropKind.CONTENT:
        return content_box(grey, crop.level, crop.margin, aspect)
    if crop.kind is CropKind.BOX:
        top, left, bottom, right = crop.box
        first_row, first_column = int(top * height), int(left * width)
        return FrameBox(
            first_row,
            first_column,
            max(first_row + 1, round(bottom * height)),
            max(first_column + 1, round(right * width)),
        )
    return FrameBox(0, 0, height, width)


def _log_odds(share: float) -> np.float32:
    return np.float32(np.log(share / (1.0 - share)))


def _resize(
    plane: npt.NDArray[np.float32] | _Mask, shape: tuple[int, int], interpolation: Interpolation
) -> npt.NDArray[np.float32]:
    """(H, W) -> (h, w); of the same shape it passes through unchanged to the last bit."""
    if plane.shape == shape:
        return np.ascontiguousarray(plane)
    picture = pillow.fromarray(np.ascontiguousarray(plane))
    resized = picture.resize((shape[1], shape[0]), _RESAMPLING[interpolation])
    return np.asarray(resized)
