"""From a model that was read to the archive that serves it, proven equal on the way."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import yaml
from msgspec import structs

from medserve.archive.build import archive_path, carried_code, pack_archive
from medserve.archive.read import CARD
from medserve.cores import available_cores
from medserve.errors import ArchiveError, ConfigError
from medserve.imaging.geometry import Geometry
from medserve.importing import golden, report
from medserve.importing.artifacts import write_onnx, write_torchscript
from medserve.importing.measure import network_bytes
from medserve.importing.source import Source
from medserve.inference import volume_memory
from medserve.inference.engines import load_engine
from medserve.inference.engines.engine import ONNX_FILE, TORCHSCRIPT_FILE
from medserve.inference.sliding_window import Predict
from medserve.inference.volume_pipeline import VolumePipeline
from medserve.results.segmentation import Segmentation
from medserve.spec import EngineName, ModelSpec
from medserve.spec.volumes import ScoreKind

__all__ = [
    "LEAST_AGREEMENT",
    "Agreement",
    "Content",
    "Imported",
    "Named",
    "chosen",
    "export",
    "import_model",
    "reference",
    "tolerance_of",
    "write_archive",
]

LEAST_AGREEMENT = 0.9999  # share of voxels with the same label
_LEAST_TOLERANCE = 1e-3  # of a logit, absolute
_TOLERANCE = 1e-3  # of the range of the logits
_GROWTH = 2.0  # a volume twice as long along each axis as a usual one is still answered
_LEAST_MEMORY = 2 * 2**30
_MAX_FILE_BYTES = 2**31 - 2**20  # of one ONNX file
_ROUND = 2**20
_ROUNDING = 1e-3  # of probabilities
_BOUNDLESS = 2**62  # no limit, to ask what a volume would take

_HANDLER = '''"""{title}"""

from handlers.{module} import {base}


class ImportedHandler({base}):
    """Everything stands in the model's configuration."""
