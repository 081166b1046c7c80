"""Models that segment ultrasound frames: one picture, a cine loop, the planes of a stack.

    bytes ─decode→ frames ─to_network→ plane ─infer→ logits ─from_network→ mask ─encode→ bytes

Frames pass one batch at a time, so that a long loop takes the memory of a few frames and one bit a
pixel for its masks. A frame that cannot be used costs no other. How the network sees a frame
stands in the section `frame` of the model's configuration and happens in
`medserve.inference.frame_pipeline`, as in training.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import numpy.typing as npt
from msgspec import structs

from handlers.answer import Envelope, Outcome
from handlers.base import Handler
from handlers.items import Item, errors_to, refuse_expired
from handlers.verbs import VERBS
from medserve.errors import (
    DeadlineError,
    InvalidImageError,
    InvalidRequestError,
    MedserveError,
    ModelNotReadyError,
    ServerFailedError,
)
from medserve.imaging.codecs import frame_file, sniff
from medserve.imaging.codecs.dicom_frames import DicomFrames
from medserve.imaging.codecs.frame_file import FrameReading
from medserve.imaging.codecs.payload import Payload
from medserve.imaging.frames import FrameLimits, FrameStack, GivenSpacing
from medserve.imaging.image import Image
from medserve.imaging.packed_masks import PackedMasks
from medserve.inference.engines import Outputs
from medserve.inference.frame_pipeline import FoundFrame, FramePipeline, FrameSettings
from medserve.results.files import frame_overlay
from medserve.results.frame_measure import measure_frame, measure_stack, measure_structures
from medserve.results.frame_segmentation import FrameFinding, FrameSegmentation, mask_png
from medserve.tasks.frames import FrameOptions, FramePart

__all__ = ["BareFile", "FrameHandler"]

_SHARE_OF_TIMEOUT = 0.9  # the rest is for the way back and the answer
_FAINTEST = 2.0 / 255.0  # contrast below it: nothing was scanned
_MOST_ELONGATED = 8.0  # longer side over shorter: a colour bar, a curve, a strip of film


class BareFile(bytes):
    """An answer that is a file as it stands, with no JSON around it."""


class _Envelope(Envelope):
    """Lets bare files through."""

    def single(self, outcome: Outcome) -> bytes:
        """The answer to a call with one file, or to a call that failed as a whole."""
        return bytes(outcome) if isinstance(outcome, BareFile) else super().single(outcome)


@dataclass(frozen=True)
class _Seen:
    """One frame that went to the network.

    Attributes:
        index: Its place in the stack.
        unlike_ultrasound: Whether it does not look like ultrasound.
    """

    index: int
    unlike_ultrasound: bool


class FrameHandler(Handler[FrameOptions]):
    """Frames -> masks on the frames' own pixels; a model's own handler adds only its name."""

    max_items: ClassVar[int] = 1  # one file on the line at a time: it may be a long loop
    verbs: ClassVar[Mapping[str, str]] = VERBS | {
        "to_network": "pipeline.prepare",
        "from_network": "pipeline.find",
    }

    pipeline: FramePipeline
    limits: FrameLimits

    # ---- the five verbs; `segment` is to_network, infer and from_network, frame by frame

    def decode(self, payload: Payload, params: FrameOptions) -> FrameStack:
        """PNG, JPEG, TIFF, DICOM or NIfTI, by content -> the frames in it."""
        reading = FrameReading(GivenSpacing(params.spacing_mm, params.step_mm), params.view)
        stack = frame_file.decode(payload, self.limits, reading)
        height, width = stack.grid.size
        tall = height * stack.grid.aspect
        if max(tall, width) > _MOST_ELONGATED * min(tall, width):
            raise InvalidImageError(
                f"expected frames at most {_MOST_ELONGATED:g} times as long as wide, got "
                f"{width} x {height} pixels; send whole frames"
            )
        self._refuse_part(params.part, stack)
        return stack

    def infer(self, planes: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Planes (N, C, H, W) -> what the network answers (N, K, H, W)."""
        logits = self.engine.run(planes)["logits"]
        if not np.isfinite(logits.sum(dtype=np.float64)):
            raise ServerFailedError("the network gave a number that is not finite for this frame")
        return logits

    def segment(
        self, stack: FrameStack, options: FrameOptions, settings: FrameSettings
    ) -> FrameSegmentation:
        """Bring every frame to the network and its mask back, batch by batch.

        Raises:
            InvalidImageError: no frame of the file can be used.
        """
        findings: dict[int, FrameFinding] = {}
        seen: list[_Seen] = []
        masks = PackedMasks(stack.grid.size, labels=len(self.spec.labels))
        images = self._images(stack, findings, seen)
        boxes: list[tuple[int, int, int, int] | None] = [None] * stack.grid.count
        found = self.pipeline.segment(images, self.infer, settings)
        for place, each in enumerate(found):
            frame = seen[place]
            _fill(masks, frame.index)
            masks.append(each.mask)
            boxes[frame.index] = each.crop.edges
            findings[frame.index] = self._finding(each, stack, frame)
        _fill(masks, stack.grid.count)
        _refuse_failure(findings, stack.grid.count)
        frames = tuple(findings[index] for index in range(stack.grid.count))
        grid, labels, measures = stack.grid, self.spec.labels, [each.measure for each in frames]
        measured = measure_stack(measures, grid, options.length_mm)
        structures = measure_structures(masks, measures, grid, labels, boxes, options.length_mm)
        return FrameSegmentation(masks, grid, labels, frames, measured, structures)

    def encode(
        self, found: FrameSegmentation, stack: FrameStack, options: FrameOptions, *, packed: bool
    ) -> bytes:
        """The bare file, or a JSON object with mask, measurements and what else was asked for."""
        if not options.as_json(packed=packed):
            return BareFile(self._file(options.part, found, stack))
        files = {}
        if options.with_overlay:
            files["overlay_png"] = self._file(FramePart.OVERLAY, found, stack)
        if options.part is FramePart.DICOM_SEG:
            files["dicom_seg"] = self._file(FramePart.DICOM_SEG, found, stack)
        return structs.replace(found.to_result(stack), **files).encode()

    # ---- what the base asks for

    def answer(self, items: Sequence[Item[FrameOptions]]) -> None:
        """One file at a time; work stops between batches once nobody waits for it."""
        for item in items:
            with errors_to(item):
                refuse_expired(item.request)
                options, packed = item.params, item.request.packed
                options.as_json(packed=packed)  # refuses what an answer of this call cannot hold
                stack = self.decode(item.payload, options)
                settings = self.settings(options, stack, item.request.expires_at)
                found = self.segment(stack, options, settings)
                refuse_expired(item.request)
                item.outcome = self.encode(found, stack, options, packed=packed)

    def prepare(self) -> None:
        """Build the way of this model's frames, and import the codecs that it reads with."""
        self.pipeline = FramePipeline(self.spec)
        frame = self.pipeline.frame
        self.limits = FrameLimits(self.spec.input, frame.max_frames, frame.modalities)
        self.envelope = _Envelope(self.provenance)
        sniff.prepare(self.spec.input)

    def reproduce(self, payload: Payload) -> Outputs:
        """The logits of the first frame, and the whole way once with the largest batch."""
        options = self.parse_params({})
        stack = self.decode(payload, options)
        plane = self.pipeline.prepare(stack.read(0), stack.grid.aspect).plane[np.newaxis]
        outputs = self.engine.run(plane)
        self.check_outputs(outputs)
        found = self.segment(stack, options, self.settings(options, stack))
        self.encode(found, stack, options, packed=False)
        if self.pipeline.frame.batch > 1:
            self.infer(np.repeat(plane, self.pipeline.frame.batch, axis=0))
        return outputs

    def check_outputs(self, outputs: Outputs) -> None:
        """The scores of each pixel of the plane, or the artifact is another model's."""
        expected = (1, self.pipeline.outputs, *self.spec.input.size)
        got = outputs["logits"].shape if "logits" in outputs else None
        if got != expected:
            raise ModelNotReadyError(
                f"{self.spec.name}: expected logits {expected} for one frame, got {got}; the "
                "artifact belongs to another model"
            )

    # ---- parts of the verbs

    def settings(
        self, options: FrameOptions, stack: FrameStack, expires_at: float | None = None
    ) -> FrameSettings:
        """Tell the pipeline what to do, and when to stop.

        The end is the caller's, or comes before TorchServe kills the worker.
        """
        last = time.monotonic() + _SHARE_OF_TIMEOUT * self.spec.serving.response_timeout
        ends = last if expires_at is None else min(last, expires_at)
        return replace(
            self.pipeline.defaults,
            **options.given("flips", "largest_component", "fill_holes"),
            aspect=stack.grid.aspect,
            between=_until(ends, stack.grid.count),
        )

    def _images(
        self, stack: FrameStack, findings: dict[int, FrameFinding], seen: list[_Seen]
    ) -> Iterator[Image]:
        """The frames that can be used, when asked for; why the others cannot, in `findings`."""
        ultrasound = self.pipeline.frame.ultrasound
        for index in range(stack.grid.count):
            try:
                image = stack.read(index)
                _refuse_blank(image, ultrasound=ultrasound)
            except MedserveError as error:
                findings[index] = FrameFinding(error)
                continue
            is_unlike = self.pipeline.is_unlike_ultrasound(image)
            seen.append(_Seen(index, unlike_ultrasound=is_unlike))
            yield image

    def _refuse_part(self, part: FramePart, stack: FrameStack) -> None:
        """Before the work, what would be refused after it."""
        if part is FramePart.DICOM_SEG and not isinstance(stack, DicomFrames):
            raise InvalidRequestError(
                "expected a DICOM file to answer with DICOM-SEG, got another kind of file; ask "
                "for nifti or png"
            )
        if part is FramePart.PNG and stack.is_stack:
            raise InvalidRequestError(
                "expected a single frame to answer with one PNG, got a stack; ask for nifti"
            )

    def _finding(self, found: FoundFrame, stack: FrameStack, frame: _Seen) -> FrameFinding:
        measured = measure_frame(found.mask, stack.grid, found.crop.edges)
        measured = structs.replace(measured, predicted_dice=found.predicted_dice)
        doubts = self.pipeline.doubts(found, _size_mm(found, stack))
        return FrameFinding(measured, frame.unlike_ultrasound, doubts)

    def _file(self, part: FramePart, found: FrameSegmentation, stack: FrameStack) -> bytes:
        if part is FramePart.MASK:
            part = FramePart.NIFTI if stack.is_stack else FramePart.PNG
        match part:
            case FramePart.OVERLAY:
                return frame_overlay.draw(stack, found, in_colour=self.spec.input.channels > 1)
            case FramePart.DICOM_SEG:
                from medserve.results.files import (
                    dicom_seg_frames,  # highdicom: only who asks waits
                )

                assert isinstance(stack, DicomFrames)  # `_refuse_part` saw to it
                codes = self.pipeline.frame.snomed
                segments = [(label, codes[label]) for label in self.spec.labels[1:]]
                return dicom_seg_frames.encode(found.masks, stack, segments, self.provenance)
            case FramePart.PNG:
                return mask_png(found.masks[0], len(self.spec.labels))
            case _:
                return stack.nifti_mask(found.masks)


