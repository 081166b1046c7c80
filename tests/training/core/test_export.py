"""The artifact is what was trained, in both its forms."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from medserve.errors import ArchiveError
from medserve.inference.engines import load_engine
from medserve.spec import EngineName, Precision
from training.classification.data import LabelledImages
from training.core import export


def batch(images: LabelledImages, count: int) -> torch.Tensor:
    return torch.from_numpy(images.images)[:count, None].float() / 255.0


@pytest.mark.parametrize("name", list(EngineName))
@pytest.mark.parametrize("count", [1, 5])
def test_every_engine_answers_as_eager_does_at_any_batch_size(
    name: EngineName,
    count: int,
    weights: Path,
    artifact: export.ClassifierArtifact,
    drawn_images: LabelledImages,
) -> None:
    image = batch(drawn_images, count)
    engine = load_engine(name, weights, precision=Precision.F32, threads=1)
    outputs = engine.run(image.numpy())
    with torch.no_grad():
        logits, novelty = artifact(image)
    assert tuple(outputs) == export.OUTPUTS
    np.testing.assert_allclose(outputs["logits"], logits.numpy(), atol=export.TOLERANCE)
    np.testing.assert_allclose(outputs["novelty"], novelty.numpy(), atol=export.TOLERANCE)


def test_onnx_is_one_file_with_a_free_batch_size(weights: Path) -> None:
    model = onnx.load(weights / "model.onnx", load_external_data=False)
    assert not any(onnx.external_data_helper.uses_external_data(t) for t in model.graph.initializer)
    assert [each.name for each in model.graph.input] == ["image"]
    first = model.graph.input[0].type.tensor_type.shape.dim[0]
    assert first.WhichOneof("value") == "dim_param"
    assert model.opset_import[0].version >= 17


def test_the_file_says_nothing_about_the_machine_that_trained(weights: Path) -> None:
    repository = str(Path(export.__file__).parent.parent).encode()
    for name in ("model.onnx", "model.pt"):
        assert repository not in (weights / name).read_bytes()


def test_logits_are_divided_by_the_temperature(
    artifact: export.ClassifierArtifact, drawn_images: LabelledImages
) -> None:
    image = batch(drawn_images, 3)
    with torch.no_grad():
        logits, _ = artifact(image)
        expected = artifact.network(image) / artifact.temperature
    torch.testing.assert_close(logits, expected)


@pytest.mark.cpu
def test_an_export_that_differs_from_eager_is_refused(
    artifact: export.ClassifierArtifact,
    drawn_images: LabelledImages,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(export, "TOLERANCE", -1.0)  # as if any difference were too large
    with pytest.raises(ArchiveError, match="do not ship"):
        export.export_classifier(artifact, tmp_path, batch(drawn_images, 2))


def test_the_golden_output_is_eagers_answer(
    artifact: export.ClassifierArtifact, drawn_images: LabelledImages, tmp_path: Path
) -> None:
    image = batch(drawn_images, 1)
    export.write_golden(tmp_path, image.numpy(), artifact)
    golden = np.load(tmp_path / "golden_output.npz", allow_pickle=False)
    with torch.no_grad():
        logits, novelty = artifact(image)
    np.testing.assert_array_equal(golden["logits"], logits.numpy())
    np.testing.assert_array_equal(golden["novelty"], novelty.numpy())
    assert 0.0 < float(golden["tolerance"]) < 1e-2


class Kernels(torch.nn.Module):
    """A network whose file is mostly kernels."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Conv2d(1, 64, 3, padding=1)
        self.norm = torch.nn.BatchNorm2d(64)
        self.second = torch.nn.Conv2d(64, 64, 3, padding=1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Image (N, 1, H, W) -> maps (N, 64, H, W)."""
        maps: torch.Tensor = self.second(self.norm(self.first(image)).relu())
        return maps


@pytest.mark.cpu
def test_kernels_in_16_bits_halve_both_files_and_every_engine_computes_with_the_same(
    tmp_path: Path,
) -> None:
    torch.manual_seed(0)
    image = torch.rand(2, 1, 16, 24)
    whole = Kernels().eval()
    half = export.stored_in_fp16(whole)
    sizes = {}
    for name, network in (("whole", whole), ("half", half)):
        export.export_network(network, tmp_path / name, image, ("maps",))  # compares the engines
        for file in ("model.onnx", "model.pt"):
            sizes[name, file] = (tmp_path / name / file).stat().st_size
    for file in ("model.onnx", "model.pt"):
        assert sizes["half", file] < 0.65 * sizes["whole", file]
    with torch.no_grad():
        expected, found = whole(image), half(image)
    assert whole.first.weight.dtype is torch.float32  # the network itself stays as it was
    assert 0 < float((found - expected).abs().max()) < 1e-3
    answered = load_engine(
        EngineName.OPENVINO, tmp_path / "half", precision=Precision.F32, threads=1
    ).run(image.numpy())
    np.testing.assert_allclose(answered["maps"], found.numpy(), atol=export.TOLERANCE)


def test_a_kernel_that_16_bits_cannot_hold_is_refused() -> None:
    network = Kernels()
    with torch.no_grad():
        network.second.weight[0, 0, 0, 0] = 1e6
    with pytest.raises(ArchiveError, match="fit 16 bits, got second"):
        export.stored_in_fp16(network)
