"""Every DICOM file of pydicom, pydicom-data, highdicom and nibabel: dcmtk's pixels, or refused.

GDCM takes the place of dcmtk where that does not read a file.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image as pillow
from pydicom.dataset import Dataset
from pydicom.uid import AllTransferSyntaxes, JPEGExtended12Bit

from medserve.errors import InvalidImageError
from medserve.imaging.codecs import dicom, dicom_file, dicom_pixels
from medserve.imaging.codecs.dicom_pixels import group, values_of
from medserve.imaging.codecs.payload import quietly
from medserve.spec import InputKind, InputSpec

LIMITS = InputSpec(kinds=(InputKind.DICOM,), size=(64, 64), min_side=1)
REASONS = (
    "without pixel data",
    "12 bits, for which there is no decoder",
    "do not begin as one",  # no preamble
    "photometric interpretation",
    "states its transfer syntax",
)
# Files that their makers damaged on purpose: cut, a frame count of "1A", a codestream that a
# delimiter overwrites.
DAMAGED = {
    "MR_truncated.dcm", "badVR.dcm", "JPEG2000-embedded-sequence-delimiter.dcm",
}  # fmt: skip
# dcmtk exchanges the words of 32-bit pixels in big-endian files; their little-endian twins agree.
# It does not read 32-bit colours; files of the same picture with 16 bits do.
TWINS = {
    "rtdose_expb.dcm": "rtdose.dcm",
    "rtdose_expb_1frame.dcm": "rtdose_1frame.dcm",
    "SC_rgb_32bit.dcm": "SC_rgb_16bit.dcm",
    "SC_rgb_32bit_2frame.dcm": "SC_rgb_16bit_2frame.dcm",
    "SC_rgb_expb_32bit.dcm": "SC_rgb_expb_16bit.dcm",
    "SC_rgb_expb_32bit_2frame.dcm": "SC_rgb_expb_16bit_2frame.dcm",
}
# Palettes in segments (PS3.3 C.7.9.2), which dcmtk does not read.
OF_GDCM = {"gdcm-US-ALOKA-16.dcm", "gdcm-US-ALOKA-16_big.dcm"}
# A JPEG without items around it, which dcmtk does not read; its twin has the same picture.
BARE = {"SC_rgb_jpeg.dcm": "SC_rgb_jpeg_app14_dcmd.dcm"}
PACKAGES = ("pydicom", "data_store", "highdicom", "nibabel")  # data_store is pydicom-data's
_TOOLS = {"JPEG 2000": "dcm2pnm", "JPEG-LS": "dcml2pnm", "JPEG": "dcmj2pnm"}


def corpus() -> list[Path]:
    found = []
    for package in PACKAGES:
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            continue  # told by a test of its own
        for path in sorted(Path(spec.origin).parent.rglob("*")):
            if path.is_file() and (path.suffix == ".dcm" or _begins_as_dicom(path)):
                found.append(path)
    return found


def _begins_as_dicom(path: Path) -> bool:
    with path.open("rb") as file:
        return dicom_file.is_dicom(file.read(132))


def rendered(path: Path, dataset: Dataset, options: list[str], folder: Path) -> npt.NDArray[Any]:
    """The first frame as dcmtk shows it, 0 to 255; JPEG 2000 is unpacked by GDCM before."""
    name = dicom_file.syntax_of(dataset).name  # type: ignore[union-attr]
    tool = next((tool for kind, tool in _TOOLS.items() if name.startswith(kind)), "dcm2pnm")
    if shutil.which(tool) is None:
        pytest.skip(f"{tool} (Debian dcmtk) is not installed")
    if name.startswith("JPEG 2000"):
        path = _unpacked(path, folder)
    target = folder / "shown.ppm"
    command = [tool, "--write-raw-pnm", "-O", "+F", "1", *options, str(path), str(target)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if not target.exists():
        pytest.fail(f"{tool} shows nothing: {done.stderr.strip()[-200:]}")
    return np.asarray(pillow.open(target))


def _unpacked(path: Path, folder: Path) -> Path:
    gdcm: Any = pytest.importorskip("gdcm")
    reader, change, writer = (
        gdcm.ImageReader(),
        gdcm.ImageChangeTransferSyntax(),
        gdcm.ImageWriter(),
    )
    reader.SetFileName(str(path))
    assert reader.Read()
    change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.ExplicitVRLittleEndian))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer.SetFileName(str(folder / "raw.dcm"))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()
    return folder / "raw.dcm"


def _shown_by_gdcm(path: Path, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    gdcm: Any = pytest.importorskip("gdcm")
    reader, lookup = gdcm.ImageReader(), gdcm.ImageApplyLookupTable()
    reader.SetFileName(str(path))
    assert reader.Read()
    lookup.SetInput(reader.GetImage())
    assert lookup.Apply()
    words = lookup.GetOutput().GetBuffer().encode("utf-8", "surrogateescape")
    return np.frombuffer(words, np.uint16).reshape(shape) / 65535 * 255


def ours(dataset: Dataset) -> tuple[npt.NDArray[np.float32], list[str]]:
    """The first frame, 0 to 255, and the options by which dcmtk shows the same."""
    image = dicom.frame_image(dataset, 0).array
    if image.ndim == 3:
        return image * 255, []
    voi = group(dataset, 0, "FrameVOILUTSequence", "WindowCenter")
    if voi is not dataset and voi.get("WindowCenter") not in (None, ""):  # dcmtk looks elsewhere
        return image * 255, ["+Ww", str(voi.WindowCenter), str(voi.WindowWidth)]
    if voi.get("WindowCenter") not in (None, ""):
        return image * 255, ["+Wi", "1"]
    if group(dataset, 0, "FrameVOILUTSequence", "VOILUTSequence").get("VOILUTSequence"):
        return image * 255, ["+Wl", "1"]
    values = values_of(dataset, 0)  # no window: the whole range, on both sides
    array = values.array.astype(np.float64)
    array = -array if dataset.PhotometricInterpretation == "MONOCHROME1" else array
    counted = array if values.background is None else array[~values.background]
    low, high = float(counted.min()), float(counted.max())
    spread = np.clip((array - low) / max(high - low, 1e-9), 0, 1) * 255
    return np.where(True if values.background is None else ~values.background, spread, 0), ["+Wm"]


def test_every_package_with_files_is_there() -> None:
    missing = [each for each in PACKAGES if importlib.util.find_spec(each) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} is missing: pip install pydicom-data")
    assert len(corpus()) > 160


@pytest.mark.process
@pytest.mark.parametrize("path", corpus(), ids=lambda path: f"{path.parent.name}-{path.name}")
def test_a_public_file_shows_the_pixels_that_dcmtk_shows_or_is_refused_by_a_known_reason(
    path: Path, tmp_path: Path
) -> None:
    with quietly():
        try:
            dataset = dicom.read(path.read_bytes())
            dicom.check(dataset, LIMITS)
            image, options = ours(dataset)
        except InvalidImageError as error:
            if path.name not in DAMAGED and not re.search("|".join(REASONS), str(error)):
                raise
            return
    if path.name in TWINS:
        twin = ours(dicom.read((path.parent / TWINS[path.name]).read_bytes()))[0]
        np.testing.assert_allclose(image, twin, atol=1e-4)
        return
    if path.name in OF_GDCM:
        np.testing.assert_allclose(image, _shown_by_gdcm(path, image.shape), atol=1e-4)
        return
    if path.name in BARE:
        shown = ours(dicom.read((path.parent / BARE[path.name]).read_bytes()))[0]
    else:
        shown = rendered(path, dataset, options, tmp_path)
    if shown.ndim == 3 and image.ndim == 2:
        shown = shown[..., 0]
    off = np.abs(image - shown)
    lossy = "Lossless" not in (name := dicom_file.syntax_of(dataset).name) and "JPEG" in name  # type: ignore[union-attr]
    # Decoders of lossy JPEG differ in how they round and where they put shared colours.
    exact = 2.0 if str(dataset.PhotometricInterpretation).startswith("YBR") else 1.6
    assert np.percentile(off, 95 if lossy else 100) <= (8 if lossy else exact)


def table() -> str:
    """The transfer syntaxes of images, and whether they are read."""
    rows = ["| transfer syntax | UID | read |", "|---|---|---|"]
    for syntax in AllTransferSyntaxes:
        if re.search("MPEG|HEVC|SMPTE|JPIP|Encapsulated|XML|Papyrus", syntax.name):
            continue
        try:
            dicom_pixels.check_syntax(syntax)
            answer = (
                "yes; of 12 bits with the extra `jpeg12`" if syntax == JPEGExtended12Bit else "yes"
            )
        except InvalidImageError:
            answer = "no"
        rows.append(f"| {syntax.name} | `{syntax}` | {answer} |")
    return "\n".join(rows) + "\n"


def test_the_documented_transfer_syntaxes_are_those_that_are_read() -> None:
    pytest.importorskip("gdcm", reason="needs the serve extra")
    pytest.importorskip("openjpeg", reason="needs the serve extra")
    assert table() in (Path(__file__).parents[2] / "docs/use/images.md").read_text()
