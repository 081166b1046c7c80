"""How fast a DICOM node receives while its model computes, and what memory it takes.

    python -m benchmarks.dicom --images 2000 --senders 4

One series keeps the model busy; meanwhile dcmtk's storescu sends others, whose images are
acknowledged when they are on the disk. Node, gateway, TorchServe and senders share the cores.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import psutil
from pydicom import Dataset, uid
from pydicom.dataset import FileMetaDataset
from rich.console import Console

from benchmarks.archives import build_or_take
from benchmarks.gateway import gateway_before
from benchmarks.machine import describe_machine
from benchmarks.processes import end_family
from medserve.engine.torchserve.lifecycle import Server, ServerConfig

__all__ = ["Options", "main"]

_ROOT = Path(__file__).parent.parent
_START_S = 120.0
_MIB = 2**20
_LEAST_PER_S, _MOST_MIB = 50.0, 200.0
_SLICES = 100  # of each series
_RULES = """
[[rule]]
name = "all"
model = "{model}"
task = "volumes"
modality = ["MR"]
quiet_s = 1
"""


@dataclass(frozen=True)
class Options:
    """What the flags say."""

    images: int = 2000
    senders: int = 4
    side: int = 256  # pixels of an image, 16 bits each
    model: str = "segmentation_3d"
    archive: Path | None = None
    out: Path = Path("outputs/bench-dicom.json")


@dataclass(frozen=True)
class Measured:
    """What was found.

    Attributes:
        peak_mib: Of the node until the last image was acknowledged.
    """

    images_per_s: float
    mib_per_s: float
    seconds: float
    started_mib: float
    peak_mib: float


def measure(options: Options, folder: Path) -> Measured:
    """Send one series, and the others while it is worked on."""
    busy = _write_series(folder / "busy", 0, options.side)
    number = max(1, options.images // _SLICES)
    others = [
        _write_series(folder / f"{each}", each, options.side) for each in range(1, number + 1)
    ]
    with _node(options, folder) as (process, port, metrics):
        _wait(lambda: _metric(metrics, 'tasks{state="waiting"}') == 0.0)
        _store(port, [busy])
        _wait(lambda: _metric(metrics, 'tasks{state="waiting"}') == 1.0)
        started = process.memory_info().rss
        began = time.perf_counter()
        senders = [
            subprocess.Popen(_command(port, others[start :: options.senders]))
            for start in range(options.senders)
            if others[start :: options.senders]
        ]
        peak = started
        while any(each.poll() is None for each in senders):
            peak = max(peak, process.memory_info().rss)
            time.sleep(0.05)
        took_s = time.perf_counter() - began
        if any(each.returncode for each in senders):
            raise SystemExit("expected every image to be taken, some were not")
        if _metric(metrics, 'tasks{state="answered"}') > 0:
            raise SystemExit("the model was done before the images had come; take larger images")
    sent = number * _SLICES
    size = sum(file.stat().st_size for each in others for file in each.iterdir())
    return Measured(
        round(sent / took_s, 1), round(size / _MIB / took_s, 1), round(took_s, 1),
        round(started / _MIB), round(peak / _MIB),
    )  # fmt: skip


@contextlib.contextmanager
def _node(options: Options, folder: Path) -> Iterator[tuple[psutil.Process, str, str]]:
    """TorchServe, gateway and node: the node's process, its DICOM port, its metrics' address."""
    archive = build_or_take(options.archive, options.model, folder)
    rules, ready = folder / "rules.toml", folder / "node.json"
    rules.write_text(_RULES.format(model=options.model), encoding="utf-8")
    config = ServerConfig(store=archive.parent, models=(options.model,))
    with Server(config) as server, contextlib.ExitStack() as stack:
        uploads = f"--upload-dir={server.upload_dir}"
        address, _ = stack.enter_context(gateway_before(server, uploads))
        command = [sys.executable, "-m", "medserve.cli.main", "dicom", "serve", str(rules)]
        command += [f"--state={folder / 'state'}", "--port=0", "--metrics=127.0.0.1:0"]
        command += ["--destination=NOBODY@127.0.0.1:9", f"--address={address}"]
        command += [f"--ready-file={ready}", "--log-level=error", "--free-percent=0"]
        process = subprocess.Popen(command, cwd=_ROOT, stdout=subprocess.DEVNULL)
        stack.callback(process.wait)
        stack.callback(end_family, process.pid)
        _wait(ready.exists)
        addresses = json.loads(ready.read_text(encoding="utf-8"))
        yield (
            psutil.Process(process.pid),
            addresses["dicom"].rpartition(":")[2],
            addresses["metrics"],
        )


def _write_series(folder: Path, number: int, side: int) -> Path:
    """Write an MR series of noise, which no sender makes smaller."""
    folder.mkdir()
    generator = np.random.default_rng(number)
    study, series, frame = (uid.generate_uid() for _ in range(3))
    for place in range(_SLICES):
        image = Dataset()
        image.PatientName, image.PatientID, image.PatientBirthDate = "Bench", f"{number}", ""
        image.PatientSex = image.StudyDate = image.StudyTime = image.AccessionNumber = ""
        image.StudyID, image.SeriesNumber, image.InstanceNumber = "1", 1, place + 1
        image.ReferringPhysicianName = image.Manufacturer = image.PositionReferenceIndicator = ""
        image.StudyInstanceUID, image.SeriesInstanceUID = study, series
        image.FrameOfReferenceUID, image.SOPInstanceUID = frame, uid.generate_uid()
        image.Modality, image.SOPClassUID = "MR", uid.MRImageStorage
        image.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        image.ImagePositionPatient = [0, 0, place]
        image.PixelSpacing, image.SliceThickness = [1, 1], 1
        image.Rows = image.Columns = side
        image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
        image.BitsAllocated = image.BitsStored = 16
        image.HighBit, image.PixelRepresentation = 15, 0
        image.PixelData = generator.integers(0, 4096, (side, side), dtype=np.uint16).tobytes()
        image.file_meta = FileMetaDataset()
        image.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
        image.file_meta.MediaStorageSOPClassUID = image.SOPClassUID
        image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
        image.save_as(folder / f"{place:03d}.dcm", enforce_file_format=True)
    return folder


def _command(port: str, folders: Sequence[Path]) -> list[str]:
    return ["storescu", "-aec", "MEDSERVE", "+sd", "127.0.0.1", port, *map(str, folders)]


def _store(port: str, folders: Sequence[Path]) -> None:
    subprocess.run(_command(port, folders), check=True)


def _metric(address: str, name: str) -> float:
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=30) as answer:
        for line in answer.read().decode().splitlines():
            if line.startswith(f"medserve_dicom_{name} "):
                return float(line.rpartition(" ")[2])
    return 0.0


def _wait(done: Callable[[], bool]) -> None:
    end = time.monotonic() + _START_S
    while not done():
        if time.monotonic() > end:
            raise SystemExit("the servers did not come so far in time")
        time.sleep(0.1)


def _parse(arguments: Sequence[str] | None) -> Options:
    default = Options()
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.dicom",
        description=(__doc__ or "").splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    for name in ("images", "senders", "side"):
        parser.add_argument(f"--{name}", type=int, default=getattr(default, name), help="number")
    parser.add_argument("--model", default=default.model, help="the room")
    parser.add_argument("--archive", type=Path, help="a .mar; built from the room if none is given")
    parser.add_argument("--out", type=Path, default=default.out, help="JSON file")
    return Options(**vars(parser.parse_args(arguments)))


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and write the JSON file."""
    options = _parse(arguments)
    if shutil.which("storescu") is None:
        raise SystemExit("expected dcmtk's storescu; apt-get install dcmtk")
    console = Console()
    with tempfile.TemporaryDirectory(prefix="medserve-bench-") as folder:
        found = measure(options, Path(folder))
    for name, value in asdict(found).items():
        console.print(f"{name}: {value}", highlight=False)
    fast, small = found.images_per_s >= _LEAST_PER_S, found.peak_mib <= _MOST_MIB
    console.print(f"50 images/s: {'met' if fast else 'missed'}", highlight=False)
    console.print(f"200 MiB: {'met' if small else 'missed'}", highlight=False)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    asked = {name: getattr(options, name) for name in ("images", "senders", "side", "model")}
    content = {"machine": describe_machine(), "settings": asked, "found": asdict(found)}
    options.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    console.print(f"written to {options.out}", highlight=False)


if __name__ == "__main__":
    main()
