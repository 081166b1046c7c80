"""A case on its way to the typed face of a gateway, in pieces, and the mask on its way back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc.aio
from grpc.aio import EOF  # type: ignore[attr-defined]  # missing in the stubs

from medserve.client.results import SegmentedFile
from medserve.errors import InvalidRequestError, ServerFailedError
from medserve.tasks.result import Provenance
from medserve.tasks.volumes import LabelMeasure, VolumeFormat, VolumeOptions
from medserve.wire.v1 import imaging_pb2 as pb

__all__ = ["Upload"]

_CHUNK_BYTES = 512 * 2**10
_FORMATS = {
    None: pb.MASK_FORMAT_UNSPECIFIED,
    VolumeFormat.NIFTI: pb.MASK_FORMAT_NIFTI,
    VolumeFormat.DICOM_SEG: pb.MASK_FORMAT_DICOM_SEG,
    VolumeFormat.DICOM_LABELMAP: pb.MASK_FORMAT_DICOM_LABELMAP,
}


@dataclass(frozen=True)
class Upload:
    """A case, and what is asked about it.

    Attributes:
        files: Its file under the name "", or the file of each channel by its name.
        off_loop: Runs what reads the disk outside the event loop.
    """

    files: Mapping[str, Path]
    model: str
    version: str | None
    options: VolumeOptions
    off_loop: Callable[..., Coroutine[Any, Any, Any]]

    async def send(self, call: grpc.aio.StreamStreamCall[Any, Any]) -> SegmentedFile:
        """Send it over a call of `Segment` and read the answer.

        Raises:
            InvalidRequestError: the file cannot be read, or the options ask for more than a mask.
            grpc.RpcError: the call failed.
        """
        settings = await self.off_loop(self._settings)
        try:
            await call.write(pb.SegmentRequest(settings=settings))
            first: Any = await call.read()  # accepted: now it is worth the way
            if first is not EOF:
                await self._send_chunks(call)
        except asyncio.InvalidStateError:
            pass  # the call has ended meanwhile; reading on tells why
        return await _read(call)

    async def _send_chunks(self, call: grpc.aio.StreamStreamCall[Any, Any]) -> None:
        for channel, path in self.files.items():
            if channel:
                await call.write(pb.SegmentRequest(input=pb.SegmentInput(channel=channel)))
            file = await self.off_loop(path.open, "rb")
            try:
                while chunk := await self.off_loop(file.read, _CHUNK_BYTES):
                    await call.write(pb.SegmentRequest(chunk=chunk))
            finally:
                file.close()
        await call.done_writing()

    def _settings(self) -> pb.SegmentSettings:
        params = self.options.to_params()
        wanted = params.pop("format", None)
        known = pb.SegmentSettings.DESCRIPTOR.fields_by_name
        if wanted not in _FORMATS or not set(params) <= set(known.keys()):
            raise InvalidRequestError(
                "expected a mask as nifti, dicom-seg or dicom-labelmap, got another format"
            )
        try:
            size = sum(path.stat().st_size for path in self.files.values())
        except OSError as error:
            raise InvalidRequestError(f"a file cannot be read ({error.strerror})") from error
        return pb.SegmentSettings(
            model_name=self.model,
            model_version=self.version or "",
            content_bytes=size,
            mask_format=_FORMATS[wanted],
            **params,
        )


async def _read(call: grpc.aio.StreamStreamCall[Any, Any]) -> SegmentedFile:
    """Return the answer: its description, and the chunks of the mask behind it."""
    result: pb.SegmentResult | None = None
    mask = bytearray()
    while (part := await call.read()) is not EOF:
        assert isinstance(part, pb.SegmentResponse)
        match part.WhichOneof("part"):
            case "result":
                result = part.result
            case "chunk" if part.chunk.role == pb.FILE_ROLE_MASK:
                mask += part.chunk.content
    if result is None or not mask:
        raise ServerFailedError("expected a mask at the end of the call, got none")
    source = result.provenance
    return SegmentedFile(
        provenance=Provenance(source.model_name, source.model_version, source.archive_digest),
        labels=tuple(result.labels),
        measures=tuple(map(_measure, result.measures)),
        mask=bytes(mask),
        review=result.review,
        unlike_training=result.unlike_training,
    )


def _measure(message: pb.LabelMeasure) -> LabelMeasure:
    def numbers(values: Any) -> Any:
        return tuple(values) or None

    return LabelMeasure(
        label=message.label,
        label_id=message.label_id,
        voxels=message.voxels,
        volume_ml=message.volume_ml,
        centroid_mm=numbers(message.centroid_mm),
        box_start=numbers(message.box_start),
        box_stop=numbers(message.box_stop),
        touches_border=message.touches_border,
        predicted_dice=message.predicted_dice if message.HasField("predicted_dice") else None,
        volume_interval_ml=numbers(message.volume_interval_ml),
    )
