"""Write simulated patients: frames with masks to train on, or files as a machine exports them.

python -m training.trus_prostate simulate --out-dir DIR --patients 40 --frames 8
python -m training.trus_prostate simulate --out-dir DIR --form raw
"""

from __future__ import annotations

import enum
import io
import logging
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import numpy.typing as npt
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import (
    PYDICOM_ROOT_UID,
    ExplicitVRLittleEndian,
    UltrasoundMultiFrameImageStorage,
    generate_uid,
)
from rich.progress import track

from annotation.manifest import (
    IMAGES,
    MASKS,
    FrameEntry,
    Pseudonyms,
    new_folder,
    write_grey,
    write_manifest,
)
from annotation.thumbnails import write_sheet
from medserve.inference.frame_pipeline import FrameBox
from simulation.simulate import SimulatedFrame, SimulationConfig, draw_patient, simulate_cine
from training.core.config import Setting

__all__ = ["Form", "SimulateConfig", "Target", "cine_dicom", "simulate_set"]

_SHEET = 48  # thumbnails for a person to look over
_THROUGH = 0.9  # share of the length of a lesion that its planes cover

_log = logging.getLogger(__name__)


class Form(enum.StrEnum):
    """What is written."""

    FRAMES = "frames"  # images, masks and manifest, ready to train on
    RAW = "raw"  # one multi-frame DICOM a patient, names burnt in, and the truth beside it


class Target(enum.StrEnum):
    """What the masks show; a set holds one of them, never a mixture."""

    GLAND = "gland"
    LESION = "lesion"


@dataclass(frozen=True)
class SimulateConfig(SimulationConfig):
    """Write frames of simulated patients."""

    out_dir: Annotated[Path, Setting("receives the frames; new or empty")] = Path("data/trus")
    form: Annotated[Form, Setting("frames with masks, or raw files of a machine")] = Form.FRAMES
    target: Annotated[Target, Setting("what the masks show")] = Target.GLAND
    patients: Annotated[int, Setting("how many", minimum=1)] = 40
    frames: Annotated[
        int, Setting("of each, from base to apex, or through its lesion", minimum=1)
    ] = 8
    seed: Annotated[int, Setting("of the first patient; the next has the next", minimum=0)] = 0
    processes: Annotated[int, Setting("that work side by side", minimum=1)] = 1


def simulate_set(config: SimulateConfig) -> None:
    """Write all patients, or nothing."""
    seeds = range(config.seed, config.seed + config.patients)
    with new_folder(config.out_dir) as folder:
        write = _write_frames if config.form is Form.FRAMES else _write_raw
        jobs = [(config, seed, folder) for seed in seeds]
        if config.processes == 1:
            done = [write(job) for job in track(jobs, "simulating")]
        else:
            with ProcessPoolExecutor(config.processes) as pool:
                done = list(track(pool.map(write, jobs), "simulating", total=len(jobs)))
        entries = [entry for each in done for entry in each]
        if entries:
            write_manifest(folder, entries)
            write_sheet(folder / "sheet.png", folder, entries, _SHEET)
    _log.info("wrote %d patients with %d frames each", config.patients, config.frames)


_Job = tuple[SimulateConfig, int, Path]


def _planes(seed: int, config: SimulateConfig) -> list[SimulatedFrame]:
    """The frames of one patient: the whole gland, or planes through the lesion.

    A lesion is a quarter of the gland's length: of planes from base to apex few would show it, and
    a network that never finds anything would be right nearly always.
    """
    lesion = draw_patient(seed, config).anatomy.lesion
    if config.target is Target.GLAND or lesion is None:
        return simulate_cine(seed, config.frames, config)
    step_mm = 2 * _THROUGH * lesion.half_mm[2] / max(config.frames - 1, 1)
    return simulate_cine(seed, config.frames, config, step_mm, lesion.centre_mm[2])


def _write_frames(job: _Job) -> list[FrameEntry]:
    config, seed, folder = job
    pseudonyms = Pseudonyms(b"simulated patients are nobody")
    entries = []
    for number, frame in enumerate(_planes(seed, config)):
        patient = pseudonyms.patient(str(seed))
        name = f"{patient}_{number:04d}.png"
        digest = write_grey(folder / IMAGES / name, frame.image)
        write_grey(folder / MASKS / name, _mask(frame, config.target))
        height, width = frame.image.shape
        spacing_mm = (frame.spacing_mm, frame.spacing_mm)
        source, whole = pseudonyms.source(str(seed).encode()), FrameBox(0, 0, height, width)
        entry = FrameEntry(
            name, patient, source, number, height, width, whole, spacing_mm, 0, digest
        )
        entries.append(entry)
    return entries


def _write_raw(job: _Job) -> list[FrameEntry]:
    """`raw/NNNN.dcm` as from a machine; `truth/NNNN/FFFF.png` for who plays the annotator."""
    config, seed, folder = job
    cine = _planes(seed, config)
    (folder / "raw").mkdir(exist_ok=True)
    (folder / "raw" / f"{seed:04d}.dcm").write_bytes(cine_dicom(cine))
    for number, frame in enumerate(cine):
        path = folder / "truth" / f"{seed:04d}" / f"{number:04d}.png"
        write_grey(path, _mask(frame, config.target))
    return []


def _mask(frame: SimulatedFrame, target: Target) -> npt.NDArray[np.uint8]:
    inside = frame.gland if target is Target.GLAND else frame.lesion
    return np.where(inside, np.uint8(255), np.uint8(0))


def cine_dicom(cine: Sequence[SimulatedFrame]) -> bytes:
    """A cine loop as an Ultrasound Multi-frame Image (PS3.3 A.7), names and spacing included."""
    first, count = cine[0], len(cine)
    height, width = first.image.shape
    uid = generate_uid(PYDICOM_ROOT_UID, [f"simulated ultrasound {first.seed} {count}"])
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = UltrasoundMultiFrameImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = uid
    dataset.SOPClassUID, dataset.SOPInstanceUID = UltrasoundMultiFrameImageStorage, uid
    dataset.PatientName, dataset.PatientID = first.name, first.name.split(" ")[-1]
    dataset.Modality, dataset.BodyPartExamined = "US", "PROSTATE"
    dataset.StudyDescription = "SIMULATED, of nobody"
    dataset.Rows, dataset.Columns, dataset.NumberOfFrames = height, width, count
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit, dataset.PixelRepresentation = 7, 0
    dataset.FrameTime = 50.0  # ms
    dataset.BurnedInAnnotation = "YES"
    region = Dataset()  # PS3.3 C.8.5.5
    region.RegionSpatialFormat, region.RegionDataType, region.RegionFlags = 1, 1, 0
    region.RegionLocationMinX0, region.RegionLocationMinY0 = 0, 0
    region.RegionLocationMaxX1, region.RegionLocationMaxY1 = width - 1, height - 1
    region.PhysicalUnitsXDirection = region.PhysicalUnitsYDirection = 3  # cm
    region.PhysicalDeltaX = region.PhysicalDeltaY = first.spacing_mm / 10
    dataset.SequenceOfUltrasoundRegions = [region]
    dataset.PixelData = np.stack([frame.image for frame in cine]).tobytes()
    if len(dataset.PixelData) % 2:  # PS3.5 section 8.1.1
        dataset.PixelData += b"\0"
    stream = io.BytesIO()
    dataset.save_as(stream, enforce_file_format=True)
    return stream.getvalue()
