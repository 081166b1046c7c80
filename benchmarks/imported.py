"""What serving a model of nnU-Net costs: against nnU-Net's own predictor, and in memory.

    python -m benchmarks.imported [--patch 96,96,96] [--shape 144,128,120] [--rounds 3]

A folder as nnU-Net leaves it after training, with seeded weights, is imported and served. Measured:

- CPU time of a volume that is served, Java and gateway included, over that of nnUNetPredictor on a
  CPU for the same file; the two take turns, and the first of each side does not count;
- the same of the first volume: of a server that has started, and of a process of nnU-Net from its
  start to the mask, which imports its libraries and reads the weights;
- how many voxels of the two masks are equal;
- the memory that is predicted for the volume over what a process of its own took for it.

Mirror images are off: they multiply both sides alike. The comparison needs nnunetv2, see
`tests/importing/requirements.txt`.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib import import_module
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

from benchmarks.archives import unpack, with_setting
from benchmarks.gateway import PATIENT, gateway_before
from benchmarks.machine import describe_machine
from benchmarks.processes import family_usage
from benchmarks.ratios import Spread
from medserve.client import Client, Limits
from medserve.cores import available_cores
from medserve.engine.torchserve.lifecycle import Server, ServerConfig
from medserve.imaging.codecs import nifti
from medserve.importing.measure import peak_bytes
from medserve.importing.nnunet import read_folder
from medserve.importing.package import import_model
from medserve.inference import volume_memory
from medserve.inference.engines import load_engine
from medserve.inference.volume_pipeline import VolumePipeline
from medserve.spec import ModelSpec
from tests.importing.nnunet_folders import TrainedCase, write_case, write_folder

__all__ = ["Options", "Results", "main", "run"]

_NAME = "imported"
_MIB = 2**20
_CALL_TIMEOUT_S = 3600.0
_MESSAGE_BYTES = 128 * _MIB


@dataclass(frozen=True)
class Options:
    """What the flags say."""

    patch: tuple[int, ...] = (96, 96, 96)
    shape: tuple[int, ...] = (144, 128, 120)  # voxels of 1 mm; the network sees voxels of 1.2 mm
    features: tuple[int, ...] = (16, 32, 64, 128)
    rounds: int = 3
    out: Path = Path("outputs/imported.json")


@dataclass(frozen=True)
class Results:
    """Everything that was measured.

    Attributes:
        first_cpu_s: Of the first volume of a running server.
        own_first_cpu_s: Of a process of the other tool, from its start to its first mask.
        cpu_ratio: A served volume over the other tool's, by round.
        served_cpu_s: Of one volume, in all processes of the server.
        own_cpu_s: Of the same one in the other tool, which is loaded already.
        equal_share: Of voxels with the same label.
        predicted_mib: For the volume, by the archive's own description.
        measured_mib: By how much the volume raised the peak of a process that holds the network.
        load1: Of the machine.
    """

    first_cpu_s: float
    own_first_cpu_s: float
    cpu_ratio: Spread
    served_cpu_s: Spread
    own_cpu_s: Spread
    equal_share: float
    predicted_mib: float
    measured_mib: float
    load1: Spread

    @property
    def memory_ratio(self) -> float:
        """Predicted over measured."""
        return self.predicted_mib / self.measured_mib


def run(options: Options, console: Console) -> Results:
    """Measure everything."""
    side = (options.shape[0], options.shape[1], options.shape[2])
    case = TrainedCase(
        side, (1.0, 1.0, 1.0), (1.2, 1.2, 1.2), options.patch, features=options.features
    )
    with tempfile.TemporaryDirectory(prefix="medserve-imported-") as scratch:
        root = Path(scratch)
        trained = write_folder(root / "trained", case)
        [file] = write_case(root / "case", case)
        built = import_model(read_folder(trained, _NAME), root / "built").archive
        # A worker that is slow because of its neighbours is not to be killed for it.
        (root / "store").mkdir()
        archive = with_setting(built, root / "store" / built.name, "responseTimeout", 3600)
        console.print("imported; measuring the memory")
        unpacked = unpack(archive, root / "archive")
        predicted, measured = _memory(unpacked, file)
        console.print("comparing with nnU-Net")
        with _other_tool(trained, file) as theirs, _served(archive.parent, file) as ours:
            first, mask = ours()
            own_first, own_mask = theirs()
            equal = float(np.mean(mask == own_mask))
            pairs, load = [], []
            for _ in range(options.rounds):
                load.append(os.getloadavg()[0])
                pairs.append((ours()[0], theirs()[0]))
    return Results(
        first_cpu_s=first,
        own_first_cpu_s=own_first,
        cpu_ratio=Spread.of([served / own for served, own in pairs]),
        served_cpu_s=Spread.of([served for served, _ in pairs]),
        own_cpu_s=Spread.of([own for _, own in pairs]),
        equal_share=equal,
        predicted_mib=predicted / _MIB,
        measured_mib=measured / _MIB,
        load1=Spread.of(load),
    )


_Asked = Callable[[], tuple[float, npt.NDArray[np.uint8]]]  # CPU seconds and mask (i, j, k)


@contextmanager
def _served(store: Path, file: Path) -> Iterator[_Asked]:
    """Serve the archive with one worker on all cores."""
    config = ServerConfig(store=store, workers=1, max_message_bytes=_MESSAGE_BYTES)
    limits = Limits(message_bytes=_MESSAGE_BYTES)
    with (
        Server(config) as server,
        gateway_before(server, *PATIENT) as (address, gateway),
        Client(address, timeout_s=_CALL_TIMEOUT_S, limits=limits) as client,
    ):
        client.wait_ready()

        def used() -> float:
            return family_usage(server.pid or 0).cpu_s + family_usage(gateway).cpu_s

        def ask() -> tuple[float, npt.NDArray[np.uint8]]:
            before = used()
            mask = nifti.decode(client.predict(_NAME, file)).array
            return used() - before, mask.astype(np.uint8)

        yield ask


@contextmanager
def _other_tool(trained: Path, file: Path) -> Iterator[_Asked]:
    """Hold nnUNetPredictor, loaded, in a process of its own."""
    context = get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_predict_on_demand, args=(there, trained, file))
    process.start()
    there.close()

    def ask() -> tuple[float, npt.NDArray[np.uint8]]:
        here.send(True)
        found: tuple[float, npt.NDArray[np.uint8]] = here.recv()
        return found

    try:
        yield ask
    finally:
        here.close()  # its process then ends
        process.join()


def _predict_on_demand(asked: Connection, trained: Path, file: Path) -> None:
    """Answer each message with CPU seconds and mask, from the file to the mask on its grid."""
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        os.environ.setdefault(variable, str(trained))
    import torch

    readers: Any = import_module("nnunetv2.imageio.simpleitk_reader_writer")
    inference: Any = import_module("nnunetv2.inference.predict_from_raw_data")
    torch.set_num_threads(available_cores())
    predictor = inference.nnUNetPredictor(
        perform_everything_on_device=False, device=torch.device("cpu"), allow_tqdm=False
    )
    predictor.initialize_from_trained_model_folder(str(trained), ("0",))
    started = 0.0  # the first time counts from the start of this process
    while True:
        try:
            asked.recv()
        except EOFError:
            return
        image, properties = readers.SimpleITKIO().read_images([str(file)])
        mask = predictor.predict_single_npy_array(image, properties, None, None, False)
        asked.send((time.process_time() - started, mask.transpose(2, 1, 0).astype(np.uint8)))
        started = time.process_time()


def _memory(unpacked: Path, file: Path) -> tuple[int, int]:
    """Return the predicted and the measured memory of a volume, in bytes."""
    context = get_context("spawn")
    with context.Pool(1) as pool:
        measured = pool.apply(_raised_peak, (unpacked, file))
    spec = ModelSpec.from_file(unpacked / "model-config.yaml")
    volume = nifti.decode(file.read_bytes())
    settings = VolumePipeline(spec).defaults()
    predicted = volume_memory.peak_bytes(
        spec, volume.geometry, volume.array.dtype.itemsize, settings
    )
    return predicted, measured


def _raised_peak(unpacked: Path, file: Path) -> int:
    """Return by how much a volume raises the peak of a process that has loaded the network."""
    spec = ModelSpec.from_file(unpacked / "model-config.yaml")
    pipeline = VolumePipeline(spec)
    engine = load_engine(spec.engine.name, unpacked, threads=available_cores())
    before = peak_bytes()
    prepared = pipeline.prepare(nifti.decode(file.read_bytes()))
    found = pipeline.segment(prepared, lambda windows: engine.run(windows)["logits"])
    found.segmentation.to_nifti(None)
    return peak_bytes() - before


def _show(results: Results, console: Console) -> None:
    table = Table("what", "target", "median [least most]", title="imported", title_justify="left")
    first, own = results.first_cpu_s, results.own_first_cpu_s
    told = f"{first / own:.2f} ({first:.1f} s, {own:.1f} s)"
    table.add_row("CPU time of the first volume, served over nnU-Net's", "<= 0.2", told)
    table.add_row("CPU time, served over nnU-Net's", "<= 0.7", results.cpu_ratio.format(2))
    table.add_row("served, CPU s a volume", "", results.served_cpu_s.format(1))
    table.add_row("nnUNetPredictor, CPU s a volume", "", results.own_cpu_s.format(1))
    table.add_row("voxels with the same label", ">= 0.9999", f"{results.equal_share:.6f}")
    table.add_row("memory, predicted over measured", "0.8 to 1.2", f"{results.memory_ratio:.2f}")
    table.add_row("predicted, MiB", "", f"{results.predicted_mib:.0f}")
    table.add_row("measured, MiB", "", f"{results.measured_mib:.0f}")
    table.add_row("load of the machine", "", results.load1.format(1))
    console.print(table)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print a table and write a JSON file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--patch", type=_numbers, default=Options.patch, help="nnU-Net's axes")
    parser.add_argument("--shape", type=_numbers, default=Options.shape, help="voxels I,J,K")
    parser.add_argument("--features", type=_numbers, default=Options.features, help="of each stage")
    parser.add_argument("--rounds", type=int, default=Options.rounds)
    parser.add_argument("--out", type=Path, default=Options.out)
    options = Options(**vars(parser.parse_args(arguments)))
    console = Console()
    results = run(options, console)
    _show(results, console)
    content = {
        "format": 1,
        "machine": describe_machine(),
        "options": {**asdict(options), "out": None},
        "results": asdict(results),
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


if __name__ == "__main__":
    main()