'''


@dataclass(frozen=True)
class Agreement:
    """How far one engine is from the network as it was read, on the golden volume or pictures.

    Attributes:
        engine: Which.
        largest: Difference of a score, absolute.
        share: Of voxels or pictures with the same label, of labels that are present alike, or of
            numbers within the tolerance.
        seconds: For all of them, of wall time.
        holds: Whether the engine may serve the model.
    """

    engine: EngineName
    largest: float
    share: float
    seconds: float
    holds: bool


@dataclass(frozen=True)
class Imported:
    """What became of a model.

    Attributes:
        archive: The `.mar` file.
        report: What was compared, as HTML, beside it.
        engine: What is to execute it.
        agreements: Of all engines.
        peak_bytes: Predicted for a usual volume of the model; 0 of a classifier.
    """

    archive: Path
    report: Path
    engine: EngineName
    agreements: tuple[Agreement, ...]
    peak_bytes: int = 0


@dataclass(frozen=True, eq=False)
class Content:
    """What an archive holds beside its network and the code of its handler.

    Attributes:
        base: Module and class of the handler.
        config: The content of `model-config.yaml`.
        card: The model card.
        golden: Name and bytes of the golden input.
        logits: The first output for it, one row.
        tolerance: Largest difference to it; one number, or one for each output.
        figures: The content of `metrics.json`.
    """

    base: tuple[str, str]
    config: Mapping[str, Any]
    card: str
    golden: tuple[str, bytes] = field(repr=False)
    logits: npt.NDArray[np.float32] = field(repr=False)
    tolerance: npt.ArrayLike
    figures: Mapping[str, float]


@dataclass(frozen=True, eq=False)
class _Proof:
    """The golden volume, what the network says of it, and within which bounds."""

    volume: golden.GoldenVolume
    window: npt.NDArray[np.float32] = field(repr=False)
    logits: npt.NDArray[np.float32] = field(repr=False)
    segmentation: Segmentation
    seconds: float
    tolerance: float


def import_model(
    source: Source,
    store: Path,
    version: str = "1.0",
    example: Sequence[Path] = (),
    progress: Callable[[str], None] = lambda step: None,
) -> Imported:
    """Export, compare, describe and pack a model.

    Args:
        source: The model as it was read.
        store: Where the archive goes; a file of its name there is replaced.
        version: Of the archive.
        example: Files of one case, which become the golden input: they travel in the archive.
        progress: Told what is being done.

    Raises:
        ArchiveError: no engine answers as the network that was read.
        ConfigError: the description contradicts the network.
    """
    spec = ModelSpec.from_mapping(source.config(version, EngineName.ONNXRUNTIME))
    with tempfile.TemporaryDirectory(prefix="medserve-import-") as temporary:
        folder = Path(temporary)
        progress("computing the golden answer with the network as it was read")
        proof = _prove(source, spec, example, reference(source.network, folder))
        progress("writing what engines execute")
        engines = export(source.network, proof.window, folder)
        agreements = []
        for engine in engines:
            progress(f"comparing {engine}")
            agreements.append(_compare(engine, folder, spec, proof))
        engine = chosen(agreements, "voxels")
        progress(f"measuring the memory of {engine}")
        assert spec.volume is not None
        shape = (spec.volume.window_batch, source.channels, *source.size)
        config = _with_memory(source, version, engine, network_bytes(folder, engine, shape))
        spec = ModelSpec.from_mapping(config)
        progress("packing the archive")
        archive = _pack(source, spec, config, proof, agreements, folder, store)
    written = archive_path(spec, store).with_suffix(".report.html")
    outcome = Imported(archive, written, engine, tuple(agreements), _usual_peak(source, spec))
    report.write(written, source, spec, outcome, proof.volume, proof.segmentation)
    return outcome


def _refuse_large(network: torch.nn.Module) -> None:
    size = sum(each.numel() * each.element_size() for each in network.parameters())
    if size > _MAX_FILE_BYTES:
        raise ConfigError(
            f"expected weights of at most {_MAX_FILE_BYTES // 2**20} MiB in one file, got "
            f"{size // 2**20} MiB; import fewer folds"
        )


def reference(network: torch.nn.Module | Path, folder: Path) -> Predict:
    """Return the network as it was read: torch, or ONNX Runtime for a file of ONNX.

    Args:
        network: The network, or its file of ONNX.
        folder: Where that file is copied to as the artifact of an archive.

    Raises:
        ConfigError: it cannot be loaded, or is too large for one file.
    """
    if isinstance(network, Path):
        shutil.copyfile(network, folder / ONNX_FILE)
        try:
            loaded = load_engine(EngineName.ONNXRUNTIME, folder, threads=available_cores())
        except ArchiveError as error:
            raise ConfigError(
                "expected a network that ONNX Runtime can load, got another one; export it again "
                "with an opset of 9 to 20"
            ) from error

        def run(windows: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
            try:
                return loaded.run(windows)["logits"]
            except Exception as error:  # ONNX Runtime has no common base of what it raises
                raise _contradiction(windows.shape, error) from error

        return run
    _refuse_large(network)

    def predict(windows: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        image = torch.from_numpy(np.ascontiguousarray(windows))
        try:
            with torch.inference_mode():
                scores = network(image)
        except RuntimeError as error:
            raise _contradiction(windows.shape, error) from error
        if not isinstance(scores, torch.Tensor):
            raise ConfigError(
                f"expected a network that answers one tensor of scores, got {type(scores).__name__}"
            )
        found: npt.NDArray[np.float32] = scores.numpy()
        return found

    return predict


def _contradiction(shape: tuple[int, ...], error: Exception) -> ConfigError:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return ConfigError(
        f"expected a network that takes windows of shape {shape}, got an error "
        f"({lines[-1][:200]}); the description contradicts the network"
    )


def _refuse_other_scores(spec: ModelSpec, scores: npt.NDArray[np.float32]) -> None:
    """Refuse logits that are told to be probabilities, and the other way about."""
    assert spec.volume is not None
    low, high = float(scores.min()), float(scores.max())
    is_share = low >= -_ROUNDING and high <= 1 + _ROUNDING
    are_told = spec.volume.scores is ScoreKind.PROBABILITIES
    if are_told and not is_share:
        raise ConfigError(
            f"expected probabilities from 0 to 1, as volume.scores says, got scores from {low:g} "
            f"to {high:g}; set volume.scores to logits"
        )
    sums = scores.sum(axis=1) / spec.volume.ensemble
    is_softmax = bool(np.abs(sums - 1).max() <= _ROUNDING) if scores.shape[1] > 1 else False
    if not are_told and is_share and (is_softmax or spec.volume.regions):
        raise ConfigError(
            "expected logits, as volume.scores says, got scores from 0 to 1, as a softmax or "
            "sigmoid at the end of a network gives; set volume.scores and volume.restored to "
            "probabilities"
        )


def _prove(source: Source, spec: ModelSpec, example: Sequence[Path], predict: Predict) -> _Proof:
    volume = golden.read_example(example, spec) if example else golden.computed(spec)
    pipeline = VolumePipeline(spec)
    prepared = pipeline.prepare(volume.volumes)
    window = pipeline.golden_window(prepared)
    logits = predict(window)
    assert spec.volume is not None
    classes = spec.volume.ensemble * (len(spec.volume.regions) or len(spec.labels))
    if logits.shape != (1, classes, *source.size):
        raise ConfigError(
            f"expected scores of shape {(1, classes, *source.size)} for one window, got "
            f"{logits.shape}; the description contradicts the network"
        )
    if not np.isfinite(logits).all():
        raise ConfigError("expected finite scores for the golden volume, got others")
    _refuse_other_scores(spec, logits)
    started = time.perf_counter()
    plain = replace(pipeline.defaults(), flips=False)
    segmented = pipeline.segment(prepared, predict, plain)
    seconds = time.perf_counter() - started
    return _Proof(volume, window, logits, segmented.segmentation, seconds, tolerance_of(logits))


def tolerance_of(logits: npt.NDArray[np.float32]) -> float:
    """Return how far an engine may be from these scores."""
    return max(_LEAST_TOLERANCE, _TOLERANCE * float(np.ptp(logits)))


def export(
    network: torch.nn.Module | Path, window: npt.NDArray[np.float32], folder: Path
) -> list[EngineName]:
    """Write what engines execute, and return them in the order of their speed.

    Args:
        network: As it was read; a file of ONNX lies in the folder already, see `reference`.
        window: One row (1, C, ...) of its input.
        folder: Of the artifact.

    Raises:
        ConfigError: it cannot be exported.
    """
    engines = [EngineName.OPENVINO, EngineName.ONNXRUNTIME]
    if isinstance(network, Path):
        return engines
    inputs = {"image": torch.from_numpy(np.concatenate([window, window[:, :, ::-1]]))}
    is_script = isinstance(network, torch.jit.ScriptModule)
    named = network if is_script else Named(network).eval()
    write_torchscript(named, folder / TORCHSCRIPT_FILE, inputs, ("logits",))
    try:
        write_onnx(named, folder / ONNX_FILE, inputs, ("logits",))
    except Exception as error:  # exporters have no common base of what they raise
        raise ConfigError(
            f"expected a network that can be exported to ONNX, got one that cannot "
            f"({_first_line(error)}); export it yourself and import the ONNX file"
        ) from error
    return [*engines, EngineName.TORCHSCRIPT]


class Named(torch.nn.Module):
    """A network whose argument is called `image`."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Windows (N, C, ...) -> what the network answers."""
        result: torch.Tensor = self.network(image)
        return result


def _compare(engine: EngineName, folder: Path, spec: ModelSpec, proof: _Proof) -> Agreement:
    loaded = load_engine(engine, folder, threads=available_cores())
    largest = float(np.abs(loaded.run(proof.window)["logits"] - proof.logits).max())
    pipeline = VolumePipeline(spec)
    prepared = pipeline.prepare(proof.volume.volumes)
    plain = replace(pipeline.defaults(), flips=False)
    started = time.perf_counter()
    found = pipeline.segment(prepared, lambda windows: loaded.run(windows)["logits"], plain)
    seconds = time.perf_counter() - started
    share = float((found.segmentation.mask == proof.segmentation.mask).mean())
    holds = share >= LEAST_AGREEMENT and largest <= proof.tolerance
    return Agreement(engine, largest, share, seconds, holds)


def chosen(agreements: Sequence[Agreement], compared: str) -> EngineName:
    """Return the first engine that holds: they stand in the order of their speed.

    Raises:
        ArchiveError: none does.
    """
    for each in agreements:
        if each.holds:
            return each.engine
    found = ", ".join(f"{each.engine} {each.share:.4%}" for each in agreements)
    raise ArchiveError(
        f"expected an engine to give the network's own answer for {LEAST_AGREEMENT:.2%} of the "
        f"{compared}, got {found}; the network cannot be exported faithfully"
    )


def _with_memory(source: Source, version: str, engine: EngineName, needed: int) -> dict[str, Any]:
    """Return the configuration with what the network takes, and a limit for one volume."""
    network = -(-needed // _ROUND) * _ROUND + _ROUND
    config = source.config(version, engine.value, network_bytes=network)
    usual = _usual_peak(source, ModelSpec.from_mapping(config), _GROWTH)
    limit = -(-max(_LEAST_MEMORY, usual) // _ROUND) * _ROUND
    return source.config(version, engine.value, network_bytes=network, max_memory_bytes=limit)


def _usual_peak(source: Source, spec: ModelSpec, growth: float = 1.0) -> int:
    """Return the memory that a usual volume takes, or one `growth` times as long in each axis."""
    assert spec.volume is not None
    shape = source.typical_shape
    sides = [round(growth * side) for side in ((1, *shape) if len(shape) == 2 else shape)]
    spacing_mm = [mm or 1.0 for mm in spec.volume.spacing_mm or (0.0, 0.0, 0.0)]
    geometry = Geometry.from_spacing(sides, spacing_mm)
    boundless = structs.replace(spec.volume, max_memory_bytes=_BOUNDLESS)
    relaxed = structs.replace(spec, volume=boundless)
    return volume_memory.peak_bytes(relaxed, geometry, 4, VolumePipeline(relaxed).defaults())


def _pack(
    source: Source,
    spec: ModelSpec,
    config: dict[str, Any],
    proof: _Proof,
    agreements: Sequence[Agreement],
    folder: Path,
    store: Path,
) -> Path:
    suffix = ".nii.gz" if proof.volume.payload[:2] == b"\x1f\x8b" else ".nii"
    figures = {f"same_voxels_{each.engine}": round(each.share, 6) for each in agreements}
    content = Content(
        ("volumes", "VolumeHandler"),
        config,
        report.card(source, spec, agreements),
        (f"golden_input{suffix}", proof.volume.payload),
        proof.logits,
        proof.tolerance,
        figures,
    )
    return write_archive(spec, content, folder, store)


def write_archive(spec: ModelSpec, content: Content, folder: Path, store: Path) -> Path:
    """Pack an archive.

    Args:
        spec: Of the model.
        content: What lies in the archive.
        folder: With what engines execute; the rest is written into it.
        store: Where the archive goes.
    """
    handler = folder / f"{spec.name}.py"
    module, base = content.base
    code = _HANDLER.format(title=_docstring(spec.title), module=module, base=base)
    handler.write_text(code, encoding="utf-8")
    described = yaml.dump(dict(content.config), Dumper=_Plain, sort_keys=False, allow_unicode=True)
    (folder / "model-config.yaml").write_text(described, encoding="utf-8")
    (folder / CARD).write_text(content.card, encoding="utf-8")
    golden_input, payload = content.golden
    (folder / golden_input).write_bytes(payload)
    np.savez_compressed(
        folder / "golden_output.npz",
        logits=content.logits,
        tolerance=np.asarray(content.tolerance, dtype=np.float32),
    )
    (folder / "metrics.json").write_text(json.dumps(content.figures, indent=2), encoding="utf-8")
    names = [
        *("model-config.yaml", CARD, ONNX_FILE, golden_input),
        *("golden_output.npz", "metrics.json"),
    ]
    if (folder / TORCHSCRIPT_FILE).is_file():
        names.append(TORCHSCRIPT_FILE)
    sources = carried_code(handler) | {name: folder / name for name in names}
    return pack_archive(spec, sources, store, "unknown")


class _Plain(yaml.SafeDumper):
    """Writes what stands twice in a description twice: an archive may hold no aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:200]


def _docstring(title: str) -> str:
    """Return a title that can stand in a docstring, whatever it holds."""
    return title.replace("\\", " ").replace('"', "'") + "."
