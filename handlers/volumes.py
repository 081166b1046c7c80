"""Models that segment volumes: everything, for any set of labels.

    bytes ─decode→ volume ─preprocess→ tensor ─infer→ labels or scores ─postprocess→ mask ─encode→

How the network sees a volume stands in the section `volume` of the model's configuration and
happens in `medserve.inference.volume_pipeline`, as in training.
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from handlers.base import Handler
from handlers.items import Item, errors_to, refuse_expired
from handlers.segmentation_params import Part, SegmentationParams
from medserve.errors import (
    ConfigError,
    InvalidRequestError,
    ModelNotReadyError,
    PayloadTooLargeError,
    ServerFailedError,
)
from medserve.imaging.codecs import nifti, volume_file
from medserve.imaging.codecs.nifti import NiftiSpace, NiftiVolume
from medserve.imaging.codecs.payload import Payload
from medserve.imaging.volume import Volume
from medserve.inference import volume_memory
from medserve.inference.engines import Outputs
from medserve.inference.sliding_window import until
from medserve.inference.volume_pipeline import Found, Prepared, Segmented, VolumePipeline
from medserve.results.files import overlay

__all__ = ["VolumeHandler"]

_SHARE_OF_TIMEOUT = 0.9  # the rest is for the way back and the answer
_MEMBER = {  # of a JSON answer, in base64
    Part.PROBABILITIES: "probabilities_nifti",
    Part.UNCERTAINTY: "entropy_nifti",
    Part.OVERLAY: "overlay_png",
    Part.DICOM_SEG: "dicom_seg",
}


class VolumeHandler(Handler[SegmentationParams]):
    """Volume -> mask on the volume's own grid; a model's own handler adds nothing but its name."""

    raises_errors: ClassVar[bool] = True
    max_items: ClassVar[int] = 1

    pipeline: VolumePipeline

    # ---- the five verbs

    def decode(self, payload: Payload, params: SegmentationParams) -> Volume:
        """NIfTI, DICOM series or NPY, by content -> the volume in it."""
        if len(payload) > self.spec.input.max_payload_bytes:
            raise PayloadTooLargeError(
                f"expected at most {self.spec.input.max_payload_bytes} bytes a volume, got "
                f"{len(payload)}; compress or crop it"
            )
        limits = volume_memory.limits(self.spec)
        volume = volume_file.decode(payload, self.spec.input.kinds, limits, params.read)
        if Part.DICOM_SEG in params.parts:
            self._refuse_dicom_seg(volume)
        return volume

    def preprocess(self, volume: Volume, params: SegmentationParams) -> Prepared:
        """What the file shows -> what the network sees of it, and the way back."""
        return self.pipeline.prepare(volume, params.options)

    def infer(self, prepared: Prepared, params: SegmentationParams) -> Found:
        """What the network sees -> labels or scores on its own grid, window by window."""
        return self.pipeline.infer(prepared, self._logits, params.options)

    def postprocess(
        self, found: Found, prepared: Prepared, params: SegmentationParams
    ) -> Segmented:
        """Labels or scores -> the mask on the grid of the file."""
        return self.pipeline.restore(found, prepared.inverse, params.options)

    def encode(self, result: Segmented, volume: Volume, params: SegmentationParams) -> bytes:
        """The bare file, or a JSON object with mask, measurements and what else was asked for."""
        if not params.as_json:
            [part] = params.parts
            return self._file(part, result, volume)
        content: dict[str, Any] = result.segmentation.to_json(space=_space(volume))
        for part in sorted(params.parts - {Part.MASK}):
            file = self._file(part, result, volume)
            content[_MEMBER[part]] = base64.b64encode(file).decode("ascii")
        return self.envelope.single(json.dumps(content, separators=(",", ":")).encode())

    # ---- what the base asks for

    def parse_params(self, params: Mapping[str, object]) -> SegmentationParams:
        """See `handlers.segmentation_params`."""
        parsed = SegmentationParams.parse(
            params, self.pipeline.defaults(), self.pipeline.volume.modalities
        )
        if Part.DICOM_SEG in parsed.parts and not self._is_coded:
            raise InvalidRequestError(
                "params: format: expected one that this model has, got dicom-seg, for which its "
                "configuration lacks codes; ask for nifti"
            )
        return parsed

    def answer(self, items: Sequence[Item[SegmentationParams]]) -> None:
        """One volume at a time; work stops between windows once nobody waits for it."""
        for item in items:
            with errors_to(item):
                refuse_expired(item.request)
                params = self._until(item.params, item.request.expires_at)
                volume = self.decode(item.payload, params)
                prepared = self.preprocess(volume, params)
                found = self.infer(prepared, params)
                result = self.postprocess(found, prepared, params)
                del prepared, found  # not beside the answer
                refuse_expired(item.request)
                item.outcome = self.encode(result, volume, params)

    def prepare(self) -> None:
        """Build the way of this model's volumes."""
        self.pipeline = VolumePipeline(self.spec)
        coded = set(self.pipeline.volume.snomed)
        self._is_coded = coded == set(self.spec.labels[1:])
        if coded and not self._is_coded:
            missing = ", ".join(sorted(set(self.spec.labels[1:]) - coded))
            raise ConfigError(f"{self.spec.name}: snomed: expected a code for {missing}, got none")

    def reproduce(self, payload: Payload) -> Outputs:
        """The logits of the middle window, and the whole way once with its largest batch."""
        params = self.parse_params({})
        prepared = self.preprocess(self.decode(payload, params), params)
        window = self.pipeline.golden_window(prepared)
        outputs = self.engine.run(window)
        self.check_outputs(outputs)
        self.pipeline.segment(prepared, self._logits)
        self._logits(np.repeat(window, self.pipeline.window.batch, axis=0))
        return outputs

    def check_outputs(self, outputs: Outputs) -> None:
        """One score per label and voxel of a window, or the artifact is another model's."""
        expected = (1, len(self.spec.labels), *self.spec.input.size)
        got = outputs["logits"].shape if "logits" in outputs else None
        if got != expected:
            raise ModelNotReadyError(
                f"{self.spec.name}: expected logits {expected} for one window and "
                f"{len(self.spec.labels)} labels, got {got}; the artifact belongs to another model"
            )

    # ---- parts of the verbs

    def _logits(self, windows: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        logits = self.engine.run(windows)["logits"]
        if not np.isfinite(logits.sum(dtype=np.float64)):
            raise ServerFailedError("the network gave a number that is not finite for this volume")
        return logits

    def _until(self, params: SegmentationParams, expires_at: float | None) -> SegmentationParams:
        """The same wishes, with an end: the caller's, or before TorchServe kills the worker."""
        last = time.monotonic() + _SHARE_OF_TIMEOUT * self.spec.serving.response_timeout
        ends = last if expires_at is None else min(last, expires_at)
        return replace(params, options=replace(params.options, between=until(ends)))

    def _refuse_dicom_seg(self, volume: Volume) -> None:
        """Before the work, what would be refused after it."""
        from medserve.imaging.codecs.dicom_series import DicomVolume

        if not isinstance(volume, DicomVolume):
            raise InvalidRequestError(
                "expected a DICOM series to answer with DICOM-SEG, got another kind of file; "
                "ask for nifti"
            )

    def _file(self, part: Part, result: Segmented, volume: Volume) -> bytes:
        segmentation = result.segmentation
        match part:
            case Part.MASK:
                return segmentation.to_nifti(_space(volume))
            case Part.PROBABILITIES:
                assert result.probabilities is not None  # the options asked for them
                return nifti.encode_maps(result.probabilities, segmentation.labels, volume)
            case Part.UNCERTAINTY:
                assert result.entropy is not None
                return nifti.encode(Volume(result.entropy, volume.geometry), _space(volume))
            case Part.OVERLAY:
                return overlay.montage(volume, segmentation)
            case Part.DICOM_SEG:
                from medserve.results.files import (
                    dicom_seg,  # highdicom: only who asks for it waits
                )

                codes = self.pipeline.volume.snomed
                return dicom_seg.encode(segmentation, volume, codes, self.provenance)


def _space(volume: Volume) -> NiftiSpace | None:
    return volume.space if isinstance(volume, NiftiVolume) else None