def _refuse_blank(image: Image, *, ultrasound: bool) -> None:
    if float(np.ptp(image.array)) < _FAINTEST:
        wanted = "an ultrasound frame" if ultrasound else "a frame with a picture"
        recorded = "recorded with the probe on the patient" if ultrasound else "exposed"
        raise InvalidImageError(
            f"expected {wanted}, got one that is the same grey all over; send a frame that was "
            f"{recorded}"
        )


def _size_mm(found: FoundFrame, stack: FrameStack) -> list[float] | None:
    """Return the extent of what the network saw; None where the spacing does not hold there."""
    grid, crop = stack.grid, found.crop
    if grid.spacing_mm is None:
        return None
    high, wide = crop.shape
    middle = np.zeros(grid.size, np.uint8)  # the edge of a crop may lie outside of a calibration
    middle[crop.top + high // 4 : crop.bottom - high // 4,
           crop.left + wide // 4 : crop.right - wide // 4] = 1  # fmt: skip
    if not grid.covers(middle):
        return None
    return [pixels * mm for pixels, mm in zip(crop.shape, grid.spacing_mm, strict=True)]


def _fill(masks: PackedMasks, count: int) -> None:
    """Empty masks for the frames before `count` that have none."""
    while len(masks) < count:
        masks.append(np.zeros(masks.size, dtype=np.uint8))


def _refuse_failure(findings: Mapping[int, FrameFinding], count: int) -> None:
    """A file of which no frame can be used has no answer, but an error."""
    errors = [each.error for each in findings.values() if each.error is not None]
    if len(errors) < count:
        return
    if count == 1:
        raise errors[0]
    raise InvalidImageError(
        f"expected at least one frame that can be used, got {count} that cannot; the first: "
        f"{errors[0].message}"
    )


def _until(ends: float, count: int) -> Callable[[int], None]:
    """A `between` that raises DeadlineError once the time is over."""

    def check(done: int) -> None:
        if time.monotonic() >= ends:
            raise DeadlineError(
                f"expected the answer in the time allowed, got {done} of {count} frames done by "
                "then; allow more time or send fewer frames"
            )

    return check
