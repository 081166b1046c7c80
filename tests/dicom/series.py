"""Series of images with identifiers of their own, and the answer of a model about them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
from pydicom import Dataset
from pydicom.uid import generate_uid

from medserve.client import SegmentedFile
from medserve.dicom.ask import Answer
from medserve.dicom.rules import Kind, Rule
from medserve.imaging.codecs import dicom_series
from medserve.imaging.geometry import Geometry
from medserve.results.files import dicom_seg
from medserve.results.segmentation import Segmentation
from medserve.spec.volumes import CodedTerm, SegmentCoding
from medserve.tasks.result import Provenance
from tests.volume_phantoms import as_bytes, dicom_slices, ramp, zipped

__all__ = ["CODES", "LABELS", "PROVENANCE", "RULES", "SECRETS", "answer_volume", "series", "write"]

LABELS = ("background", "anterior", "posterior")
PROVENANCE = Provenance("segmentation_3d", "1.2", "sha256:" + "0" * 64)
SECRETS = ("Secret", "S1-", "2.25.")  # of every series below; they belong into no log
RULES = """
[[rule]]
name = "brain"
model = "segmentation_3d"
task = "volumes"
modality = ["MR"]
images = [5, 400]
quiet_s = {quiet_s}
results = ["seg", "sr"]
"""
_HIPPOCAMPUS = CodedTerm("5366008", "Hippocampus")
CODES = {
    "anterior": SegmentCoding(_HIPPOCAMPUS, CodedTerm("255549009", "Anterior")),
    "posterior": SegmentCoding(_HIPPOCAMPUS, CodedTerm("255551008", "Posterior")),
}


@cache
def _slices(count: int, size: tuple[int, int]) -> list[Dataset]:
    affine = np.diag((0.8, 1.1, 2.3, 1.0))
    return dicom_slices(ramp(Geometry((*size, count), affine)))


def series(number: int, slices: int = 5, size: tuple[int, int] = (8, 7)) -> list[bytes]:
    """Return the files of one series, which is the only one of its patient and study."""
    files = []
    for place, plain in enumerate(_slices(slices, size)):
        dataset = Dataset()
        dataset.update(plain)
        dataset.file_meta = plain.file_meta
        dataset.PatientName, dataset.PatientID = f"Secret^Name{number}", f"S1-{number}"
        for name in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"):
            setattr(dataset, name, _uid(name, number))
        dataset.SOPInstanceUID = _uid("image", number, place)
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        files.append(as_bytes(dataset))
    return files


def _uid(*parts: object) -> str:
    return str(generate_uid(prefix="2.25.", entropy_srcs=[str(each) for each in parts]))


def write(folder: Path, files: Sequence[bytes]) -> list[Path]:
    """Write files into a folder, named by their place."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{place:03d}.dcm" for place in range(len(files))]
    for path, content in zip(paths, files, strict=True):
        path.write_bytes(content)
    return paths


def answer_volume(rule: Rule, files: Sequence[Path]) -> Answer:
    """Answer as the gateway does, with a mask of which each label is a box."""
    source = dicom_series.decode(zipped([file.read_bytes() for file in files]))
    mask = np.zeros(source.geometry.shape, np.uint8)
    mask[1:4, 1:3, 1:3], mask[5:7, 2:6, 2:4] = 1, 2
    found = Segmentation(mask, source.geometry, LABELS)
    measures = found.to_result().measures
    is_labelmap = Kind.LABELMAP in rule.kinds
    seg = dicom_seg.encode(found, source, CODES, PROVENANCE, is_labelmap=is_labelmap)
    return Answer(PROVENANCE, (SegmentedFile(PROVENANCE, LABELS, measures, seg),))
