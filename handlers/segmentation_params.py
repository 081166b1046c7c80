"""What a caller may ask of a model that segments volumes: the input `params`, checked.

    output             mask (default), probabilities, overlay, uncertainty, json
    format             nifti, dicom-seg, png, json; by default what fits the output
    channel            which volume of a four-dimensional NIfTI file
    spacing_mm         three numbers: the spacing of an NPY array, which states none
    flips              average over mirror images
    largest_component  keep only the largest piece of each label
    fill_holes         fill what a label encloses
    overlay            a JSON answer also carries the picture
    uncertainty        a JSON answer also carries the map of entropy

Errors never quote values: a caller may have put anything there.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, replace

from handlers.params import flag, lengths, one_of, refuse_unknown
from medserve.errors import InvalidRequestError
from medserve.imaging.codecs.volume_file import ReadOptions
from medserve.inference.volume_pipeline import SegmentOptions

__all__ = ["Part", "SegmentationParams"]


class Part(enum.StrEnum):
    """Something that an answer may hold."""

    MASK = "mask"  # .nii.gz
    PROBABILITIES = "probabilities"  # .nii.gz, four-dimensional
    UNCERTAINTY = "uncertainty"  # .nii.gz
    OVERLAY = "overlay"  # PNG
    DICOM_SEG = "dicom-seg"  # DICOM Segmentation


_JSON = "json"
# (output, format) -> the part; with the format json it comes as a member of the JSON answer.
_BARE: dict[tuple[str, str], Part] = {
    ("mask", "nifti"): Part.MASK,
    ("mask", "dicom-seg"): Part.DICOM_SEG,
    ("probabilities", "nifti"): Part.PROBABILITIES,
    ("uncertainty", "nifti"): Part.UNCERTAINTY,
    ("overlay", "png"): Part.OVERLAY,
}
_IN_JSON: dict[tuple[str, str], Part] = {
    ("json", "json"): Part.MASK,
    ("json", "dicom-seg"): Part.DICOM_SEG,
    ("mask", "json"): Part.MASK,
    ("probabilities", "json"): Part.PROBABILITIES,
    ("uncertainty", "json"): Part.UNCERTAINTY,
    ("overlay", "json"): Part.OVERLAY,
}
_FORMAT_OF = {"mask": "nifti", "probabilities": "nifti", "uncertainty": "nifti", "overlay": "png"}
_OUTPUT_OF = {"nifti": "mask", "dicom-seg": "mask", "png": "overlay"}
_OUTPUTS = (*_FORMAT_OF, _JSON)
_FORMATS = (*_OUTPUT_OF, _JSON)
_EXTRAS = {"overlay": Part.OVERLAY, "uncertainty": Part.UNCERTAINTY}
_KNOWN = (
    *("channel", "fill_holes", "flips", "format", "largest_component", "output", "overlay"),
    *("spacing_mm", "uncertainty"),
)


@dataclass(frozen=True)
class SegmentationParams:
    """One call's wishes.

    Attributes:
        parts: What the answer holds; exactly one where it is no JSON.
        as_json: Whether the answer is a JSON object; that always holds mask and measurements.
        read: What the caller says of the file.
        options: What the pipeline is to do.
    """

    parts: frozenset[Part]
    as_json: bool
    read: ReadOptions
    options: SegmentOptions

    @classmethod
    def parse(
        cls,
        params: Mapping[str, object],
        defaults: SegmentOptions,
        modalities: tuple[str, ...] = (),
    ) -> SegmentationParams:
        """Check and parse; `defaults` and `modalities` are the model's own.

        Raises:
            InvalidRequestError: names the known keys, or what the key takes.
        """
        refuse_unknown(params, _KNOWN)
        wanted, as_json = _wanted(params)
        parts = {wanted} | {part for key, part in _EXTRAS.items() if flag(params, key, False)}
        if not as_json and len(parts) > 1:
            raise InvalidRequestError(
                f"params: expected {' and '.join(_EXTRAS)} with the output json, got one with a "
                "bare file; ask for json, or for that output alone"
            )
        return cls(
            parts=frozenset(parts),
            as_json=as_json,
            read=ReadOptions(_channel(params), _spacing(params), modalities),
            options=replace(
                defaults,
                flips=flag(params, "flips", defaults.flips),
                largest_component=flag(params, "largest_component", defaults.largest_component),
                fill_holes=flag(params, "fill_holes", defaults.fill_holes),
                probabilities=Part.PROBABILITIES in parts,
                entropy=Part.UNCERTAINTY in parts,
            ),
        )


def _wanted(params: Mapping[str, object]) -> tuple[Part, bool]:
    """The part that output and format name, and whether it comes in JSON."""
    output = one_of(params, "output", _OUTPUTS)
    form = one_of(params, "format", _FORMATS)
    if output is None:
        output = "mask" if form is None else _OUTPUT_OF.get(form, _JSON)
    if form is None:
        form = _FORMAT_OF.get(output, _JSON)
    pair = (output, form)
    if pair not in _BARE | _IN_JSON:
        fitting = [each for of, each in (*_BARE, *_IN_JSON) if of == output]
        raise InvalidRequestError(
            f"params: format: expected {' or '.join(fitting)} for the output {output}, "
            "got another one"
        )
    return (_BARE | _IN_JSON)[pair], pair in _IN_JSON


def _channel(params: Mapping[str, object]) -> int | None:
    value = params.get("channel")
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise InvalidRequestError(
            "params: channel: expected a whole number from 0, got something else"
        )
    return value


def _spacing(params: Mapping[str, object]) -> tuple[float, float, float] | None:
    found = lengths(params, "spacing_mm", 3)
    if found is None:
        return None
    i, j, k = found
    return i, j, k
