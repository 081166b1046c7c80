"""Every transfer syntax that images come in: stored by dcmtk and answered, or refused at once."""

from __future__ import annotations

import io
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import Dataset, dcmread, uid
from pydicom.encaps import encapsulate

from tests.dicom.archive import running_archive, send
from tests.dicom.series import series, write
from tests.dicom.test_node import NodeProcess
from tests.volume_phantoms import as_bytes

pytestmark = pytest.mark.pacs

_SIZE = (64, 48)  # columns, rows
# Of the picture below, lossless, in the order of resolutions (RPCL): by OpenJPH in imagecodecs.
_HTJ2K = Path(__file__).with_name("ramp.j2c")
_PROFILE = """
[[TransferSyntaxes]]
[One]
TransferSyntax1 = {syntax}
[[PresentationContexts]]
[One]
PresentationContext1 = MRImageStorage\\One
[[Profiles]]
[One]
PresentationContexts = One
"""
Encode = Callable[[Path, Path], None]


def by(*command: str) -> Encode:
    """Encode with a program of dcmtk."""

    def encode(source: Path, target: Path) -> None:
        subprocess.run([*command, str(source), str(target)], check=True, capture_output=True)

    return encode


def by_openjpeg(syntax: uid.UID, **options: Any) -> Encode:
    """Encode as JPEG 2000."""

    def encode(source: Path, target: Path) -> None:
        dataset = dcmread(source)
        dataset.compress(
            syntax, encoding_plugin="pylibjpeg", generate_instance_uid=False, **options
        )
        dataset.save_as(target)

    return encode


def as_htj2k(syntax: uid.UID) -> Encode:
    """Put in the coded picture."""

    def encode(source: Path, target: Path) -> None:
        dataset = dcmread(source)
        dataset.PixelData = encapsulate([_HTJ2K.read_bytes()])
        dataset["PixelData"].VR = "OB"
        dataset.file_meta.TransferSyntaxUID = syntax
        dataset.save_as(target)

    return encode


ANSWERED: dict[uid.UID, Encode] = {
    uid.ExplicitVRLittleEndian: by("dcmconv", "+te"),
    uid.ImplicitVRLittleEndian: by("dcmconv", "+ti"),
    uid.RLELossless: by("dcmcrle"),
    uid.JPEGBaseline8Bit: by("dcmcjpeg", "+eb"),
    uid.JPEGLossless: by("dcmcjpeg", "+el"),
    uid.JPEGLosslessSV1: by("dcmcjpeg", "+e1"),
    uid.JPEGLSLossless: by("dcmcjpls", "+el"),
    uid.JPEGLSNearLossless: by("dcmcjpls", "+en"),
    uid.JPEG2000Lossless: by_openjpeg(uid.JPEG2000Lossless),
    uid.JPEG2000: by_openjpeg(uid.JPEG2000, j2k_psnr=[80]),
}
ANSWERED_HTJ2K = {
    each: as_htj2k(each) for each in (uid.HTJ2KLossless, uid.HTJ2KLosslessRPCL, uid.HTJ2K)
}
REFUSED: dict[uid.UID, Encode] = {
    uid.JPEGExtended12Bit: by("dcmcjpeg", "+ee"),
    uid.ExplicitVRBigEndian: by("dcmconv", "+tb"),
    uid.DeflatedExplicitVRLittleEndian: by("dcmconv", "+td"),
}


def _plain(content: bytes, place: int) -> bytes:
    """Return an image of 12 bits without a sign, as each of the encoders takes it."""
    dataset: Dataset = dcmread(io.BytesIO(content))
    rows, columns = np.mgrid[: _SIZE[1], : _SIZE[0]]
    dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 12, 11, 0
    dataset.PixelData = (40 * rows + 17 * columns + place % 2).astype("<u2").tobytes()
    return as_bytes(dataset)


@pytest.fixture
def node(tmp_path: Path) -> Iterator[tuple[NodeProcess, Callable[[], int]]]:
    """Give a node, and how many objects it has sent."""
    for program in ("storescu", "dcmcjpeg"):
        if shutil.which(program) is None:
            pytest.skip(f"needs {program}; apt-get install dcmtk")
    with running_archive() as sink:
        process = NodeProcess(tmp_path, sink.destination)
        process.start()
        yield process, lambda: len(sink.digests)
        process.kill()


def encoded(folder: Path, number: int, syntax: uid.UID, encode: Encode) -> list[Path]:
    """Return the files of one series in a transfer syntax."""
    plain = [_plain(each, place) for place, each in enumerate(series(number, size=_SIZE))]
    files = write(folder / f"{number}", plain)
    for file in files:
        encode(file, file)
        assert dcmread(file).file_meta.TransferSyntaxUID == syntax
    return files


def store(node: NodeProcess, folder: Path, syntax: uid.UID, files: list[Path]) -> tuple[int, str]:
    """Store by dcmtk, which proposes this one syntax; its exit code and what it says."""
    profile = folder / "storescu.cfg"
    profile.write_text(_PROFILE.format(syntax=syntax))
    done = subprocess.run(
        ["storescu", "-v", "-xf", str(profile), "One", "-aec", "NODE", "127.0.0.1",
         str(node.address.port), *map(str, files)],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def test_every_syntax_is_stored_and_answered_or_refused_with_its_reason(
    node: tuple[NodeProcess, Callable[[], int]], tmp_path: Path
) -> None:
    process, sent = node
    for number, (syntax, encode) in enumerate(REFUSED.items(), start=100):
        files = encoded(tmp_path, number, syntax, encode)
        code, said = store(process, tmp_path, syntax, files)
        assert code != 0
        assert "No Acceptable Presentation Contexts" in said, said
    assert process.rows("SELECT count(*) FROM image") == [(0,)]
    for number, (syntax, encode) in enumerate(ANSWERED.items()):
        files = encoded(tmp_path, number, syntax, encode)
        code, said = store(process, tmp_path, syntax, files)
        assert code == 0, (syntax.name, said)
    for number, (syntax, encode) in enumerate(ANSWERED_HTJ2K.items(), start=50):
        files = encoded(tmp_path, number, syntax, encode)
        statuses = send(process.address, [each.read_bytes() for each in files])
        assert statuses == [0] * 5, syntax.name  # dcmtk does not know it
    number = len(ANSWERED) + len(ANSWERED_HTJ2K)
    process.wait(lambda: process.rows("SELECT 1 FROM task WHERE state = 'waiting'") == []
                 and len(process.rows("SELECT 1 FROM task")) == number)  # fmt: skip
    assert process.rows("SELECT DISTINCT state, reason FROM task") == [("answered", "")]
    process.wait(lambda: sent() == 2 * number)


@pytest.mark.parametrize(
    ("syntax", "flag"),
    [(uid.ExplicitVRBigEndian, "-xb"), (uid.DeflatedExplicitVRLittleEndian, "-xd")],
)
def test_a_sender_that_can_choose_another_syntax_does_so(
    node: tuple[NodeProcess, Callable[[], int]], tmp_path: Path, syntax: uid.UID, flag: str
) -> None:
    process, _ = node
    files = encoded(tmp_path, 1, syntax, REFUSED[syntax])
    subprocess.run(
        ["storescu", flag, "-aec", "NODE", "127.0.0.1", str(process.address.port),
         *map(str, files)],
        check=True, timeout=60,
    )  # fmt: skip
    process.wait(lambda: process.rows("SELECT state FROM task") == [("answered",)])
