from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from medserve.cores import available_cores
from medserve.errors import ArchiveError, ConfigError
from medserve.inference import engines
from medserve.inference.engines import load_engine
from medserve.spec import EngineName, Precision
from tests.artifacts import BrightnessClassifier

ENGINES = list(EngineName)


def batch(rows: int) -> npt.NDArray[np.float32]:
    return np.random.default_rng(rows).random((rows, 1, 64, 64), dtype=np.float32)


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("rows", [1, 2, 17])
def test_every_engine_answers_like_the_eager_network(
    name: EngineName, rows: int, artifact: Path
) -> None:
    with torch.inference_mode():
        logits, novelty = BrightnessClassifier()(torch.from_numpy(batch(rows)))
    outputs = load_engine(name, artifact).run(batch(rows))
    assert list(outputs) == ["logits", "novelty"]
    assert {array.dtype for array in outputs.values()} == {np.dtype("float32")}
    np.testing.assert_allclose(outputs["logits"], logits, atol=1e-4)
    np.testing.assert_allclose(outputs["novelty"], novelty, atol=1e-4)


@pytest.mark.parametrize("name", ENGINES)
def test_batches_of_any_size_may_follow_each_other(name: EngineName, artifact: Path) -> None:
    engine = load_engine(name, artifact)
    alone = np.concatenate([engine.run(row[np.newaxis])["logits"] for row in batch(5)])
    np.testing.assert_allclose(engine.run(batch(5))["logits"], alone, atol=1e-5)


@pytest.mark.parametrize("name", ENGINES)
def test_an_answer_outlives_the_next_call(name: EngineName, artifact: Path) -> None:
    engine = load_engine(name, artifact)
    first = engine.run(batch(3))["logits"]
    kept = first.copy()
    engine.run(batch(4)[:3] * 0.1)
    np.testing.assert_array_equal(first, kept)


@pytest.mark.parametrize("name", ENGINES)
def test_an_input_that_is_not_contiguous_is_read_right(name: EngineName, artifact: Path) -> None:
    engine = load_engine(name, artifact)
    turned = batch(2).swapaxes(2, 3)
    expected = engine.run(np.ascontiguousarray(turned))["logits"]
    np.testing.assert_allclose(engine.run(turned)["logits"], expected, atol=1e-6)


@pytest.mark.parametrize("name", ENGINES)
def test_a_missing_artifact_is_named(name: EngineName, tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match=r"expected the artifact model\.(onnx|pt)"):
        load_engine(name, tmp_path)


@pytest.mark.parametrize("name", ENGINES)
def test_a_damaged_artifact_is_an_archive_error(name: EngineName, tmp_path: Path) -> None:
    for file in ("model.onnx", "model.pt"):
        (tmp_path / file).write_bytes(b"not a model")
    with pytest.raises(ArchiveError, match="cannot be loaded"):
        load_engine(name, tmp_path)


@pytest.mark.parametrize(
    ("name", "library"),
    [
        (EngineName.OPENVINO, "openvino"),
        (EngineName.ONNXRUNTIME, "onnxruntime"),
        (EngineName.TORCHSCRIPT, "torch"),
    ],
)
def test_a_missing_library_says_what_to_install(
    name: EngineName, library: str, artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    # The adapter is imported anew, and put back afterwards.
    monkeypatch.delitem(sys.modules, f"{engines.__name__}.{name}", raising=False)
    monkeypatch.setattr(engines, name, None, raising=False)
    with pytest.raises(ConfigError, match=rf"{library} cannot be imported.*medserve\[serve\]"):
        load_engine(name, artifact)


@pytest.mark.parametrize("name", [EngineName.ONNXRUNTIME, EngineName.TORCHSCRIPT])
def test_an_engine_without_bf16_says_so(name: EngineName, artifact: Path) -> None:
    with pytest.raises(ConfigError, match="precision bf16 is not supported; use f32 or openvino"):
        load_engine(name, artifact, precision=Precision.BF16)


def test_openvino_is_told_precision_threads_and_freedom_of_core(artifact: Path) -> None:
    import openvino

    from medserve.inference.engines import openvino as adapter

    compiled: list[openvino.CompiledModel] = []

    class Watched(adapter.OpenVinoEngine):
        def __init__(self, model: openvino.CompiledModel) -> None:
            compiled.append(model)
            super().__init__(model)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(adapter, "OpenVinoEngine", Watched)
        load_engine(EngineName.OPENVINO, artifact, threads=1)
    assert compiled[0].get_property("INFERENCE_PRECISION_HINT") == openvino.Type.f32
    assert compiled[0].get_property("INFERENCE_NUM_THREADS") == 1
    # pinned, the threads of all workers would share the first core
    assert compiled[0].get_property("ENABLE_CPU_PINNING") is False


@pytest.mark.parametrize("name", EngineName)
def test_no_number_of_threads_means_every_core(name: EngineName, artifact: Path) -> None:
    before = torch.get_num_threads()
    try:
        engine = load_engine(name, artifact, threads=0)
        assert engine.name is name
        if name is EngineName.TORCHSCRIPT:
            assert torch.get_num_threads() == available_cores()
    finally:
        torch.set_num_threads(before)


@pytest.mark.gpu
def test_torchscript_on_cuda_answers_like_the_cpu(artifact: Path) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    expected = load_engine(EngineName.TORCHSCRIPT, artifact).run(batch(5))["logits"]
    on_gpu = load_engine(EngineName.TORCHSCRIPT, artifact, device="cuda").run(batch(5))["logits"]
    np.testing.assert_allclose(on_gpu, expected, atol=1e-4)
