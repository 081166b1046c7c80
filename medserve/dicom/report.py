"""Measurements as DICOM structured reports: TID 1500 with groups of TID 1411 or 1501 (PS3.16)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from hashlib import sha256
from typing import Any

import highdicom
from highdicom import sr
from pydicom import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import ComprehensiveSRStorage

from medserve.client.results import SegmentedFile
from medserve.dicom.evidence import new_object, references
from medserve.results.files.dicom_derived import MANUFACTURER
from medserve.tasks.classification import Classification
from medserve.tasks.frames import FrameResult, StackMeasure
from medserve.tasks.regression import Regression
from medserve.tasks.result import Provenance
from medserve.tasks.volumes import LabelMeasure

__all__ = ["Segments", "frame_report", "image_report", "value_report", "volume_report"]

Uid = Callable[..., str]

_SCHEME = "99MEDSERVE"  # private codes: names of classes, for which there is no other code
_FINDING = Code("121071", "DCM", "Finding")
_PROCEDURE = Code("363679005", "SCT", "Imaging procedure")
_PROBABILITY = Code("PROBABILITY", _SCHEME, "Probability of the class")
_NO_LABEL = Code("NO_LABEL", _SCHEME, "None of the labels of the model")
_REVIEW = Code("REVIEW", _SCHEME, "A person should look at the image")
_PREDICTED_DICE = Code("PREDICTED_DICE", _SCHEME, "Overlap with a reference to expect (Dice)")
_VOLUME_LOW = Code("VOLUME_LOW", _SCHEME, "Lower end of 90 % of volumes in a reference")
_VOLUME_HIGH = Code("VOLUME_HIGH", _SCHEME, "Upper end of 90 % of volumes in a reference")
_DIGITS = 7  # of a number in single precision; a decimal string holds 16 characters
_YES, _NO = Code("373066001", "SCT", "Yes"), Code("373067005", "SCT", "No")
_ML = Code("ml", "UCUM", "milliliter")
_MM = Code("mm", "UCUM", "millimeter")
_CM2 = Code("cm2", "UCUM", "square centimeter")
_ONE = Code("1", "UCUM", "no units")
# What a stack of frames measures: its attribute, concept and unit.
_OF_STACK = (
    ("volume_ml", Code("118565006", "SCT", "Volume"), _ML),
    ("area_cm2", Code("42798000", "SCT", "Area"), _CM2),
    ("width_mm", Code("103355008", "SCT", "Width"), _MM),
    ("height_mm", Code("121207", "DCM", "Height"), _MM),
    ("length_mm", Code("410668003", "SCT", "Length"), _MM),
)


class Segments:
    """The segments of a segmentation object, to which a report refers."""

    def __init__(self, seg: Dataset) -> None:
        self.dataset = seg
        self.by_label: Mapping[str, Dataset] = {
            str(each.TrackingID): each for each in seg.SegmentSequence if "TrackingID" in each
        }


def volume_report(
    found: SegmentedFile,
    segments: Segments,
    evidence: Sequence[Dataset],
    uid: Uid,
) -> Dataset:
    """Return a report with the volume of each segment in millilitres, and the advice to look."""
    groups, provenance = [], found.provenance
    # Of several series of one grid, the one that the segmentation was derived from.
    [source] = segments.dataset.ReferencedSeriesSequence
    for measure in found.measures:
        segment = segments.by_label[measure.label]
        groups.append(
            sr.VolumetricROIMeasurementsAndQualitativeEvaluations(
                tracking_identifier=_tracking(segment),
                referenced_segment=sr.ReferencedSegment(
                    sop_class_uid=segments.dataset.SOPClassUID,
                    sop_instance_uid=segments.dataset.SOPInstanceUID,
                    segment_number=int(segment.SegmentNumber),
                    source_series=sr.SourceSeriesForSegmentation(source.SeriesInstanceUID),
                ),
                algorithm_id=_algorithm(provenance),
                measurements=list(_of_label(measure)),
                qualitative_evaluations=[_look(found.review)],
                **_meaning(segment),
            )
        )
    return _document(groups, [*evidence, segments.dataset], provenance, uid)


def _of_label(measure: LabelMeasure) -> Iterator[sr.Measurement]:
    yield _measurement(_OF_STACK[0][1], round(measure.volume_ml, 3), _ML)
    if measure.volume_interval_ml is not None:
        low, high = measure.volume_interval_ml
        yield _measurement(_VOLUME_LOW, round(low, 3), _ML)
        yield _measurement(_VOLUME_HIGH, round(high, 3), _ML)
    if measure.predicted_dice is not None:
        yield _measurement(_PREDICTED_DICE, round(measure.predicted_dice, 3), _ONE)


def _look(is_needed: bool) -> sr.QualitativeEvaluation:
    return sr.QualitativeEvaluation(name=_REVIEW, value=_YES if is_needed else _NO)


def frame_report(result: FrameResult, segments: Segments, evidence: Dataset, uid: Uid) -> Dataset:
    """Return a report with what was measured over all frames of one object."""
    groups = [
        sr.MeasurementsAndQualitativeEvaluations(
            tracking_identifier=_tracking(segment),
            source_images=[sr.SourceImageForMeasurementGroup.from_source_image(evidence)],
            algorithm_id=_algorithm(result.provenance),
            measurements=list(_of_stack(result.stacks[label])) or None,
            qualitative_evaluations=[_look(result.review)],
            **_meaning(segment),
        )
        for label, segment in segments.by_label.items()
    ]
    return _document(groups, [evidence, segments.dataset], result.provenance, uid)


def _of_stack(stack: StackMeasure) -> Iterator[sr.Measurement]:
    for name, concept, unit in _OF_STACK:
        value = getattr(stack, name)
        if value is not None:
            yield _measurement(concept, round(value, 3), unit)


def image_report(
    found: Sequence[Classification],
    evidence: Sequence[Dataset],
    provenance: Provenance,
    uid: Uid,
) -> Dataset:
    """Return a report with what each image shows, its probability and the advice to look.

    An image has a group for its class, or for each label that is present where labels are
    independent; a single one without a probability says that none of them is.
    """
    groups = []
    for number, (image, each) in enumerate(zip(evidence, found, strict=True)):
        look = _look(each.review or each.unlike_training)
        for place, (label, probability) in enumerate(each.found or ((None, None),)):
            kind = _NO_LABEL if label is None else _class_code(provenance.model, label)
            further = [] if place == 0 else [place]
            groups.append(
                sr.MeasurementsAndQualitativeEvaluations(
                    tracking_identifier=sr.TrackingIdentifier(
                        uid=uid("track", number, *further), identifier=f"image {number + 1}"
                    ),
                    source_images=[sr.SourceImageForMeasurementGroup.from_source_image(image)],
                    algorithm_id=_algorithm(provenance),
                    finding_type=kind,
                    measurements=None
                    if probability is None
                    else [_measurement(_PROBABILITY, round(probability, 6), _ONE)],
                    qualitative_evaluations=[
                        sr.QualitativeEvaluation(name=_FINDING, value=kind),
                        look,
                    ],
                )
            )
    return _document(groups, evidence, provenance, uid)


def value_report(
    found: Sequence[Regression], evidence: Sequence[Dataset], provenance: Provenance, uid: Uid
) -> Dataset:
    """Return a report with the numbers of each image in their units, and the advice to look."""
    groups = [
        sr.MeasurementsAndQualitativeEvaluations(
            tracking_identifier=sr.TrackingIdentifier(
                uid=uid("track", number), identifier=f"image {number + 1}"
            ),
            source_images=[sr.SourceImageForMeasurementGroup.from_source_image(image)],
            algorithm_id=_algorithm(provenance),
            measurements=[
                _measurement(
                    _class_code(provenance.model, value.name),
                    float(f"{value.value:.{_DIGITS}g}"),
                    Code(value.unit, "UCUM", value.unit_name),
                )
                for value in each.values
            ],
            qualitative_evaluations=[_look(each.review)],
        )
        for number, (image, each) in enumerate(zip(evidence, found, strict=True))
    ]
    return _document(groups, evidence, provenance, uid)


def _document(
    groups: Sequence[Any], evidence: Sequence[Dataset], provenance: Provenance, uid: Uid
) -> Dataset:
    device = sr.DeviceObserverIdentifyingAttributes(
        uid=uid("device"),
        name=provenance.model,
        manufacturer_name=MANUFACTURER,
        model_name=provenance.model,
        serial_number=provenance.version,
    )
    content = sr.MeasurementReport(
        observation_context=sr.ObservationContext(
            observer_device_context=sr.ObserverContext(
                observer_type=codes.DCM.Device, observer_identifying_attributes=device
            )
        ),
        procedure_reported=_PROCEDURE,
        imaging_measurements=list(groups),
        title=codes.DCM.ImagingMeasurementReport,
        language_of_content_item_and_descendants=sr.LanguageOfContentItemAndDescendants(
            sr.CodedConcept("en", "RFC5646", "English")
        ),
    )
    # highdicom's class of documents keeps tables of 60 MB for the elements around the content.
    document = new_object(evidence[0], ComprehensiveSRStorage, provenance)
    document.Modality = "SR"
    document.update(content[0])
    document.CompletionFlag, document.VerificationFlag = "COMPLETE", "UNVERIFIED"
    document.PreliminaryFlag = "PRELIMINARY"  # research use
    document.ReferencedPerformedProcedureStepSequence = []
    document.PerformedProcedureCodeSequence = []
    document.CurrentRequestedProcedureEvidenceSequence = [references(evidence)]
    scheme = Dataset()  # PS3.3 C.12.1.1: says whose the private codes are
    scheme.CodingSchemeDesignator = _SCHEME
    scheme.CodingSchemeName = "medserve: labels of models, by a digest, and what is told of answers"
    scheme.CodingSchemeResponsibleOrganization = MANUFACTURER
    document.CodingSchemeIdentificationSequence = [scheme]
    return document


def _tracking(segment: Dataset) -> sr.TrackingIdentifier:
    return sr.TrackingIdentifier(uid=segment.TrackingUID, identifier=str(segment.TrackingID))


def _meaning(segment: Dataset) -> dict[str, Any]:
    """Return category, type and place of what a segment shows, in its own codes."""
    kind = segment.SegmentedPropertyTypeCodeSequence[0]
    modifiers = kind.get("SegmentedPropertyTypeModifierCodeSequence") or []
    finding = _code(kind)
    site = sr.FindingSite(
        anatomic_location=finding,
        topographical_modifier=_code(modifiers[0]) if modifiers else None,
    )
    return {
        "finding_category": _code(segment.SegmentedPropertyCategoryCodeSequence[0]),
        "finding_type": finding,
        "finding_sites": [site],
    }


def _code(item: Dataset) -> Code:
    return Code(str(item.CodeValue), str(item.CodingSchemeDesignator), str(item.CodeMeaning))


def _class_code(model: str, label: str) -> Code:
    digest = sha256(f"{model}\n{label}".encode()).hexdigest()[:16].upper()
    return Code(digest, _SCHEME, label[:64])


def _algorithm(provenance: Provenance) -> sr.AlgorithmIdentification:
    return sr.AlgorithmIdentification(
        name=provenance.model,
        version=provenance.version,
        parameters=[f"archive {provenance.archive_digest}"],
    )


def _measurement(name: Code, value: float, unit: Code) -> sr.Measurement:
    return sr.Measurement(name=highdicom.sr.CodedConcept.from_code(name), value=value, unit=unit)
