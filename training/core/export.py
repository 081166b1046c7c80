"""From a trained network to the artifact that serving runs, proven equal on the way."""

from __future__ import annotations

import copy
import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from medserve.errors import ArchiveError, ConfigError
from medserve.importing.artifacts import write_onnx, write_torchscript
from medserve.inference.engines import load_engine
from medserve.spec import EngineName, Precision
from models.classifier import Classifier

__all__ = [
    "LEAST_AGREEMENT",
    "OUTPUTS",
    "TOLERANCE",
    "ClassifierArtifact",
    "classifier_of",
    "export_classifier",
    "export_network",
    "require_agreement",
    "sha256",
    "stored_in_fp16",
    "write_golden",
]

_log = logging.getLogger(__name__)

OUTPUTS = ("logits", "novelty")
TOLERANCE = 1e-4  # absolute; engines order their sums differently
LEAST_AGREEMENT = 0.9999  # share of voxels or pixels in which two engines must say the same


class ClassifierArtifact(nn.Module):
    """What is exported for every classifier: calibrated logits and novelty from one pass.

    Args:
        network: A `models.classifier.Classifier`.
        novelty: Takes the image, its maps and the logits.
        temperature: Divides the logits (Guo et al., ICML 2017, arXiv:1706.04599).
    """

    def __init__(self, network: nn.Module, novelty: nn.Module, temperature: float) -> None:
        super().__init__()
        classifier_of(network)
        self.network = network
        self.novelty = novelty
        self.temperature: Tensor
        self.register_buffer("temperature", torch.tensor(temperature))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Image float32 (N, C, H, W) in [0, 1] -> logits (N, K), novelty (N,)."""
        network = classifier_of(self.network)
        maps = network.features(image)
        logits = network.classify(maps) / self.temperature
        return logits, self.novelty(image, maps, logits)


def classifier_of(network: nn.Module) -> Classifier:
    """Return the network as a classifier, or raise a ConfigError that says what it lacks."""
    if not isinstance(network, Classifier):
        raise ConfigError(
            f"{type(network).__name__} needs the methods features(image) and classify(maps) to be "
            "a classifier; see models/classifier.py"
        )
    return network


class _Widened(nn.Module):
    """From how a kernel is stored to how it is computed with."""

    def forward(self, stored: Tensor) -> Tensor:
        """Float16 -> float32, exactly."""
        return stored.float()


def stored_in_fp16(network: nn.Module) -> nn.Module:
    """A copy whose kernels are stored in 16 bits and widened to 32 on their way: half the file.

    Arithmetic, biases and norms stay float32. Rounding moves a kernel by 0.05 % at most (11 bits),
    below 6e-5 by up to 3e-8; what is exported, compared and measured is this copy.

    Raises:
        ArchiveError: a kernel is too large for 16 bits.
    """
    network = copy.deepcopy(network)
    for name, module in list(network.named_modules()):
        weight = module._parameters.get("weight")
        if weight is None or weight.ndim < 2:
            continue
        if not float(weight.detach().abs().max()) < torch.finfo(torch.float16).max:
            raise ArchiveError(f"expected kernels that fit 16 bits, got {name}; store them in 32")
        module.weight = nn.Parameter(weight.detach().half(), requires_grad=False)
        parametrize.register_parametrization(module, "weight", _Widened(), unsafe=True)
    return network.eval()


@dataclass(frozen=True)
class Exported:
    """Where the artifact lies and how far its two forms are from eager torch."""

    onnx: Path
    torchscript: Path
    largest_difference: float


def export_classifier(artifact: ClassifierArtifact, folder: Path, example: Tensor) -> Exported:
    """Write `model.onnx` and `model.pt`; ArchiveError where one differs from eager.

    Args:
        artifact: In eval mode, on the CPU.
        folder: Made where it is missing.
        example: Real images float32 (N, C, H, W), N >= 2; compared on the whole and on one.
    """
    return export_network(artifact, folder, example, OUTPUTS, TOLERANCE)


def export_network(
    network: nn.Module,
    folder: Path,
    example: Tensor | Mapping[str, Tensor],
    outputs: Sequence[str],
    tolerance: float = TOLERANCE,
) -> Exported:
    """Write `model.onnx` and `model.pt`; ArchiveError where one differs from eager.

    Sides are those of the example, the number of images is free.

    Args:
        network: In eval mode, on the CPU; takes `image`, or what `example` names in the order of
            its arguments; answers with a tensor or several.
        folder: Made where it is missing.
        example: Real input float32 (N, C, ...), N >= 2, or one for each argument by name; compared
            on the whole and on the first alone.
        outputs: Names of the answers, in their order.
        tolerance: Largest difference that is accepted.
    """
    folder.mkdir(parents=True, exist_ok=True)
    network = network.eval()
    inputs = {"image": example} if isinstance(example, Tensor) else dict(example)
    write_torchscript(network, folder / "model.pt", inputs, outputs)
    write_onnx(network, folder / "model.onnx", inputs, outputs)
    largest = 0.0
    for given in (inputs, {name: each[:1] for name, each in inputs.items()}):
        expected = _answers(network, given, outputs)
        arrays = {name: each.numpy() for name, each in given.items()}
        for name in (EngineName.TORCHSCRIPT, EngineName.ONNXRUNTIME):
            engine = load_engine(name, folder, precision=Precision.F32, threads=1)
            answered = engine.run(arrays["image"] if len(arrays) == 1 else arrays)
            for key, value in expected.items():
                difference = float(np.abs(answered[key] - value).max())
                largest = max(largest, difference)
                if not difference <= tolerance:
                    raise ArchiveError(
                        f"expected {name} to agree with eager torch within {tolerance:g}, "
                        f"but {key} differs by {difference:g}; do not ship this export"
                    )
    _log.info("TorchScript and ONNX agree with eager within %.1e", largest)
    return Exported(folder / "model.onnx", folder / "model.pt", largest)


def require_agreement(shares: Mapping[str, float]) -> None:
    """Refuse an artifact one of whose engines gives other masks than eager torch.

    Args:
        shares: Engine -> share of voxels or pixels with the same label, from 0 to 1.

    Raises:
        ArchiveError: says which engine, and how many are alike.
    """
    for engine, share in shares.items():
        if share < LEAST_AGREEMENT:
            raise ArchiveError(
                f"artifact and report are written, but do not serve them by {engine}: expected the "
                f"mask of eager torch in {LEAST_AGREEMENT:.2%} of the places, got {share:.4%}; "
                "train longer, or choose another engine for this model"
            )


@torch.no_grad()
def _answers(
    network: nn.Module, inputs: Mapping[str, Tensor], outputs: Sequence[str]
) -> dict[str, npt.NDArray[np.float32]]:
    answer = network(*inputs.values())
    tensors = [answer] if isinstance(answer, Tensor) else answer
    return {name: each.numpy() for name, each in zip(outputs, tensors, strict=True)}


def write_golden(folder: Path, tensor: npt.NDArray[np.float32], artifact: nn.Module) -> None:
    """Write `golden_output.npz`: what eager torch answers to the golden input.

    Args:
        folder: Of the artifact; its golden input decodes and preprocesses to `tensor`.
        tensor: float32 (1, C, H, W).
        artifact: In eval mode.
    """
    answers = _answers(artifact, {"image": torch.from_numpy(tensor)}, OUTPUTS)
    arrays: dict[str, Any] = dict(answers)
    np.savez(folder / "golden_output.npz", tolerance=np.float32(TOLERANCE), **arrays)


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
