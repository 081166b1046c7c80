"""Models that segment volumes: everything, for any set of labels.

    bytes ─decode→ volume ─to_network→ tensor ─infer→ labels or scores ─from_network→ mask ─encode→

How the network sees a volume stands in the section `volume` of the model's configuration and
happens in `medserve.inference.volume_pipeline`, as in training.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar

import numpy as np
import numpy.typing as npt
from msgspec import structs

from handlers.base import Handler
from handlers.items import Item, errors_to, refuse_expired
from handlers.verbs import VERBS
from medserve.errors import (
    ConfigError,
    InvalidImageError,
    InvalidRequestError,
    ModelNotReadyError,
    PayloadTooLargeError,
    ServerFailedError,
)
from medserve.imaging.codecs import nifti
from medserve.imaging.codecs.channels import decode_channels
from medserve.imaging.codecs.nifti import NiftiSpace, NiftiVolume
from medserve.imaging.codecs.payload import Payload
from medserve.imaging.codecs.volume_file import ReadOptions
from medserve.imaging.volume import Volume
from medserve.inference import volume_memory
from medserve.inference.engines import Outputs
from medserve.inference.sliding_window import until
from medserve.inference.volume_pipeline import (
    Found,
    Prepared,
    Segmented,
    VolumePipeline,
    VolumeSettings,
)
from medserve.results.files import overlay
from medserve.tasks.result import Doubt
from medserve.tasks.volumes import SEGMENTATIONS, VolumeOptions, VolumePart

__all__ = ["VolumeHandler"]

_ROUNDING = 1e-5  # of float values; 16 bits resolve 1.5e-5
_SHARE_OF_TIMEOUT = 0.9  # the rest is for the way back and the answer
_MEMBER = {  # of `VolumeResult`
    VolumePart.PROBABILITIES: "probabilities_nifti",
    VolumePart.UNCERTAINTY: "entropy_nifti",
    VolumePart.OVERLAY: "overlay_png",
    VolumePart.DICOM_SEG: "dicom_seg",
    VolumePart.DICOM_LABELMAP: "dicom_seg",
}


class VolumeHandler(Handler[VolumeOptions]):
    """Volume -> mask on the volume's own grid; a model's own handler adds nothing but its name."""

    raises_errors: ClassVar[bool] = True
    max_items: ClassVar[int] = 1
    verbs: ClassVar[Mapping[str, str]] = VERBS

    pipeline: VolumePipeline

    # ---- the five verbs

    def decode(self, payloads: Sequence[Payload], options: VolumeOptions) -> tuple[Volume, ...]:
        """NIfTI, DICOM series or NPY, by content -> the volumes of the network's channels."""
        for payload in payloads:
            if len(payload) > self.spec.input.max_payload_bytes:
                raise PayloadTooLargeError(
                    f"expected at most {self.spec.input.max_payload_bytes} bytes a volume, got "
                    f"{len(payload)}; compress or crop it"
                )
        limits = volume_memory.limits(self.spec)
        volumes = decode_channels(
            payloads,
            self.channels,
            self.spec.input.kinds,
            limits,
            ReadOptions.asked(options, self.pipeline.volume.modalities),
        )
        for volume in volumes:
            _refuse_blank(volume)
        if options.parts & SEGMENTATIONS:
            self._refuse_dicom_seg(volumes[0])
        return volumes

    def to_network(self, volumes: Sequence[Volume], settings: VolumeSettings) -> Prepared:
        """Bring the volumes to the network's grid and intensities, with the inverse."""
        return self.pipeline.prepare(volumes, settings)

    def infer(self, prepared: Prepared, settings: VolumeSettings) -> Found:
        """Run the network window by window: labels or scores on its own grid."""
        return self.pipeline.infer(prepared, self._logits, settings)

    def from_network(self, found: Found, prepared: Prepared, settings: VolumeSettings) -> Segmented:
        """Bring labels or scores back to the grid of the file."""
        return self.pipeline.restore(found, prepared.inverse, settings)

    def encode(
        self,
        result: Segmented,
        volume: Volume,
        options: VolumeOptions,
        doubts: tuple[Doubt, ...] = (),
    ) -> bytes:
        """The bare file, or a JSON object with mask, measurements and what else was asked for."""
        if not options.as_json:
            [part] = options.parts
            return self._file(part, result, volume)
        files = {
            _MEMBER[part]: self._file(part, result, volume)
            for part in options.parts - {VolumePart.MASK}
        }
        members = structs.replace(
            result.segmentation.to_result(_space(volume)),
            review=bool(doubts),
            unlike_training=any(each.is_about_input for each in doubts),
            doubts=doubts,
            **files,
        )
        return self.envelope.single(members.encode())

    # ---- what the base asks for

    def answer(self, items: Sequence[Item[VolumeOptions]]) -> None:
        """One volume at a time; work stops between windows once nobody waits for it."""
        for item in items:
            with errors_to(item):
                refuse_expired(item.request)
                settings = self.settings(item.params, item.request.expires_at)
                volumes = self.decode(item.request.payloads, item.params)
                prepared = self.to_network(volumes, settings)
                found = self.infer(prepared, settings)
                result = self.from_network(found, prepared, settings)
                doubts = self.pipeline.doubts(prepared, result) if item.params.as_json else ()
                del prepared, found  # not beside the answer
                refuse_expired(item.request)
                item.outcome = self.encode(result, volumes[0], item.params, doubts)

    def prepare(self) -> None:
        """Build the way of this model's volumes."""
        self.pipeline = VolumePipeline(self.spec)
        coded = set(self.pipeline.volume.snomed)
        if coded and (uncoded := set(self.spec.labels[1:]) - coded):
            missing = ", ".join(sorted(uncoded))
            raise ConfigError(f"{self.spec.name}: snomed: expected a code for {missing}, got none")

    def reproduce(self, payload: Payload) -> Outputs:
        """The logits of the middle window, and the whole way once with its largest batch."""
        options = self.parse_params({})
        settings = replace(self.pipeline.defaults(), flips=False)  # mirror images prove no more
        prepared = self.to_network(self.decode([payload], options), settings)
        window = self.pipeline.golden_window(prepared)
        outputs = self.engine.run(window)
        self.check_outputs(outputs)
        self.pipeline.segment(prepared, self._logits, settings)
        self._logits(np.repeat(window, self.pipeline.window.batch, axis=0))
        return outputs

    def check_outputs(self, outputs: Outputs) -> None:
        """One score per label and voxel of a window, or the artifact is another model's."""
        rules = self.pipeline.volume
        classes = rules.ensemble * (len(rules.regions) or len(self.spec.labels))
        expected = (1, classes, *self.spec.input.size)
        got = outputs["logits"].shape if "logits" in outputs else None
        if got != expected:
            raise ModelNotReadyError(
                f"{self.spec.name}: expected logits {expected} for one window and "
                f"{len(self.spec.labels)} labels, got {got}; the artifact belongs to another model"
            )

    # ---- parts of the verbs

    def settings(self, options: VolumeOptions, expires_at: float | None = None) -> VolumeSettings:
        """Tell the pipeline what to do, and when to stop.

        The end is the caller's, or comes before TorchServe kills the worker.
        """
        last = time.monotonic() + _SHARE_OF_TIMEOUT * self.spec.serving.response_timeout
        return replace(
            self.pipeline.defaults(),
            **options.given("flips", "largest_component", "fill_holes"),
            probabilities=VolumePart.PROBABILITIES in options.parts,
            entropy=VolumePart.UNCERTAINTY in options.parts,
            quality=options.as_json or bool(options.parts & SEGMENTATIONS),
            between=until(last if expires_at is None else min(last, expires_at)),
        )

    def _logits(self, windows: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        logits = self.engine.run(windows)["logits"]
        if not np.isfinite(logits.sum(dtype=np.float64)):
            raise ServerFailedError("the network gave a number that is not finite for this volume")
        return logits

    def _refuse_dicom_seg(self, volume: Volume) -> None:
        """Before the work, what would be refused after it."""
        from medserve.imaging.codecs.dicom_series import DicomVolume

        if not isinstance(volume, DicomVolume):
            raise InvalidRequestError(
                "expected a DICOM series to answer with DICOM-SEG, got another kind of file; "
                "ask for nifti"
            )

    def _file(self, part: VolumePart, result: Segmented, volume: Volume) -> bytes:
        segmentation = result.segmentation
        match part:
            case VolumePart.MASK:
                return segmentation.to_nifti(_space(volume))
            case VolumePart.PROBABILITIES:
                assert result.probabilities is not None  # the options asked for them
                return nifti.encode_maps(result.probabilities, segmentation.labels, volume)
            case VolumePart.UNCERTAINTY:
                assert result.entropy is not None
                return nifti.encode(Volume(result.entropy, volume.geometry), _space(volume))
            case VolumePart.OVERLAY:
                return overlay.montage(volume, segmentation)
            case VolumePart.DICOM_SEG | VolumePart.DICOM_LABELMAP:
                from medserve.results.files import (
                    dicom_seg,  # highdicom: only who asks for it waits
                )

                codes = self.pipeline.volume.snomed
                is_labelmap = part is VolumePart.DICOM_LABELMAP
                return dicom_seg.encode(
                    segmentation, volume, codes, self.provenance, is_labelmap=is_labelmap
                )


def _refuse_blank(volume: Volume) -> None:
    low, high = float(volume.array.min()), float(volume.array.max())
    # What resampling or a rescale leaves of a constant volume of floats is rounding, no contrast.
    least = _ROUNDING * max(abs(low), abs(high)) if volume.array.dtype.kind == "f" else 0.0
    if high - low <= least:
        raise InvalidImageError(
            "expected a volume with contrast, got one that has the same value all over; send the "
            "original images"
        )


def _space(volume: Volume) -> NiftiSpace | None:
    return volume.space if isinstance(volume, NiftiVolume) else None
