"""Read the images of a model that sees several of one grid: one file, or a file for each."""

from __future__ import annotations

import math
import struct
from collections.abc import Collection, Sequence

from medserve.errors import InvalidImageError, InvalidRequestError
from medserve.imaging.codecs import nifti, volume_file
from medserve.imaging.codecs.payload import Payload
from medserve.imaging.codecs.unpack import peek
from medserve.imaging.codecs.volume_file import ReadOptions
from medserve.imaging.volume import Volume, VolumeLimits
from medserve.spec import InputKind

__all__ = ["decode_channels"]


def decode_channels(
    payloads: Sequence[Payload],
    names: Sequence[str],
    kinds: Collection[InputKind],
    limits: VolumeLimits,
    options: ReadOptions,
) -> tuple[Volume, ...]:
    """Return the volumes of all channels, in the order of `names`; a single one has no name.

    Args:
        payloads: A file for each channel, or one four-dimensional NIfTI file.
        names: Of the channels; empty for a model of one image.
        kinds: Families of files that the model reads.
        limits: What is refused for its size.
        options: What the request says about its files.

    Raises:
        InvalidImageError: another number of channels, or a file that its codec refuses.
        InvalidRequestError: a single channel is asked for of a model that sees several.
        PayloadTooLargeError: above `limits`.
    """
    if not names:
        return tuple(volume_file.decode(each, kinds, limits, options) for each in payloads)
    if options.channel is not None:
        raise InvalidRequestError(
            f"expected no channel, for this model sees all of {', '.join(names)}; leave it out"
        )
    if len(payloads) > 1:
        _refuse_other_count(len(payloads), names)
        return tuple(volume_file.decode(each, kinds, limits, options) for each in payloads)
    [payload] = payloads
    _refuse_other_count(_stored_channels(payload), names)
    return tuple(nifti.decode(payload, limits, channel) for channel in range(len(names)))


def _refuse_other_count(count: int, names: Sequence[str]) -> None:
    if count != len(names):
        raise InvalidImageError(
            f"expected {len(names)} images ({', '.join(names)}), got {count}; send a file for "
            f"each in this order, or one NIfTI file with them along its fourth axis"
        )


def _stored_channels(payload: Payload) -> int:
    """Return how many volumes a file holds, from the header of NIfTI (1 of other kinds)."""
    if not nifti.recognises(payload):
        return 1
    start = peek(payload)
    order = "<" if start[0] in (348 % 256, 540 % 256) else ">"
    is_second = 540 in (struct.unpack("<i", start[:4])[0], struct.unpack(">i", start[:4])[0])
    layout, at = (f"{order}8q", 16) if is_second else (f"{order}8h", 40)
    count, *sides = struct.unpack_from(layout, start, at)
    return math.prod(max(1, side) for side in sides[3 : max(3, min(count, 7))])
